"""Tab "Many cells": review desk, differential count and exports for pictures and zip files."""

from __future__ import annotations

import os
import secrets
import zipfile
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from hub_model.inference.images import CELL_SIDE, MAX_BYTES, read_image
from space import cards
from space.archives import MAX_PICTURES
from space.bulk import classify_uploads
from space.desk import EXTRA_CLASSES, Desk, Row, Source, save_thumbnail
from space.desk_view import IN_ORDER, PRIVATE, QUIET, DeskView, push_export, summary
from space.inputs import FileInput
from space.resources import Resources
from space.texts import Words, number, say, say_error
from space.visits import Visit, Visits

MAX_BULK_JOBS = 2  # at a time, page and API together
EXAMPLES = 42


def build(resources: Resources, words: Words, visits: Visits, tab: gr.Tab) -> tuple:
    """Lay out the tab and register its events."""
    classifier = resources.classifier
    signs_in = bool(os.environ.get("OAUTH_CLIENT_ID"))  # set by the Hub for a Space with `hf_oauth`
    example = example_zip(resources, visits.folder / "examples")
    preview = example and str(Path(example).with_suffix(".jpg"))
    view = DeskView(resources, words, visits, "cells", head, preview)
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=4, min_width=300):
            files = words.put(
                FileInput, "cells_files", file_count="multiple", height=190, elem_id="cells-files"
            )
            words.html(
                '<p class="help">{}</p>', "cells_help", limit=MAX_PICTURES, megabytes=MAX_BYTES / 2**20
            )
            with gr.Row():
                run = words.put(gr.Button, "cells_run", "value", variant="primary", elem_id="cells-run")
                stop = words.put(gr.Button, "cells_cancel", "value", elem_id="cells-cancel")
            with gr.Row():
                try_button = words.put(
                    gr.Button, "cells_try", "value", visible=example is not None, elem_id="cells-try"
                )
                clear = words.put(gr.Button, "cells_clear", "value", elem_id="cells-clear")
            bad = gr.HTML(elem_id="cells-bad")
            with words.put(gr.Accordion, "hand_title", open=False):
                words.html('<p class="help">{}</p>', "hand_help")
                unnamed = {x for x in classifier.label_names if cards.is_no_cell_type(classifier, x)}
                ignore = words.put(
                    gr.Checkbox, "without_nif", value=False, visible=bool(unnamed), elem_id="cells-without"
                )
                with gr.Row(elem_id="cells-hand"):
                    by_hand = [
                        words.computed(
                            gr.Number(0, label=name, precision=0, minimum=0, maximum=10_000, min_width=120),
                            lambda language, name=name: {"label": cards.name_of(classifier, language, name)},
                        )
                        for name in EXTRA_CLASSES
                    ]
        with gr.Column(scale=7, min_width=300):
            view.lay_out_count()
    with view.lay_out_desk():
        view.lay_out_exports()
        if signs_in:
            push = words.put(gr.Button, "push_run", "value", elem_id="cells-push")
            gr.LoginButton(elem_id="cells-sign-in")
    if signs_in:
        pushed = gr.HTML(elem_id="cells-pushed")

        def push_cells(
            request: gr.Request, profile: gr.OAuthProfile | None, token: gr.OAuthToken | None
        ) -> str:
            visit = visits.of(request)
            if profile is None or token is None:
                return cards.message(say(visit.language, "push_sign_in"))
            return push_export(resources, visit, view.of(visit), profile.username, token.token)

        push.click(push_cells, None, pushed, **PRIVATE)

    def draw(visit: Visit) -> list[Any]:
        return [*view.draw(visit), rejected_list(visit.language, view.of(visit))]

    def respond(
        paths: list[str] | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        visit = visits.of(request)
        visit.keep(paths)
        desk, language = view.of(visit), visit.language
        new = [path for path in paths or [] if path not in desk.uploads]
        if not new and not desk.cells:
            return [cards.message(say(language, "cells_first")), *[gr.skip()] * (len(outputs) - 1)]
        visit.cancelled = False

        def report(done: int, total: int) -> None:
            progress((done, total), desc=say(language, "cells_progress"), unit="")

        add_uploads(resources, visit, desk, new, report)
        return draw(visit)

    def try_example(request: gr.Request, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        return respond([example], request, progress)

    def cancel(request: gr.Request) -> None:
        visits.of(request).cancelled = True

    def start_over(request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        visit.results.pop("cells", None)
        return [None, *draw(visit), "", gr.update(visible=False), *[0] * len(by_hand)]

    def recount(values: dict[Any, Any], request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        desk = view.of(visit)
        desk.ignored = unnamed if values[ignore] else set()
        desk.by_hand = {
            name: int(values[field] or 0) for name, field in zip(EXTRA_CLASSES, by_hand, strict=True)
        }
        return view.draw_count(visit)

    def opened(request: gr.Request) -> list[Any]:
        return draw(visits.of(request))

    def redraw(visit: Visit) -> list[Any]:
        return draw(visit) if "cells" in visit.results else [gr.skip()] * len(outputs)

    outputs = [*view.outputs, bad]
    job = {
        **PRIVATE, "concurrency_id": "bulk", "concurrency_limit": MAX_BULK_JOBS, "show_progress_on": view.result,
        "trigger_mode": "once",
    }  # fmt: skip
    view.wire(files)
    run.click(respond, files, outputs, **job)
    try_button.click(try_example, None, outputs, **job)
    stop.click(cancel, None, None, queue=False, **QUIET)
    clear.click(start_over, None, [files, *outputs, view.similar, view.exported, *by_hand], **QUIET)
    gr.on(
        [ignore.input, *(field.input for field in by_hand)],
        recount,
        {ignore, *by_hand},
        view.count_outputs,
        trigger_mode="always_last",
        **QUIET,
        **IN_ORDER,
    )
    tab.select(opened, None, outputs, **QUIET)
    return outputs, redraw


def example_zip(resources: Resources, folder: Path) -> str | None:
    """Write a class-balanced zip file of held-out cells, with a picture of them next to it; None without a dataset."""
    if not resources.held_out:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    samples = resources.held_out[:EXAMPLES]
    side, columns = 96, 14
    sheet = Image.new("RGB", (columns * side, side * -(-len(samples) // columns)), "white")
    with zipfile.ZipFile(folder / "cells.zip", "w", zipfile.ZIP_STORED) as archive:
        for i, sample in enumerate(samples):
            archive.writestr(f"{i + 1:02d}.jpg", sample.image)
            thumbnail = read_image(sample.image, CELL_SIDE).resize((side, side))
            sheet.paste(thumbnail, (side * (i % columns), side * (i // columns)))
    sheet.save(folder / "cells.jpg", quality=88)
    return str(folder / "cells.zip")


def add_uploads(
    resources: Resources, visit: Visit, desk: Desk, paths: list[str], progress: Callable[[int, int], None]
) -> None:
    """Classify uploads and add their cells to a desk. If the job is stopped or fails, the rest can be added by another call."""
    batch, thumbnails = secrets.token_hex(4), {}

    def save(row: int, picture: Image.Image) -> None:
        thumbnails[row] = save_thumbnail(picture, visit.file(f"{batch}-{row}.jpg"))

    desk.uploads.update(paths)
    unfinished = True
    try:
        answer = classify_uploads(resources, paths, progress, visit.stops, save, desk.done)
        unfinished = answer.stopped
    finally:
        if unfinished:
            desk.uploads.difference_update(paths)
    with visit.lock:
        for row, entry in enumerate(answer.entries):
            sample = entry.sample or say(visit.language, "loose_files")
            source = Source(str(entry.path), entry.entry)
            desk.add(sample, entry.name, thumbnails[row], source, answer.predictions, row)
        desk.bad += answer.bad
        desk.left_out += answer.left_out
        desk.shift = (answer.predictions and answer.predictions.shift) or desk.shift
        desk.stopped = answer.stopped
        desk.done = {place for place in desk.done | answer.done if place[0] not in desk.uploads}


def rejected_list(language: str, desk: Desk) -> str:
    """The files that could not be used, each with its reason; empty if there are none."""
    items = "".join(
        f"<li><b>{escape(name)}</b>: {escape(say_error(language, error))}</li>" for name, error in desk.bad
    )
    title = escape(say(language, "bad_title"))
    return f'<section class="bad-files"><h3>{title}</h3><ul>{items}</ul></section>' if items else ""


def head(language: str, desk: Desk, rows: list[Row], sample: str) -> str:
    """Warnings, a summary of the count, and what was left out."""
    if not desk.cells:
        return cards.message(say(language, "cells_none"), "bad")
    notes = ""
    if desk.left_out:
        folders = ", ".join(f"{folder or '/'} {n}" for folder, n in sorted(desk.left_out.items()))
        total, limit = (number(language, n) for n in (sum(desk.left_out.values()), MAX_PICTURES))
        text = say(language, "count_left_out", total=total, limit=limit, folders=folders)
        notes = cards.message(text, "warn")
    if desk.stopped:
        notes += cards.message(say(language, "cells_stopped"), "warn")
    title = say(language, "count_title") + (f" · {sample}" if sample else "")
    return (
        f"{cards.shift_warning(language, desk.shift)}"
        f'<section class="result" aria-live="polite"><h2>{escape(title)}</h2>'
        f"<p>{escape(summary(language, desk, rows))}</p>{notes}</section>"
    )
