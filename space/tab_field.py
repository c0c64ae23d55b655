"""Tab "A field": a whole microscope picture in; its cells in boxes to review, their count and exports out."""

from __future__ import annotations

import io
import secrets
from collections import Counter
from dataclasses import replace
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hub_model.inference.classifier import Predictions
from hub_model.inference.errors import ImageError
from hub_model.inference.images import read_picture
from space import cards, charts
from space.archives import LARGEST
from space.desk import Desk, Row, Source, open_field, reduced, save_small
from space.desk_view import PRIVATE, QUIET, DeskView
from space.fields import CROP_SIDE, Box, background_of, cut, evenly, find_cells, typical_diameter
from space.inputs import PictureInput
from space.resources import Resources
from space.tab_cells import keep_uploads
from space.texts import Words, number, say, say_error
from space.visits import Visit, Visits

SHOWN_SIDE = 3000  # pixels of the picture on the page, which can be enlarged
ANNOTATED_SIDE = 6000  # pixels of the picture with boxes to download
EXAMPLES = 100  # held-out cells of which an example is made
FIELDS = 1  # at a time, of the page and of the API together


def answer_field(
    resources: Resources, picture: Image.Image, diameter: float, side: int | None
) -> tuple[int, list[Box], Predictions | None]:
    """Find and classify the nucleated cells of a field: how many were found, the boxes answered, and row i for box i."""
    found = find_cells(picture, diameter, side)
    boxes = evenly(found)
    if not boxes:
        return 0, [], None
    background = background_of(picture)
    return len(found), boxes, resources.batcher.predict([cut(picture, box, background) for box in boxes])


def nucleus_share(resources: Resources) -> float:
    """The scale that crops are cut to: measured once on held-out samples of the dataset."""
    crops = [Image.open(io.BytesIO(sample.image)).convert("RGB") for sample in resources.held_out[:40]]
    return typical_diameter(crops)


