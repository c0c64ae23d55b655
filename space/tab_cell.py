"""Tab "One cell": a picture in; verdict, probabilities and the most similar labelled cells out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from hub_model.inference.classifier import Predictions
from hub_model.inference.errors import ImageError
from hub_model.inference.images import CELL_SIDE, read_picture
from space import cards
from space.archives import read_upload
from space.inputs import PictureInput
from space.resources import Resources
from space.texts import Words, say, say_error
from space.visits import Visit, Visits

EXAMPLES = 14


def build(resources: Resources, words: Words, visits: Visits, tab: gr.Tab) -> tuple:
    """Lay the tab out and wire it."""
    examples = example_files(resources, visits.folder / "examples")
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=5, min_width=300):
            picture = words.put(
                PictureInput,
                "cell_picture",
                sources=["upload", "clipboard", "webcam"],
                height=300,
                elem_id="cell-picture",
            )
            if examples:
                words.html('<h3 class="small">{}</h3>', "cell_examples")
                shown = [
                    (say("en", "cell_example", number=i + 1), uri) for i, (_, uri) in enumerate(examples)
                ]
                gallery = cards.picks(shown, "cell-examples")
        with gr.Column(scale=6, min_width=300):
            answer = gr.HTML(f'<p class="hint">{words.i18n("cell_waiting")}</p>', elem_id="cell-answer")
    similar = gr.HTML(elem_id="cell-similar")

    def answers(visit: Visit) -> list[Any]:
        path, language = visit.results.get("cell"), visit.language
        if path is None:
            return [cards.message(say(language, "cell_waiting")), ""]
        try:
            image = read_upload(path, CELL_SIDE)
        except ImageError as error:
            return [cards.message(say_error(language, error), "bad"), ""]
        predictions = resources.batcher.predict([image])
        card = cards.answer_card(resources.classifier, predictions, 0, language)
        return [card, similar_cells(resources, image, predictions, language)]

    def respond(path: str | None, request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        visit.keep(path)
        visit.results["cell"] = path
        return answers(visit)

    def restore(visit: Visit) -> list[Any]:
        path = visit.results.get("cell")
        return [gr.update(value=path) if path and Path(path).exists() else gr.skip(), *answers(visit)]

    options = {"api_visibility": "private", "concurrency_limit": 16, "show_progress": "hidden"}
    picture.change(respond, picture, [answer, similar], trigger_mode="always_last", **options)
    if examples:

        def pick(event: gr.EventData, request: gr.Request) -> list[Any]:
            path = examples[int(event.number) % len(examples)][0]
            return [path, *respond(path, request)]

        gallery.pick(pick, None, [picture, answer, similar], **options)
    return [picture, answer, similar], restore


def example_files(resources: Resources, folder: Path) -> list[tuple[str, str]]:
    """Held-out samples as files and as small pictures for the page, evenly over the classes."""
    folder.mkdir(parents=True, exist_ok=True)
    by_class: dict[str, list] = {}
    for sample in resources.held_out:
        by_class.setdefault(sample.label, []).append(sample)
    each = max(1, EXAMPLES // max(1, len(by_class)))
    files = []
    for label in sorted(by_class):
        for sample in by_class[label][:each]:
            path = folder / f"{len(files) + 1}.png"  # no name of the repo's: it could lead anywhere
            image = read_picture(sample.image, CELL_SIDE)
            image.save(path)
            image.thumbnail((112, 112))
            files.append((str(path), cards.data_uri(image)))
    return files


def similar_cells(resources: Resources, image: Any, predictions: Predictions, language: str) -> str:
    """The cell beside the nearest training cells, or why there are none."""
    if resources.similar is None:
        return cards.message(say(language, "similar_none"))
    neighbours = resources.similar.nearest(predictions.features[0])
    if not neighbours:
        return cards.message(say(language, "similar_waiting"))
    shown = image.copy()
    shown.thumbnail((250, 250))
    return cards.similar_card(resources.classifier, language, shown, neighbours)
