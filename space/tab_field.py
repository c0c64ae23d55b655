"""Tab "A field": find, classify, review and count the cells of a microscope field or slide."""

from __future__ import annotations

import secrets
from collections import Counter
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hub_model.inference.classifier import Predictions
from hub_model.inference.errors import ImageError
from hub_model.inference.images import read_image
from space import cards, charts
from space.archives import LARGEST
from space.desk import Desk, Row, Source, downscaled, open_field, save_thumbnail
from space.desk_view import PRIVATE, QUIET, DeskView
from space.fields import CROP_SIDE, Box, background_of, cut, evenly, find_cells
from space.inputs import PictureInput, values_of
from space.resources import Resources
from space.texts import Words, number, say, say_error
from space.visits import Visit, Visits

PREVIEW_SIDE = 3000  # pixels of the picture on the page, which can be zoomed
ANNOTATED_SIDE = 6000  # pixels of the exported picture with boxes
EXAMPLES = 100  # held-out cells that the example is chosen from
MAX_FIELD_JOBS = 1  # at a time, page and API together


def classify_field(
    resources: Resources, picture: Image.Image, side: int | None
) -> tuple[int, list[Box], Predictions | None]:
    """Find and classify the nucleated cells of a field: number found, boxes classified, and their predictions row by row."""
    cells = find_cells(picture, resources.nuclear_diameter, side)
    boxes = evenly(cells)
    if not boxes:
        return 0, [], None
    background = background_of(picture)
    return len(cells), boxes, resources.batcher.predict([cut(picture, box, background) for box in boxes])


def fraction(value: Any) -> float:
    """A coordinate in fractions of the picture; ValueError if it is outside."""
    if not 0 <= float(value) <= 1:
        raise ValueError(f"{value} is not in [0, 1]")
    return float(value)


