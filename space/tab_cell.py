"""Tab "One cell": verdict, probabilities and similar labelled cells for a picture or a crop of it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from hub_model.inference.classifier import Predictions
from hub_model.inference.errors import ImageError
from hub_model.inference.images import CELL_SIDE, read_image
from space import cards
from space.archives import read_cell, read_slide
from space.desk import downscaled
from space.desk_view import QUIET
from space.fields import CROP_SIDE, Box, cut
from space.inputs import PictureInput, values_of
from space.resources import Resources
from space.texts import Words, say, say_error
from space.visits import Visit, Visits

EXAMPLES = 14
CROPPABLE = 2 * CROP_SIDE  # pixels of the longer side; larger pictures can be cropped
SCRIPT = (Path(__file__).parent / "crop.js").read_text("utf-8")


@dataclass
class CellPicture:
    """The picture of a visitor, its crop, and the preview that the crop tool shows.

    `frame` is a square: `left` and `side` are fractions of the picture's width, `top` of its height.
    """

    path: str
    frame: dict[str, float] | None = None
    preview: dict[str, Any] | None = None

    def read(self, visit: Visit) -> Image.Image:
        """Decode the crop, or the whole picture. Raises ImageError."""
        if self.frame:
            picture = read_slide(self.path)
            side = max(1, round(self.frame["side"] * picture.width))
            left, top = round(self.frame["left"] * picture.width), round(self.frame["top"] * picture.height)
            return cut(picture, Box(left, top, side))
        try:
            picture = read_cell(self.path)
        except ImageError as error:
            if error.reason == "bomb":  # too large for one cell, but a cell can be cropped out of it
                self._save_preview(downscaled(read_slide(self.path), CELL_SIDE), visit)
            raise
        if max(picture.size) > CROPPABLE:
            self._save_preview(picture, visit)
        return picture

    def _save_preview(self, picture: Image.Image, visit: Visit) -> None:
        if self.preview is None:
            path = visit.file(f"cell-{secrets.token_hex(4)}.jpg")
            picture.save(path, "JPEG", quality=88)
            self.preview = {"url": str(path), "width": picture.width, "height": picture.height}

    @property
    def is_large(self) -> bool:
        """Whether the picture probably shows more than one cell."""
        return self.preview is not None and max(self.preview["width"], self.preview["height"]) >= CELL_SIDE

    def crop_tool(self, language: str) -> dict[str, Any] | None:
        """The value of `crop.js`; None for a picture that is too small to crop."""
        if self.preview is None:
            return None
        words = {key: say(language, f"crop_{key}") for key in ("help", "frame", "size", "cut", "whole")}
        return {**self.preview, "frame": self.frame, "words": words}


def build(resources: Resources, words: Words, visits: Visits, tab: gr.Tab) -> tuple:
    """Lay out the tab and register its events."""
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
                buttons = [
                    (say("en", "cell_example", number=i + 1), uri) for i, (_, uri, _) in enumerate(examples)
                ]
                gallery = cards.picture_buttons(buttons, "cell-examples")
        with gr.Column(scale=6, min_width=300):
            answer = gr.HTML(f'<p class="hint">{words.i18n("cell_waiting")}</p>', elem_id="cell-answer")
            tool = gr.HTML(
                None, html_template='<div class="crop"></div>', js_on_load=SCRIPT, elem_id="cell-crop"
            )
    similar = gr.HTML(elem_id="cell-similar")

    def answers(visit: Visit) -> list[Any]:
        cell, language = visit.results.get("cell"), visit.language
        if cell is None:
            return [cards.message(say(language, "cell_waiting")), None, ""]
        try:
            image = cell.read(visit)
        except ImageError as error:
            return [cards.message(say_error(language, error), "bad"), cell.crop_tool(language), ""]
        predictions = resources.batcher.predict([image])
        warning = say(language, "cell_large") if cell.is_large and not cell.frame else ""
        truth = truths.get(cell.path, "") if not cell.frame else ""
        card = cards.answer_card(resources, predictions, language, truth, warning)
        return [card, cell.crop_tool(language), similar_cells(resources, image, predictions, language)]

    def respond(path: str | None, request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        visit.keep(path)
        cell = visit.results.get("cell")
        if cell is None or cell.path != path:
            visit.results["cell"] = CellPicture(path) if path else None
        return answers(visit)

    def crop(event: gr.EventData, request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        if cell := visit.results.get("cell"):
            (cell.frame,) = values_of(event, frame=checked_frame)
        return answers(visit)

    def restore(visit: Visit) -> list[Any]:
        cell = visit.results.get("cell")
        exists = cell is not None and Path(cell.path).exists()
        return [gr.update(value=cell.path) if exists else gr.skip(), *answers(visit)]

    outputs = [answer, tool, similar]
    options = {**QUIET, "concurrency_limit": 16}
    picture.change(respond, picture, outputs, trigger_mode="always_last", **options)
    tool.crop(crop, None, outputs, **options)
    if examples:

        def pick(event: gr.EventData, request: gr.Request) -> list[Any]:
            (n,) = values_of(event, number=int)
            path = examples[n % len(examples)][0]
            return [path, *respond(path, request)]

        gallery.pick(pick, None, [picture, *outputs], **options)
    return [picture, *outputs], restore


def checked_frame(value: Any) -> dict[str, float] | None:
    """The frame that a page has sent, clipped to the picture; None, for the whole picture, if it is not a frame."""
    try:
        frame = {key: min(1.0, max(0.0, float(value[key]))) for key in ("left", "top", "side")}
    except (KeyError, OverflowError, TypeError, ValueError):
        return None
    return frame if frame["side"] > 0 else None


def example_files(resources: Resources, folder: Path) -> list[tuple[str, str, str]]:
    """Held-out samples, the same number of each class: path, data URI of a thumbnail, class."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = sorted({sample.label for sample in resources.held_out})
    per_class = max(1, EXAMPLES // max(1, len(labels)))
    files = []
    for label in labels:
        for sample in [sample for sample in resources.held_out if sample.label == label][:per_class]:
            path = folder / f"{len(files) + 1}.png"  # a name from the dataset could be an unsafe path
            image = read_image(sample.image, CELL_SIDE)
            image.save(path)
            image.thumbnail((112, 112))
            files.append((str(path), cards.data_uri(image), label))
    return files


def similar_cells(resources: Resources, image: Any, predictions: Predictions, language: str) -> str:
    """The cell next to the most similar training cells, or the reason why there are none."""
    if resources.similar is None:
        return cards.message(say(language, "similar_none"))
    neighbours = resources.similar.nearest(predictions.features[0])
    if not neighbours:
        return cards.message(say(language, "similar_waiting"))
    thumbnail = image.copy()
    thumbnail.thumbnail((250, 250))
    return cards.similar_card(resources.classifier, language, thumbnail, neighbours)
