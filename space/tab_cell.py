"""Tab "One cell": a picture in, or a part of it; verdict, probabilities and the most similar labelled cells out."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from hub_model.inference.classifier import Predictions
from hub_model.inference.errors import ImageError
from hub_model.inference.images import CELL_SIDE, read_picture
from space import cards
from space.archives import read_cell, read_slide
from space.desk import reduced
from space.fields import CROP_SIDE, Box, cut
from space.inputs import PictureInput
from space.resources import Resources
from space.texts import Words, say, say_error
from space.visits import Visit, Visits

EXAMPLES = 14
CROPPABLE = 2 * CROP_SIDE  # pixels of the longer side: of larger pictures a part can be chosen
SCRIPT = (Path(__file__).parent / "crop.js").read_text("utf-8")


@dataclass
class Look:
    """What a visitor shows: a picture, the part of it that counts, and how the page shows it to choose one.

    `frame` is a square: left in shares of the width, top of the height, side of the width.
    """

    path: str
    frame: dict[str, float] | None = None
    preview: dict[str, Any] | None = None

    def read(self, visit: Visit) -> Image.Image:
        """The part, or all of it. Raises ImageError."""
        if self.frame:
            picture = read_slide(self.path)
            side = max(1, round(self.frame["side"] * picture.width))
            left, top = round(self.frame["left"] * picture.width), round(self.frame["top"] * picture.height)
            return cut(picture, Box(left, top, side))
        try:
            picture = read_cell(self.path)
        except ImageError as error:
            if error.reason == "bomb":  # too large as one cell, not as what one is cut out of
                self._show(reduced(read_slide(self.path), CELL_SIDE), visit)
            raise
        if max(picture.size) > CROPPABLE:
            self._show(picture, visit)
        return picture

    def _show(self, picture: Image.Image, visit: Visit) -> None:
        if self.preview is None:
            path = visit.file(f"cell-{secrets.token_hex(4)}.jpg")
            picture.save(path, "JPEG", quality=88)
            self.preview = {"url": str(path), "width": picture.width, "height": picture.height}

    @property
    def is_large(self) -> bool:
        """Whether there is probably more than one cell in it."""
        return self.preview is not None and max(self.preview["width"], self.preview["height"]) >= CELL_SIDE

    def tool(self, language: str) -> dict[str, Any] | None:
        """What `crop.js` shows; nothing for a picture as small as a cell."""
        if self.preview is None:
            return None
        words = {key: say(language, f"crop_{key}") for key in ("help", "frame", "size", "cut", "whole")}
        return {**self.preview, "frame": self.frame, "words": words}


def build(resources: Resources, words: Words, visits: Visits, tab: gr.Tab) -> tuple:
    """Lay the tab out and wire it."""
    examples = example_files(resources, visits.folder / "examples")
    truths = {path: label for path, _, label in examples}
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
                    (say("en", "cell_example", number=i + 1), uri) for i, (_, uri, _) in enumerate(examples)
                ]
                gallery = cards.picks(shown, "cell-examples")
        with gr.Column(scale=6, min_width=300):
            answer = gr.HTML(f'<p class="hint">{words.i18n("cell_waiting")}</p>', elem_id="cell-answer")
            tool = gr.HTML(
                None, html_template='<div class="crop"></div>', js_on_load=SCRIPT, elem_id="cell-crop"
            )
    similar = gr.HTML(elem_id="cell-similar")

    def answers(visit: Visit) -> list[Any]:
        look, language = visit.results.get("cell"), visit.language
        if look is None:
            return [cards.message(say(language, "cell_waiting")), None, ""]
        try:
            image = look.read(visit)
        except ImageError as error:
            return [cards.message(say_error(language, error), "bad"), look.tool(language), ""]
        predictions = resources.batcher.predict([image])
        warning = say(language, "cell_large") if look.is_large and not look.frame else ""
        truth = truths.get(look.path, "") if not look.frame else ""
        card = cards.answer_card(resources, predictions, language, truth, warning)
        return [card, look.tool(language), similar_cells(resources, image, predictions, language)]

    def respond(path: str | None, request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        visit.keep(path)
        look = visit.results.get("cell")
        if look is None or look.path != path:
            visit.results["cell"] = Look(path) if path else None
        return answers(visit)

    def crop(event: gr.EventData, request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        if look := visit.results.get("cell"):
            look.frame = checked_frame(event.frame)
        return answers(visit)

    def restore(visit: Visit) -> list[Any]:
        look = visit.results.get("cell")
        known = look is not None and Path(look.path).exists()
        return [gr.update(value=look.path) if known else gr.skip(), *answers(visit)]

    outputs = [answer, tool, similar]
    options = {"api_visibility": "private", "concurrency_limit": 16, "show_progress": "hidden"}
    picture.change(respond, picture, outputs, trigger_mode="always_last", **options)
    tool.crop(crop, None, outputs, **options)
    if examples:

        def pick(event: gr.EventData, request: gr.Request) -> list[Any]:
            path = examples[int(event.number) % len(examples)][0]
            return [path, *respond(path, request)]

        gallery.pick(pick, None, [picture, *outputs], **options)
    return [picture, *outputs], restore


def checked_frame(sent: Any) -> dict[str, float] | None:
    """A frame within the picture, of what a page has sent; None for the whole picture."""
    try:
        left, top, side = (min(1.0, max(0.0, float(sent[key]))) for key in ("left", "top", "side"))
    except (KeyError, TypeError, ValueError):
        return None
    return {"left": left, "top": top, "side": side} if side > 0 else None


def example_files(resources: Resources, folder: Path) -> list[tuple[str, str, str]]:
    """Held-out samples, evenly over the classes: file, small picture for the page, class."""
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
            files.append((str(path), cards.data_uri(image), label))
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
