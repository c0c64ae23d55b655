"""Tab "Many cells": pictures and zips in; a review desk, the differential count and exports out."""

from __future__ import annotations

import secrets
import zipfile
from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from space import cards, charts, export
from space.bulk import answer_uploads, prior_note
from space.desk import EXTRA, Cell, Desk, Source, rejected_list, save_small
from space.inputs import FileInput
from space.resources import Resources
from space.texts import LANGUAGES, Words, number, say, say_error, say_shift
from space.visits import Visit, Visits

BULK_JOBS = 2  # at a time, of the page and of the API together
EXAMPLES = 42
SCRIPT = (Path(__file__).parent / "review.js").read_text("utf-8")
DESK_WORDS = (
    "label", "kind", "sample", "all", "unknown", "between", "uncalibrated", "unidentifiable", "sure", "corrected", "undecided",
    "excluded", "undo", "other", "keys", "number", "cells", "sort_doubt", "sort_label", "sort_p", "sort_file", "zoom_in",
    "zoom_out", "add", "field_alt",
)  # fmt: skip


def review_desk(elem_id: str) -> gr.HTML:
    """The component that `review.js` fills; it sends "correct", "look" and "missed"."""
    return gr.HTML(None, html_template='<div class="desk"></div>', js_on_load=SCRIPT, elem_id=elem_id)