def build(resources: Resources, words: Words, visits: Visits, tab: gr.Tab) -> tuple:
    """Lay the tab out and wire it."""
    measured = cache(lambda: nucleus_share(resources))
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
                attempt = words.put(
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
    view.lay_out_desk()
    with view.lay_out_actions():
        merge = words.put(gr.Button, "field_merge", "value", elem_id="field-merge")
        view.lay_out_exports()

    def find(path: str | None, crop_side: int | None, visit: Visit) -> list[Any]:
        if path is None:
            return [cards.message(say(visit.language, "field_first")), *[gr.skip()] * (len(view.outputs) - 1)]
        desk = Desk(resources.classifier.label_names)
        try:
            field = open_field(path)
        except ImageError as error:
            desk.bad.append((Path(path).name, error))
        else:
            desk.field = {"found": 0}
            found, boxes, predictions = answer_field(resources, field, measured(), crop_side or None)
            if boxes:
                fill_desk(desk, visit, path, field, found, boxes, predictions)
        visit.results["field"] = desk
        return view.draw(visit)

    def respond(path: str | None, crop_side: int | None, request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        visit.keep(path)
        return find(path, crop_side, visit)

    def attempt_example(crop_side: int | None, request: gr.Request) -> list[Any]:
        return [example, *find(example, crop_side, visits.of(request))]

    def add(event: gr.EventData, request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        desk = view.of(visit)
        if not desk.cells:
            return [gr.skip()] * len(view.outputs)
        return view.draw(visit, add_cell(resources, visit, desk, float(event.x), float(event.y)))

    def merge_cells(request: gr.Request) -> None:
        visit = visits.of(request)
        if view.of(visit).cells:
            into = visit.results.setdefault("cells", Desk(resources.classifier.label_names))
            gr.Info(say(visit.language, "field_merged", n=merge_into(into, view.of(visit))))

    job = {
        **PRIVATE, "concurrency_id": "field", "concurrency_limit": FIELDS, "show_progress_on": view.result,
        "trigger_mode": "once",
    }  # fmt: skip
    view.wire()
    picture.upload(keep_uploads(visits), picture, None, **QUIET)
    run.click(respond, [picture, side], view.outputs, **job)
    attempt.click(attempt_example, side, [picture, *view.outputs], **job)
    view.desk.missed(add, None, view.outputs, **QUIET)
    merge.click(merge_cells, None, None, **QUIET)
    return view.outputs, view.redraw


def example_field(resources: Resources, folder: Path) -> str | None:
    """Held-out cells side by side, for one click; None without a dataset.

    They fade into an even ground, which only looks like one where theirs are alike: those nearest to the median, three a class.
    """
    samples = [
        sample
        for sample in resources.askable[:EXAMPLES]
        if not cards.is_no_cell_type(resources.classifier, sample.label)
    ]
    if not samples:
        return None
    crops = [read_picture(sample.image, CROP_SIDE).resize((CROP_SIDE, CROP_SIDE)) for sample in samples]
    grounds = np.array([background_of(crop) for crop in crops])
    median = np.median(grounds, axis=0)
    chosen, taken = [], Counter()
    for n in np.argsort(np.abs(grounds - median).max(axis=1), kind="stable"):
        if taken[samples[n].label] < 3 and len(chosen) < 12:
            taken[samples[n].label] += 1
            chosen.append(n)
    away = np.hypot(*np.mgrid[-1 : 1 : CROP_SIDE * 1j, -1 : 1 : CROP_SIDE * 1j])  # from the middle
    mask = Image.fromarray(np.uint8(255 * np.clip((1 - away) / 0.28, 0, 1)))
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
    """Put the cells of a field on its desk."""
    batch = secrets.token_hex(4)
    url = visit.file(f"{batch}-field.jpg")
    reduced(picture, SHOWN_SIDE).save(url, "JPEG", quality=88)
    desk.field = {
        "url": str(url), "width": picture.width, "height": picture.height, "found": found, "path": path, "side": boxes[0].side,
    }  # fmt: skip
    background, name = background_of(picture), Path(path).name
    for row, box in enumerate(boxes):
        small = save_small(cut(picture, box, background), visit.file(f"{batch}-{row}.jpg"))
        desk.add(name, f"{name}#{row + 1}", small, Source(path, box=box), predictions, row)
    desk.shift = predictions.shift


def add_cell(resources: Resources, visit: Visit, desk: Desk, x: float, y: float) -> int:
    """Cut out, classify and box the cell at a point (shares of the picture's width and height); its number."""
    field, side = desk.field, desk.field["side"]
    left, top = round(x * field["width"] - side / 2), round(y * field["height"] - side / 2)
    box, name = Box(left, top, side), Path(field["path"]).name
    crop = cut(open_field(field["path"]), box)
    small = save_small(crop, visit.file(f"added-{secrets.token_hex(4)}.jpg"))
    predictions = resources.batcher.predict([crop])
    n = len(desk.cells)
    return desk.add(name, f"{name}#{n + 1}", small, Source(field["path"], box=box), predictions, 0).number


def merge_into(into: Desk, field: Desk) -> int:
    """Add the cells of a field, as corrected, to the differential; the number of those that were not there before."""
    there = {cell.source for cell in into.cells}
    numbers = {cell.source: cell.number for cell in into.cells}
    for cell in field.cells:
        if cell.source not in there:
            numbers[cell.source] = len(into.cells)
            into.cells.append(replace(cell, number=len(into.cells)))
        if cell.number in field.corrections:
            into.corrections[numbers[cell.source]] = field.corrections[cell.number]
    into.shift = field.shift or into.shift
    return len(into.cells) - len(there)


def head(language: str, desk: Desk, rows: list[Row], sample: str) -> str:
    """How many cells were found, and how many of them are not in the count."""
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
    """The desk of a field, whose exports begin with the picture and its boxes."""

    def files(self, visit: Visit) -> list[str]:
        if not self.of(visit).cells:
            return []
        annotated = visit.file("field-annotated.jpg")
        draw_boxes(self.resources, self.of(visit)).save(annotated, "JPEG", quality=90)
        return [str(annotated), *super().files(visit)]


def draw_boxes(resources: Resources, desk: Desk) -> Image.Image:
    """The field with a numbered, labelled box around each cell; what is not counted is grey, with a question mark."""
    field = open_field(desk.field["path"])
    picture = reduced(field, ANNOTATED_SIDE)
    scale = picture.width / field.width
    picture = picture.copy() if picture is field else picture
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(14, round(0.12 * scale * desk.field["side"])))
    names = list(resources.classifier.label_names)
    for cell in desk.cells:
        box, label = cell.source.box, desk.label_of(cell)
        side, inset = (
            scale * box.side,
            round(0.12 * scale * box.side),
        )  # smaller than cut: neighbours stay apart
        left, top = round(scale * box.left) + inset, round(scale * box.top) + inset
        right, bottom = left + side - 2 * inset, top + side - 2 * inset
        colour = charts.colour(names.index(label)) if label in names else "#303030"
        pen.rectangle((left, top, right, bottom), outline=colour, width=max(2, round(0.012 * side)))
        text = f"{cell.number + 1} {label or '?'}"
        place = (max(0, left), max(0, top))
        pen.rectangle(pen.textbbox(place, text, font=font), fill=colour)
        pen.text(place, text, fill="white", font=font)
    return picture
