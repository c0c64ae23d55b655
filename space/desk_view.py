"""The review desk on the page, for both tabs that have one: the count, the cells, similar cells, and exports.

In: the desk of a visit. Out: Gradio components and their values. `review.js` shows the cells and sends the events "correct",
"inspect" and, on a field, "add_cell".
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from hub_model.inference.errors import RepoError
from hub_model.publish import push_folder
from space import cards, charts, export
from space.bulk import prior_note
from space.desk import EXTRA_CLASSES, Desk, Row
from space.inputs import values_of
from space.resources import Resources
from space.texts import LANGUAGES, Words, number, say, say_html, say_shift
from space.visits import Visit, Visits

SCRIPT = (Path(__file__).parent / "review.js").read_text("utf-8")
PRIVATE = {"api_visibility": "private"}
QUIET = {**PRIVATE, "show_progress": "hidden"}
IN_ORDER = {"concurrency_id": "count", "concurrency_limit": 1}  # a late answer would show an outdated count


class DeskView:
    """The components of desk `name` and their events, for all visits.

    Args:
        head: HTML above the count, from language, desk, rows and sample.
        example: path of the picture shown while the desk is empty.
    """

    def __init__(
        self,
        resources: Resources,
        words: Words,
        visits: Visits,
        name: str,
        head: Callable[[str, Desk, list[Row], str], str],
        example: str | None,
    ) -> None:
        self.resources, self.words, self.visits, self.name, self.head = resources, words, visits, name, head
        self.example = f'<img class="waiting" alt="" src="gradio_api/file={example}">' if example else ""

    def of(self, visit: Visit) -> Desk:
        """The desk of a visit."""
        return visit.results.setdefault(self.name, Desk(self.resources.classifier.label_names))

    # ---- components
    def lay_out_count(self) -> None:
        """Head, chart and table of the count."""
        waiting = self.words.i18n(f"{self.name}_waiting")
        self.result = gr.HTML(f'<p class="hint">{waiting}</p>{self.example}', elem_id=f"{self.name}-result")
        self.chart = gr.Plot(
            show_label=False, visible=False, elem_id=f"{self.name}-chart", elem_classes="plot"
        )
        self.numbers = gr.HTML(elem_id=f"{self.name}-numbers")
        self.count_outputs = [self.result, self.chart, self.numbers]

    def lay_out_desk(self) -> gr.Row:
        """The cells and the similar cells; returns the row for actions, which is hidden while the desk is empty."""
        self.desk = gr.HTML(
            None,
            html_template='<div class="desk"></div>',
            js_on_load=SCRIPT,
            elem_id=f"{self.name}-desk",
        )
        self.similar = gr.HTML(elem_id=f"{self.name}-similar")
        actions = gr.Row(visible=False)
        self.outputs = [*self.count_outputs, self.desk, actions]
        return actions

    def lay_out_exports(self) -> None:
        """The export button and the files it writes."""
        with gr.Column(min_width=240):
            self.prepare = self.words.put(gr.Button, "export_run", "value", elem_id=f"{self.name}-export")
            self.words.html('<p class="help">{}</p>', "export_help")
        self.exported = self.words.put(
            gr.File,
            "export_files",
            file_count="multiple",
            interactive=False,
            visible=False,
            elem_id=f"{self.name}-exported",
        )

    def wire(self, uploads: gr.components.Component) -> None:
        """Register the events of the desk, and keep what is sent to `uploads` until the visit ends."""
        self.desk.correct(
            self._correct, None, self.count_outputs, trigger_mode="multiple", **QUIET, **IN_ORDER
        )
        self.desk.inspect(self._show_similar, None, self.similar, trigger_mode="multiple", **QUIET)
        self.prepare.click(self._export, None, self.exported, **PRIVATE)
        uploads.upload(self._keep, uploads, None, **QUIET)

    # ---- values
    def draw_count(self, visit: Visit, sample: str = "") -> list[Any]:
        """Head, chart and table of the current count."""
        language, desk = visit.language, self.of(visit)
        rows = desk.count(self.resources.classifier.calibration, sample)
        if rows:
            table = cards.count_table(self.resources.classifier, language, rows)
            table += f'<p class="help">{escape(prior_note(language, self.resources))}</p>'
        else:
            table = cards.message(say(language, "count_nothing")) if desk.cells else ""
        if desk.cells or desk.bad or desk.field:
            head = self.head(language, desk, rows, sample)
        else:
            head = cards.message(say(language, f"{self.name}_waiting")) + self.example
        chart = charts.count_chart(rows, language) if rows else None
        return [head, gr.update(value=chart, visible=bool(rows)), table]

    def draw(self, visit: Visit, select: int | None = None) -> list[Any]:
        """The values of `outputs`, with cell `select` in the large view."""
        desk = self.of(visit)
        values = desk_values(self.resources, desk, visit.language, select)
        return [*self.draw_count(visit), values, gr.update(visible=bool(desk.cells))]

    def redraw(self, visit: Visit) -> list[Any]:
        """The values of `outputs` for a visit that has used this desk."""
        return self.draw(visit) if self.name in visit.results else [gr.skip()] * len(self.outputs)

    # ---- events
    def _keep(self, paths: Any, request: gr.Request) -> None:
        self.visits.of(request).keep(paths)

    def _correct(self, event: gr.EventData, request: gr.Request) -> list[Any]:
        visit = self.visits.of(request)
        allowed = [*self.resources.classifier.label_names, *EXTRA_CLASSES]
        corrections, version, sample = values_of(event, corrections=dict, version=float, sample=str)
        self.of(visit).correct(corrections, allowed, version)
        return self.draw_count(visit, sample)

    def _show_similar(self, event: gr.EventData, request: gr.Request) -> str:
        visit, (n,) = self.visits.of(request), values_of(event, number=int)
        cells = self.of(visit).cells
        if self.resources.similar is None or not 0 <= n < len(cells):
            return ""
        with Image.open(cells[n].thumbnail) as thumbnail:
            picture = thumbnail.convert("RGB")
        features = self.resources.batcher.predict([picture]).features[0]
        neighbours = self.resources.similar.nearest(features)
        if not neighbours:
            return ""
        return cards.similar_card(self.resources.classifier, visit.language, picture, neighbours)

    def files(self, visit: Visit) -> list[str]:
        """Write the exports of the desk and return their paths."""
        return export_files(self.resources, visit, self.of(visit), self.name)

    def _export(self, request: gr.Request) -> Any:
        paths = self.files(self.visits.of(request))
        return gr.update(value=paths, visible=bool(paths))


def desk_values(
    resources: Resources, desk: Desk, language: str, select: int | None = None
) -> dict[str, Any] | None:
    """The value of `review.js`, with its texts in a language; None for an empty desk.

    `id` changes with the cells: the page then resets its filters and undo history.
    """
    if not desk.cells:
        return None
    classifier, texts = resources.classifier, LANGUAGES[language]  # their placeholders are filled by the page
    cells = []
    for cell in desk.cells:
        top = np.argsort(-cell.probabilities, kind="stable")[:3]
        cells.append({
            "n": cell.number, "file": cell.file, "sample": cell.sample, "folder": cell.folder,
            "url": str(cell.thumbnail), "label": cell.label, "kind": cell.verdict.kind,
            "verdict": cards.verdict_text(classifier, language, cell.verdict), "p": round(float(cell.probabilities.max()), 4),
            "top": [[desk.label_names[i], round(float(cell.probabilities[i]), 4)] for i in top],
        })  # fmt: skip
        if box := cell.source.box:
            cells[-1]["box"] = [box.left, box.top, box.side]
    return {
        "id": f"{id(desk)}-{desk.field and desk.field['url']}",
        "cells": cells,
        "labels": [
            {"code": label, "name": cards.name_of(classifier, language, label), "colour": charts.colour(i)}
            for i, label in enumerate(classifier.label_names)
        ],
        "extra": [
            {"code": label, "name": cards.name_of(classifier, language, label)} for label in EXTRA_CLASSES
        ],
        "corrections": {str(n): label for n, label in desk.corrections.items()},
        "words": {key.removeprefix("desk_"): text for key, text in texts.items() if key.startswith("desk_")},
        "field": desk.field,
        "select": select,
    }


def summary(language: str, desk: Desk, rows: list[Row]) -> str:
    """One line: how many cells were counted, corrected, uncertain and unknown, and how many files could not be used."""
    kinds = desk.kinds()
    items = [say(language, "count_cells", counted=number(language, sum(row.cells for row in rows)))]
    for key, n in (
        ("count_by_you", sum(row.by_you for row in rows)),
        ("count_doubtful", kinds["between"]),
        ("count_unknown", kinds["unknown"]),
        ("count_bad", len(desk.bad)),
    ):
        if n:
            items.append(say(language, key, n=number(language, n)))
    return " · ".join(items)


def origin_of(resources: Resources) -> export.Origin:
    """The model, its revision and the current time."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return export.Origin(resources.classifier_name, resources.classifier.repo.commit or "", now)


