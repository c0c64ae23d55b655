"""Tab "A field": a whole microscope picture in; boxes, classes and a count out."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from html import escape

import gradio as gr
from PIL import Image, ImageDraw, ImageFont

from hub_model.inference.classifier import Predictions
from hub_model.inference.counts import Count
from hub_model.inference.errors import ImageError
from hub_model.inference.images import read_picture
from space import cards, charts
from space.bulk import count_known, prior_note
from space.charts import COLOURS
from space.fields import Box, cut, evenly, find_cells, typical_diameter
from space.inputs import PictureInput
from space.resources import Resources
from space.texts import language_of, say, say_error

SHOWN_SIDE = 1400  # pixels of the picture that goes back to the page
FIELD_SIDE = 6000  # larger fields are reduced to this
FIELDS = 1  # at a time, of the page and of the API together


@dataclass(frozen=True)
class FieldAnswer:
    """Row i of `predictions` answers for `boxes[i]`, in pixels of `picture`; both are empty when none was
    found. `found` cells are more than the boxes in a field of very many."""

    picture: Image.Image
    found: int
    boxes: list[Box]
    predictions: Predictions | None
    counts: list[Count]


def answer_field(
    resources: Resources, picture: Image.Image, diameter: float, side: int | None
) -> FieldAnswer:
    """Find, cut out, classify and count the nucleated cells of a field."""
    found = find_cells(picture, diameter, side)
    boxes = evenly(found)
    if not boxes:
        return FieldAnswer(picture, 0, [], None, [])
    predictions = resources.batcher.predict([cut(picture, box) for box in boxes])
    return FieldAnswer(picture, len(found), boxes, predictions, count_known(resources, predictions))


def nucleus_share(resources: Resources) -> float:
    """The scale that crops are cut to: measured once on held-out samples of the dataset."""
    crops = [Image.open(io.BytesIO(sample.image)).convert("RGB") for sample in resources.held_out[:40]]
    return typical_diameter(crops)


def build(resources: Resources, i18n: gr.I18n) -> None:
    """Lay the tab out and wire it."""
    measured = cache(lambda: nucleus_share(resources))
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=4, min_width=300):
            picture = PictureInput(
                label=i18n("field_picture"),
                sources=["upload", "clipboard"],
                height=280,
                elem_id="field-picture",
            )
            side = gr.Slider(0, 800, 0, step=10, precision=0, label=i18n("field_side"), elem_id="field-side")
            gr.HTML(f'<p class="help">{i18n("field_help")}</p>')
            run = gr.Button(i18n("field_run"), variant="primary", elem_id="field-run")
            gr.HTML(f'<p class="help warn">{i18n("field_fails")}</p>')
        with gr.Column(scale=7, min_width=300):
            boxes = gr.HTML(elem_id="field-boxes")
            chart = gr.Plot(show_label=False, visible=False, elem_id="field-chart", elem_classes="plot")
            numbers = gr.HTML(elem_id="field-numbers")

    def respond(path: str | None, crop_side: int | None, request: gr.Request) -> tuple:
        language = language_of(request)
        nothing = gr.update(visible=False)
        if path is None:
            return cards.message(say(language, "field_first")), nothing, ""
        try:
            field = read_picture(path, FIELD_SIDE)
        except ImageError as error:
            return cards.message(say_error(language, error), "bad"), nothing, ""
        answer = answer_field(resources, field, measured(), crop_side or None)
        if not answer.boxes:
            return cards.message(say(language, "field_none"), "bad"), nothing, ""
        image = cards.data_uri(draw_boxes(resources, answer))
        return (
            f'<section class="result">{field_head(language, answer)}{legend(resources, language, answer)}'
            f'<img class="field" src="{image}" alt="{escape(say(language, "field_alt"))}"></section>',
            gr.update(value=charts.count_chart(answer.counts, language), visible=bool(answer.counts)),
            cards.count_table(resources.classifier, language, answer.counts)
            + f'<p class="help">{escape(prior_note(language, resources))}</p>',
        )

    run.click(
        respond,
        [picture, side],
        [boxes, chart, numbers],
        api_visibility="private",
        concurrency_id="field",
        concurrency_limit=FIELDS,
        show_progress_on=boxes,
    )


def field_head(language: str, answer: FieldAnswer) -> str:
    """How many cells were found, and how many of them are not in the count."""
    found = say(language, "field_found", found=answer.found, side=answer.boxes[0].side)
    notes = []
    if answer.found > len(answer.boxes):
        notes.append(say(language, "field_evenly", boxes=len(answer.boxes)))
    if unknown := sum(verdict.kind == "unknown" for verdict in answer.predictions.verdicts):
        notes.append(say(language, "count_unknown", unknown=unknown))
    return f"<h2>{escape(found)}</h2>" + (f"<p>{escape(' · '.join(notes))}</p>" if notes else "")


def colour_of(resources: Resources, label: str) -> str:
    return COLOURS[resources.classifier.label_names.index(label) % len(COLOURS)]


def draw_boxes(resources: Resources, answer: FieldAnswer) -> Image.Image:
    """The field, reduced, with a numbered, labelled box around each cell; strangers are dashed grey question
    marks."""
    scale = min(1.0, SHOWN_SIDE / max(answer.picture.size))
    shown = answer.picture.resize((round(answer.picture.width * scale), round(answer.picture.height * scale)))
    pen = ImageDraw.Draw(shown)
    font = ImageFont.load_default(size=max(15, round(0.12 * answer.boxes[0].side * scale)))
    for number, (box, label, verdict) in enumerate(
        zip(answer.boxes, answer.predictions.labels, answer.predictions.verdicts, strict=True), start=1
    ):
        inset = 0.12 * box.side  # drawn smaller than cut, so that neighbours stay apart
        left, top = (box.left + inset) * scale, (box.top + inset) * scale
        right, bottom = (box.left + box.side - inset) * scale, (box.top + box.side - inset) * scale
        unknown = verdict.kind == "unknown"
        colour = "#303030" if unknown else colour_of(resources, label)
        pen.rectangle((left, top, right, bottom), outline=colour, width=max(2, round(3 * scale)))
        text = f"{number} ?" if unknown else f"{number} {label}"
        place = (max(0, left), max(0, top))
        pen.rectangle(pen.textbbox(place, text, font=font), fill=colour)
        pen.text(place, text, fill="white", font=font)
    return shown


def legend(resources: Resources, language: str, answer: FieldAnswer) -> str:
    """The classes that were found, in the colour of their boxes."""
    items = "".join(
        f'<li><i style="background:{colour_of(resources, count.label)}"></i>{escape(count.label)} '
        f"{escape(cards.name_of(resources.classifier, language, count.label))} <b>{count.cells}</b></li>"
        for count in answer.counts
        if count.cells
    )
    return f'<ul class="legend">{items}</ul>'