def build(resources: Resources, words: Words, visits: Visits, tab: gr.Tab) -> tuple:
    """Lay the tab out and wire it."""
    example = example_zip(resources, visits.folder / "examples")
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=4, min_width=300):
            files = words.put(
                FileInput, "cells_files", file_count="multiple", height=190, elem_id="cells-files"
            )
            words.html('<p class="help">{}</p>', "cells_help")
            with gr.Row():
                run = words.put(gr.Button, "cells_run", "value", variant="primary", elem_id="cells-run")
                stop = words.put(gr.Button, "cells_cancel", "value", elem_id="cells-cancel")
            with gr.Row():
                attempt = words.put(
                    gr.Button, "cells_try", "value", visible=example is not None, elem_id="cells-try"
                )
                clear = words.put(gr.Button, "cells_clear", "value", elem_id="cells-clear")
        with gr.Column(scale=7, min_width=300):
            result = gr.HTML(f'<p class="hint">{words.i18n("cells_waiting")}</p>', elem_id="cells-result")
            chart = gr.Plot(show_label=False, visible=False, elem_id="cells-chart", elem_classes="plot")
            numbers = gr.HTML(elem_id="cells-numbers")
    desk = review_desk("cells-desk")
    similar = gr.HTML(elem_id="cells-similar")
    bad = gr.HTML(elem_id="cells-bad")
    with words.put(gr.Accordion, "hand_title", open=False):
        words.html('<p class="help">{}</p>', "hand_help")
        doubtful = [
            label
            for label in resources.classifier.label_names
            if cards.is_no_cell_type(resources.classifier, label)
        ]
        without = words.put(
            gr.Checkbox, "without_nif", value=False, visible=bool(doubtful), elem_id="cells-without"
        )
        with gr.Row(elem_id="cells-hand"):
            by_hand = [
                words.computed(
                    gr.Number(0, label=name, precision=0, minimum=0, maximum=10_000, min_width=120),
                    partial(extra_label, name),
                )
                for name in EXTRA
            ]
    with gr.Row():
        prepare = words.put(gr.Button, "export_run", "value", elem_id="cells-export")
    exported = exported_files(words, "cells-exported")

    def desk_of(visit: Visit) -> Desk:
        return visit.results.setdefault("cells", Desk(resources.classifier.label_names))

    def counted(visit: Visit, sample: str = "") -> list[Any]:
        return count_views(resources, visit, desk_of(visit), sample)

    def views(visit: Visit) -> list[Any]:
        found, language = desk_of(visit), visit.language
        rejected = [(name, say_error(language, error)) for name, error in found.bad]
        return [
            *counted(visit),
            desk_values(resources, found, language),
            rejected_list(say(language, "bad_title"), rejected),
        ]

    def add(paths: list[str] | None, visit: Visit, progress: gr.Progress) -> list[Any]:
        found, language = desk_of(visit), visit.language
        new = [path for path in paths or [] if str(path) not in found.taken]
        if not new and not found.cells:
            return [cards.message(say(language, "cells_first")), gr.update(visible=False), "", None, ""]
        visit.cancelled = False
        found.taken |= {str(path) for path in new}
        batch, pictures = secrets.token_hex(4), {}

        def keep(i: int, picture: Any) -> None:
            pictures[i] = save_small(picture, visit.file(f"{batch}-{i}.jpg"))

        def tell(done: int, total: int) -> None:
            progress((done, total), desc=say(language, "cells_progress"), unit="")

        answer = answer_uploads(resources, new, tell, visit.stops, keep)
        with visit.lock:
            for row, entry in enumerate(answer.entries):
                sample = entry.sample or say(language, "loose_files")
                source = Source(str(entry.path), entry.entry)
                found.add(sample, entry.name, pictures[row], source, answer.predictions, row)
            found.bad += answer.bad
            found.left_out += answer.left_out
            found.shift = (answer.predictions and answer.predictions.shift) or found.shift
        return views(visit)

    def respond(
        paths: list[str] | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        visit = visits.of(request)
        visit.keep(paths)
        return add(paths, visit, progress)

    def attempt_example(request: gr.Request, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        return add([example], visits.of(request), progress)

    def cancel(request: gr.Request) -> None:
        visits.of(request).cancelled = True

    def start_over(request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        visit.results.pop("cells", None)
        return [None, *views(visit), "", gr.update(visible=False), *[0] * len(by_hand)]

    def correct(event: gr.EventData, request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        allowed = [*resources.classifier.label_names, *EXTRA]
        desk_of(visit).correct(dict(event.corrections), allowed, float(event.turn))
        return counted(visit, str(event.sample))

    def recount(values: dict[Any, Any], request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        found = desk_of(visit)
        found.without = set(doubtful) if values[without] else set()
        found.by_hand = {name: int(values[one] or 0) for name, one in zip(EXTRA, by_hand, strict=True)}
        return counted(visit)

    def opened(request: gr.Request) -> list[Any]:
        return views(visits.of(request))

    def look(event: gr.EventData, request: gr.Request) -> str:
        return similar_to(resources, visits.of(request), desk_of(visits.of(request)), int(event.number))

    def make_files(request: gr.Request) -> Any:
        visit = visits.of(request)
        paths = export_files(resources, visit, desk_of(visit), "cells")
        return gr.update(value=paths, visible=bool(paths))

    outputs = [result, chart, numbers, desk, bad]
    private = {"api_visibility": "private"}
    quiet = {**private, "show_progress": "hidden"}
    job = {
        **private, "concurrency_id": "bulk", "concurrency_limit": BULK_JOBS, "show_progress_on": result,
        "trigger_mode": "once",
    }  # fmt: skip
    files.upload(keep_uploads(visits), files, None, **quiet)
    run.click(respond, files, outputs, **job)
    attempt.click(attempt_example, None, outputs, **job)
    stop.click(cancel, None, None, queue=False, **quiet)
    clear.click(start_over, None, [files, *outputs, similar, exported, *by_hand], **quiet)
    desk.correct(correct, None, [result, chart, numbers], trigger_mode="multiple", **quiet)
    desk.look(look, None, similar, trigger_mode="multiple", **quiet)
    gr.on(
        [without.input, *(one.input for one in by_hand)],
        recount,
        {without, *by_hand},
        [result, chart, numbers],
        trigger_mode="always_last",
        **quiet,
    )
    prepare.click(make_files, None, exported, **private)
    tab.select(opened, None, outputs, **quiet)

    def redraw(visit: Visit) -> list[Any]:
        return views(visit) if "cells" in visit.results else [gr.skip()] * len(outputs)

    return outputs, redraw


def keep_uploads(visits: Visits) -> Callable[..., None]:
    """What an upload calls: it stays as long as the visit."""

    def keep(paths: Any, request: gr.Request) -> None:
        visits.of(request).keep(paths)

    return keep


def extra_label(name: str, language: str) -> dict[str, str]:
    return {"label": EXTRA[name] if language == "id" else name}


def example_zip(resources: Resources, folder: Path) -> str | None:
    """Held-out cells in a zip, evenly over the classes, for one click."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "examples.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for i, sample in enumerate(resources.held_out[:EXAMPLES]):
            archive.writestr(f"{i + 1:02d}.jpg", sample.image)
    return str(path) if resources.held_out else None


def desk_values(
    resources: Resources, desk: Desk, language: str, select: int | None = None
) -> dict[str, Any] | None:
    """The desk as `review.js` takes it, in a language."""
    classifier = resources.classifier
    labels = [
        {
            "code": label,
            "name": cards.name_of(classifier, language, label),
            "colour": charts.colour(i),
        }
        for i, label in enumerate(classifier.label_names)
    ]

    def verdict(cell: Cell) -> str:
        return cards.verdict_text(classifier, language, cell.verdict)

    texts = LANGUAGES[language]  # the page fills their placeholders
    words = {key: texts[f"desk_{key}"] for key in DESK_WORDS}
    return desk.values(words, labels, list(EXTRA), verdict, select)


def count_views(resources: Resources, visit: Visit, desk: Desk, sample: str = "") -> list[Any]:
    """Summary, chart and table of the count as it stands."""
    language = visit.language
    if not desk.cells:
        text = say(language, "cells_none" if desk.bad else "cells_waiting")
        return [cards.message(text, "bad" if desk.bad else "hint"), gr.update(visible=False), ""]
    rows = desk.count(resources.prior, sample)
    left = ""
    if desk.left_out:
        folders = ", ".join(f"{folder or '/'} {n}" for folder, n in sorted(desk.left_out.items()))
        total = number(language, sum(desk.left_out.values()))
        left = cards.message(say(language, "count_left_out", total=total, folders=folders), "warn")
    stopped = cards.message(say(language, "cells_stopped"), "warn") if visit.cancelled else ""
    where = f" · {sample}" if sample else ""
    head = (
        f'<section class="result" aria-live="polite"><h2>{escape(say(language, "count_title") + where)}</h2>'
        f"<p>{escape(summary(language, desk, rows))}</p>{left}{stopped}</section>"
    )
    return [
        cards.shift_warning(language, desk.shift) + head,
        gr.update(value=charts.count_chart(rows, language), visible=bool(rows)),
        cards.count_table(resources.classifier, language, rows)
        + f'<p class="help">{escape(prior_note(language, resources))}</p>'
        if rows
        else cards.message(say(language, "count_nothing")),
    ]


def summary(language: str, desk: Desk, rows: list[Any]) -> str:
    """One line: counted, by whom, uncertain, unknown, bad."""
    kinds = desk.kinds()
    parts = [say(language, "count_cells", counted=number(language, sum(row.cells for row in rows)))]
    for key, n in (
        ("count_by_you", sum(row.by_you for row in rows)),
        ("count_doubtful", kinds["between"]),
        ("count_unknown", kinds["unknown"]),
        ("count_bad", len(desk.bad)),
    ):
        if n:
            parts.append(say(language, key, n=number(language, n)))
    return " · ".join(parts)


def similar_to(resources: Resources, visit: Visit, desk: Desk, n: int) -> str:
    """The labelled cells that are most like a cell of the desk."""
    if resources.similar is None or not 0 <= n < len(desk.cells):
        return ""
    with Image.open(desk.cells[n].picture) as picture:
        image = picture.convert("RGB")
    features = resources.batcher.predict([image]).features[0]
    neighbours = resources.similar.nearest(np.asarray(features))
    return cards.similar_card(resources.classifier, visit.language, image, neighbours) if neighbours else ""


def exported_files(words: Words, elem_id: str) -> gr.File:
    """Where the files of an export are downloaded, hidden until there are any."""
    return words.put(
        gr.File,
        "export_files",
        file_count="multiple",
        interactive=False,
        visible=False,
        elem_id=elem_id,
    )


def export_files(resources: Resources, visit: Visit, desk: Desk, name: str) -> list[str]:
    """Write every export of a desk into the visit's folder and return the paths."""
    if not desk.cells:
        return []
    language, repo = visit.language, resources.classifier.repo
    origin = export.Origin.now(resources.classifier_name, repo.commit)
    rows = desk.count(resources.prior)
    table = cards.count_table(resources.classifier, language, rows)
    notes = [prior_note(language, resources), *([say_shift(language, desk.shift)] if desk.shift else [])]
    page = export.report(desk, rows, language, origin, summary(language, desk, rows), notes, table)
    texts = {
        f"{name}.csv": export.cells_csv(desk, origin),
        f"{name}.json": export.cells_json(desk, rows, origin),
        f"{name}-report.html": page,
    }
    for file, text in texts.items():
        visit.file(file).write_text(text, encoding="utf-8", newline="")
    folders = export.class_folders(desk, visit.file(f"{name}-by-class.zip"))
    dataset = export.dataset_repo(
        desk, visit.file(f"{name}-dataset.zip"), origin, resources.classifier.label_descriptions
    )
    return [*(str(visit.file(file)) for file in texts), str(folders), str(dataset)]