def export_files(resources: Resources, visit: Visit, desk: Desk, name: str) -> list[str]:
    """Write every export of a desk into the visit's folder and return the paths."""
    if not desk.cells:
        return []
    language, classifier, origin = visit.language, resources.classifier, origin_of(resources)
    rows = desk.count(classifier.calibration)
    notes = [prior_note(language, resources), *([say_shift(language, desk.shift)] if desk.shift else [])]
    table = cards.count_table(classifier, language, rows)
    texts = {
        f"{name}.csv": export.cells_csv(desk, origin),
        f"{name}.json": export.cells_json(desk, rows, origin),
        f"{name}-report.html": export.report(
            desk, rows, language, origin, summary(language, desk, rows), notes, table
        ),
    }
    archives = {}
    if desk.counted():
        archives[f"{name}-by-class.zip"] = export.class_folders(desk)
        archives[f"{name}-dataset.zip"] = export.dataset_repo(desk, origin, classifier.label_descriptions)
    for file, text in texts.items():
        visit.file(file).write_text(text, encoding="utf-8", newline="")
    for file, entries in archives.items():
        export.zipped(entries, visit.file(file))
    return [str(visit.file(file)) for file in (*texts, *archives)]


def push_export(resources: Resources, visit: Visit, desk: Desk, user: str, token: str) -> str:
    """Push the corrected cells to a private dataset repo of the visitor in one commit; returns HTML that links it.

    Pushing a desk again updates its repo. The token is used for this call only and not stored.
    """
    language, origin = visit.language, origin_of(resources)
    if not desk.counted():
        return cards.message(say(language, "count_nothing" if desk.cells else "cells_first"))
    desk.repo = desk.repo or f"{user}/corrected-cells-{origin.date[:19].replace(':', '-').lower()}"
    visit.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=visit.folder) as folder:
        for name, data in export.dataset_repo(desk, origin, resources.classifier.label_descriptions):
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        try:
            pushed = push_folder(Path(folder), desk.repo, "dataset", True, "Corrected cells", token=token)
        except RepoError as error:
            status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
            key = "push_again" if status == 401 else "push_failed"
            return cards.message(say(language, key, reason=str(error)), "bad")
    link = f'<a href="{escape(pushed)}" target="_blank">{escape(desk.repo)}</a>'
    return f'<p class="hint" role="status">{say_html(language, "push_done", repo=link)}</p>'