def build(resources: Resources, words: Words, visits: Visits, tab: gr.Tab) -> tuple:
    """Lay out the tab and register its events."""
    example = example_field(resources, visits.folder / "examples")
    view = FieldView(resources, words, visits, "field", head, example)
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=4, min_width=300):
            picture = words.put(
                PictureInput,
                "field_picture",
                sources=["upload", "clipboard"],
                height=240,
                elem_id="field-picture",
            )
            with gr.Row():
                run = words.put(gr.Button, "field_run", "value", variant="primary", elem_id="field-run")
                try_button = words.put(
                    gr.Button, "field_try", "value", visible=example is not None, elem_id="field-try"
                )
            side = words.put(
                gr.Slider,
                "field_side",
                minimum=0,
                maximum=800,
                value=0,
                step=10,
                precision=0,
                elem_id="field-side",
            )
            words.html('<p class="help">{}</p>', "field_help", limit=LARGEST / 1e6)
            words.html('<p class="help warn">{}</p>', "field_fails")
        with gr.Column(scale=7, min_width=300):
            view.lay_out_count()
    with view.lay_out_desk():
        merge = words.put(gr.Button, "field_merge", "value", elem_id="field-merge")
        view.lay_out_exports()

    def respond(path: str | None, crop_side: int | None, request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        visit.keep(path)
        if path is None:
            return [cards.message(say(visit.language, "field_first")), *[gr.skip()] * (len(view.outputs) - 1)]
        desk = Desk(resources.classifier.label_names)
        try:
            field = open_field(path)
        except ImageError as error:
            desk.bad.append((Path(path).name, error))
        else:
            desk.field = {"found": 0}
            found, boxes, predictions = classify_field(resources, field, crop_side or None)
            if boxes:
                fill_desk(desk, visit, path, field, found, boxes, predictions)
        visit.results["field"] = desk
        return view.draw(visit)

    def try_example(crop_side: int | None, request: gr.Request) -> list[Any]:
        return [example, *respond(example, crop_side, request)]

    def add(event: gr.EventData, request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        desk = view.of(visit)
        if not desk.cells:
            return [gr.skip()] * len(view.outputs)
        x, y = values_of(event, x=fraction, y=fraction)
        return view.draw(visit, add_cell(resources, visit, desk, x, y))

    def merge_cells(request: gr.Request) -> None:
        visit = visits.of(request)
        if view.of(visit).cells:
            target = visit.results.setdefault("cells", Desk(resources.classifier.label_names))
            gr.Info(say(visit.language, "field_merged", n=merge_into(target, view.of(visit))))

    job = {
        **PRIVATE, "concurrency_id": "field", "concurrency_limit": MAX_FIELD_JOBS, "show_progress_on": view.result,
        "trigger_mode": "once",
    }  # fmt: skip
    view.wire(picture)
    run.click(respond, [picture, side], view.outputs, **job)
    try_button.click(try_example, side, [picture, *view.outputs], **job)
    view.desk.add_cell(add, None, view.outputs, **QUIET)
    merge.click(merge_cells, None, None, **QUIET)
    return view.outputs, view.redraw


def example_field(resources: Resources, folder: Path) -> str | None:
    """Write a field composed of held-out cells, up to three per class; None without a dataset.

    The cells fade into a uniform background, so those whose own background is closest to the median are used.
    """
    samples = [
        sample
        for sample in resources.quiz_samples[:EXAMPLES]
        if not cards.is_no_cell_type(resources.classifier, sample.label)
    ]
    if not samples:
        return None
    crops = [read_image(sample.image, CROP_SIDE).resize((CROP_SIDE, CROP_SIDE)) for sample in samples]
    backgrounds = np.array([background_of(crop) for crop in crops])
    median = np.median(backgrounds, axis=0)
    chosen, per_class = [], Counter()
    for n in np.argsort(np.abs(backgrounds - median).max(axis=1), kind="stable"):
        if per_class[samples[n].label] < 3 and len(chosen) < 12:
            per_class[samples[n].label] += 1
            chosen.append(n)
    radius = np.hypot(*np.mgrid[-1 : 1 : CROP_SIDE * 1j, -1 : 1 : CROP_SIDE * 1j])  # from the crop's centre
    mask = Image.fromarray(np.uint8(255 * np.clip((1 - radius) / 0.28, 0, 1)))
    pitch = CROP_SIDE + 50
    field = Image.new("RGB", (4 * pitch, pitch * -(-len(chosen) // 4)), tuple(map(int, median)))
    for i, n in enumerate(chosen):
        field.paste(crops[n], (pitch * (i % 4) + 25, pitch * (i // 4) + 25), mask)
    folder.mkdir(parents=True, exist_ok=True)
    field.save(folder / "field.jpg", quality=92)
    return str(folder / "field.jpg")


def fill_desk(
    desk: Desk, visit: Visit, path: str, picture: Image.Image, found: int, boxes: list[Box], predictions: Predictions
) -> None:  # fmt: skip
    """Add the cells of a field to its desk."""
    batch = secrets.token_hex(4)
    url = visit.file(f"{batch}-field.jpg")
    downscaled(picture, PREVIEW_SIDE).save(url, "JPEG", quality=88)
    desk.field = {
        "url": str(url), "width": picture.width, "height": picture.height, "found": found, "path": path, "side": boxes[0].side,
    }  # fmt: skip
    background, name = background_of(picture), Path(path).name
    for row, box in enumerate(boxes):
        thumbnail = save_thumbnail(cut(picture, box, background), visit.file(f"{batch}-{row}.jpg"))
        desk.add(name, f"{name}#{row + 1}", thumbnail, Source(path, box=box), predictions, row)
    desk.shift = predictions.shift


def add_cell(resources: Resources, visit: Visit, desk: Desk, x: float, y: float) -> int:
    """Crop and classify the cell at a point, given in fractions of the picture's width and height; returns its number."""
    path, side = desk.field["path"], desk.field["side"]
    left, top = round(x * desk.field["width"] - side / 2), round(y * desk.field["height"] - side / 2)
    box, name = Box(left, top, side), Path(path).name
    crop = cut(open_field(path), box)
    thumbnail = save_thumbnail(crop, visit.file(f"added-{secrets.token_hex(4)}.jpg"))
    predictions = resources.batcher.predict([crop])
    file = f"{name}#{len(desk.cells) + 1}"
    return desk.add(name, file, thumbnail, Source(path, box=box), predictions, 0).number


def merge_into(target: Desk, field: Desk) -> int:
    """Add the cells of a field with their corrections to another desk; returns how many were new to it."""
    before = {cell.source for cell in target.cells}
    numbers = {cell.source: cell.number for cell in target.cells}
    for cell in field.cells:
        if cell.source not in before:
            numbers[cell.source] = len(target.cells)
            target.cells.append(replace(cell, number=len(target.cells)))
        if cell.number in field.corrections:
            target.corrections[numbers[cell.source]] = field.corrections[cell.number]
    target.shift = field.shift or target.shift
    return len(target.cells) - len(before)


def head(language: str, desk: Desk, rows: list[Row], sample: str) -> str:
    """Number of cells found, and how many of them are not counted."""
    if not desk.cells:
        if desk.bad:
            return cards.message(say_error(language, desk.bad[0][1]), "bad")
        return cards.message(say(language, "field_none"))
    found, side = number(language, desk.field["found"]), number(language, desk.field["side"])
    notes = []
    if desk.field["found"] > len(desk.cells):
        notes.append(say(language, "field_evenly", boxes=number(language, len(desk.cells))))
    if unknown := desk.kinds()["unknown"]:
        notes.append(say(language, "count_unknown", n=unknown))
    warning = cards.shift_warning(language, desk.shift)
    line = f"<p>{escape(' · '.join(notes))}</p>" if notes else ""
    title = escape(say(language, "field_found", found=found, side=side))
    return f'{warning}<section class="result" aria-live="polite"><h2>{title}</h2>{line}</section>'


class FieldView(DeskView):
    """The desk of a field; its exports include the picture with boxes."""

    def files(self, visit: Visit) -> list[str]:
        desk = self.of(visit)
        if not desk.cells:
            return []
        annotated = visit.file("field-annotated.jpg")
        draw_boxes(self.resources, desk).save(annotated, "JPEG", quality=90)
        return [str(annotated), *super().files(visit)]


def draw_boxes(resources: Resources, desk: Desk) -> Image.Image:
    """The field with a numbered, labelled box around each cell; cells that are not counted are grey with a question mark."""
    field = open_field(desk.field["path"])
    picture = downscaled(field, ANNOTATED_SIDE)
    scale = picture.width / field.width
    picture = picture.copy() if picture is field else picture
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(14, round(0.12 * scale * desk.field["side"])))
    names = list(resources.classifier.label_names)
    for cell in desk.cells:
        box, label = cell.source.box, desk.label_of(cell)
        side = scale * box.side
        inset = round(0.12 * scale * box.side)  # smaller than the crop, so that neighbouring boxes stay apart
        left, top = round(scale * box.left) + inset, round(scale * box.top) + inset
        right, bottom = left + side - 2 * inset, top + side - 2 * inset
        colour = charts.colour(names.index(label)) if label in names else "#303030"
        draw.rectangle((left, top, right, bottom), outline=colour, width=max(2, round(0.012 * side)))
        text = f"{cell.number + 1} {label or '?'}"
        corner = (max(0, left), max(0, top))
        draw.rectangle(draw.textbbox(corner, text, font=font), fill=colour)
        draw.text(corner, text, fill="white", font=font)
    return picture
