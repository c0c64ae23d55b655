"""Tab "One cell": a picture in; verdict, probabilities, heat map and similar cells out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import gradio as gr

from hub_model.inference.classifier import Predictions
from hub_model.inference.errors import ImageError
from hub_model.inference.images import CELL_SIDE, read_picture
from space import cards
from space.heat_map import grad_cam, overlay
from space.inputs import PictureInput
from space.resources import Resources
from space.texts import language_of, say, say_error

EXAMPLES = 14


def build(resources: Resources, i18n: gr.I18n) -> None:
    """Lay the tab out and wire it."""
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=5, min_width=300):
            picture = PictureInput(
                label=i18n("cell_picture"),
                sources=["upload", "clipboard", "webcam"],
                height=360,
                elem_id="cell-picture",
            )
            paths = example_files(resources)
            if paths:
                gr.Examples(
                    paths,
                    picture,
                    label=i18n("cell_examples"),
                    examples_per_page=EXAMPLES,
                    elem_id="cell-examples",
                )
        with gr.Column(scale=6, min_width=300):
            waiting = f'<p class="hint">{i18n("cell_waiting")}</p>'
            answer = gr.HTML(waiting, elem_id="cell-answer")
            looked = gr.HTML(elem_id="cell-looked")
    similar = gr.HTML(elem_id="cell-similar")

    def respond(path: str | None, request: gr.Request) -> Iterator[tuple[str, str, str]]:
        language = language_of(request)
        if path is None:
            yield waiting, "", ""
            return
        try:
            image = read_picture(path, CELL_SIDE)
        except ImageError as error:
            yield cards.message(say_error(language, error), "bad"), "", ""
            return
        predictions = resources.batcher.predict([image])
        card = cards.answer_card(resources.classifier, predictions, 0, language)
        neighbours = similar_cells(resources, predictions, language)
        yield card, "", neighbours
        yield card, where_it_looked(resources, image, predictions, language), neighbours

    picture.change(
        respond,
        picture,
        [answer, looked, similar],
        api_visibility="private",
        concurrency_limit=16,
        show_progress="hidden",
        trigger_mode="always_last",
    )


def example_files(resources: Resources) -> list[str]:
    """Held-out samples as files for Gradio's examples, evenly over the classes."""
    folder = Path(mkdtemp(prefix="examples-"))
    by_class: dict[str, list] = {}
    for sample in resources.held_out:
        by_class.setdefault(sample.label, []).append(sample)
    each = max(1, EXAMPLES // max(1, len(by_class)))
    paths = []
    for label in sorted(by_class):
        for sample in by_class[label][:each]:
            path = folder / f"{len(paths) + 1}.png"  # no name of the repo's: it could lead anywhere
            read_picture(sample.image, CELL_SIDE).save(path)
            paths.append(str(path))
    return paths


def where_it_looked(resources: Resources, image: object, predictions: Predictions, language: str) -> str:
    """The heat map card for the likeliest class."""
    classifier = resources.classifier
    label = predictions.labels[0]
    heat = grad_cam(classifier.model, classifier.preprocess([image]), classifier.label_names.index(label))
    seen = classifier.preprocess.seen(image)
    heated = None if heat is None else overlay(seen, heat)
    return cards.heat_card(language, seen, heated, cards.name_of(classifier, language, label))


def similar_cells(resources: Resources, predictions: Predictions, language: str) -> str:
    """The card of the nearest training cells, or why there is none."""
    if resources.similar is None:
        return cards.message(say(language, "similar_none"))
    neighbours = resources.similar.nearest(predictions.features[0])
    if not neighbours:
        return cards.message(say(language, "similar_waiting"))
    return cards.similar_card(resources.classifier, language, neighbours)
