"""The review desk on a page, for both tabs that have one: the count, the cells, similar ones, and exports.

In: a visit's desk. Out: Gradio components, and what is drawn in them; `review.js` shows the cells and sends "correct", "look"
and, on a field, "missed".
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
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
from space.desk import EXTRA, Cell, Desk, Row
from space.resources import Resources
from space.texts import LANGUAGES, Words, number, say, say_html, say_shift
from space.visits import Visit, Visits

SCRIPT = (Path(__file__).parent / "review.js").read_text("utf-8")
DESK_WORDS = (
    "label", "kind", "sample", "all", "unknown", "between", "uncalibrated", "unidentifiable", "sure", "corrected", "undecided",
    "excluded", "undo", "other", "keys", "number", "cells", "sort_doubt", "sort_label", "sort_p", "sort_file", "zoom_in",
    "zoom_out", "add", "field_alt", "spot", "keys_add",
)  # fmt: skip
PRIVATE = {"api_visibility": "private"}
QUIET = {**PRIVATE, "show_progress": "hidden"}
IN_TURN = {"concurrency_id": "count", "concurrency_limit": 1}  # or a late answer would show an older count


class DeskView:
    """The desk `name` of each visit. `head(language, desk, rows, sample)` is what stands above its count, `example` the path of
    a picture to be seen before there is any."""

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
        return visit.results.setdefault(self.name, Desk(self.resources.classifier.label_names))

    # ---- components
    def lay_out_count(self) -> None:
        waiting = self.words.i18n(f"{self.name}_waiting")
        self.result = gr.HTML(f'<p class="hint">{waiting}</p>{self.example}', elem_id=f"{self.name}-result")
        self.chart = gr.Plot(
            show_label=False, visible=False, elem_id=f"{self.name}-chart", elem_classes="plot"
        )
        self.numbers = gr.HTML(elem_id=f"{self.name}-numbers")

    def lay_out_desk(self) -> None:
        self.desk = gr.HTML(
            None,
            html_template='<div class="desk"></div>',
            js_on_load=SCRIPT,
            elem_id=f"{self.name}-desk",
        )
        self.similar = gr.HTML(elem_id=f"{self.name}-similar")

    def lay_out_actions(self) -> gr.Row:
        """The row of what can be done with a desk that has cells."""
        self.actions = gr.Row(visible=False)
        return self.actions

    def lay_out_exports(self) -> None:
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

    @property
    def count_outputs(self) -> list[Any]:
        return [self.result, self.chart, self.numbers]

    @property
    def outputs(self) -> list[Any]:
        return [*self.count_outputs, self.desk, self.actions]

    def wire(self) -> None:
        """Corrections recount, a look finds similar cells, a button writes the exports."""
        self.desk.correct(
            self._correct, None, self.count_outputs, trigger_mode="multiple", **QUIET, **IN_TURN
        )
        self.desk.look(self._look, None, self.similar, trigger_mode="multiple", **QUIET)
        self.prepare.click(self._export, None, self.exported, **PRIVATE)

    # ---- what is drawn
    def draw_count(self, visit: Visit, sample: str = "") -> list[Any]:
        """Head, chart and table of the count as it stands."""
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
        return [
            head,
            gr.update(value=charts.count_chart(rows, language) if rows else None, visible=bool(rows)),
            table,
        ]

    def draw(self, visit: Visit, select: int | None = None) -> list[Any]:
        """The count, and the cells with number `select` in the large view."""
        return [
            *self.draw_count(visit),
            desk_values(self.resources, self.of(visit), visit.language, select),
            gr.update(visible=bool(self.of(visit).cells)),
        ]

    def redraw(self, visit: Visit) -> list[Any]:
        return self.draw(visit) if self.name in visit.results else [gr.skip()] * len(self.outputs)

    # ---- events
    def _correct(self, event: gr.EventData, request: gr.Request) -> list[Any]:
        visit = self.visits.of(request)
        allowed = [*self.resources.classifier.label_names, *EXTRA]
        self.of(visit).correct(dict(event.corrections), allowed, float(event.turn))
        return self.draw_count(visit, str(event.sample))

    def _look(self, event: gr.EventData, request: gr.Request) -> str:
        visit, n = self.visits.of(request), int(event.number)
        cells = self.of(visit).cells
        if self.resources.similar is None or not 0 <= n < len(cells):
            return ""
        with Image.open(cells[n].picture) as picture:
            image = picture.convert("RGB")
        features = self.resources.batcher.predict([image]).features[0]
        neighbours = self.resources.similar.nearest(np.asarray(features))
        if not neighbours:
            return ""
        return cards.similar_card(self.resources.classifier, visit.language, image, neighbours)

    def files(self, visit: Visit) -> list[str]:
        """The exports of the desk."""
        return export_files(self.resources, visit, self.of(visit), self.name)

    def _export(self, request: gr.Request) -> Any:
        paths = self.files(self.visits.of(request))
        return gr.update(value=paths, visible=bool(paths))


def desk_values(
    resources: Resources, desk: Desk, language: str, select: int | None = None
) -> dict[str, Any] | None:
    """The desk as `review.js` takes it, in a language."""
    classifier = resources.classifier
    labels = [
        {"code": label, "name": cards.name_of(classifier, language, label), "colour": charts.colour(i)}
        for i, label in enumerate(classifier.label_names)
    ]
    extra = [(name, cards.name_of(classifier, language, name)) for name in EXTRA]

    def verdict(cell: Cell) -> str:
        return cards.verdict_text(classifier, language, cell.verdict)

    texts = LANGUAGES[language]  # the page fills their placeholders
    return desk.values({key: texts[f"desk_{key}"] for key in DESK_WORDS}, labels, extra, verdict, select)


def summary(language: str, desk: Desk, rows: list[Row]) -> str:
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


def origin_of(resources: Resources) -> export.Origin:
    return export.Origin.now(resources.classifier_name, resources.classifier.repo.commit)


def export_files(resources: Resources, visit: Visit, desk: Desk, name: str) -> list[str]:
    """Write every export of a desk into the visit's folder and return the paths."""
    if not desk.cells:
        return []
    language, origin, rows = (
        visit.language,
        origin_of(resources),
        desk.count(resources.classifier.calibration),
    )
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
    folders = export.zipped(export.class_folders(desk), visit.file(f"{name}-by-class.zip"))
    files = export.dataset_repo(desk, origin, resources.classifier.label_descriptions)
    dataset = export.zipped(files, visit.file(f"{name}-dataset.zip"))
    return [*(str(visit.file(file)) for file in texts), str(folders), str(dataset)]


def push_export(resources: Resources, visit: Visit, desk: Desk, user: str, token: str) -> str:
    """Push the corrected cells to a private dataset repo of the visitor's, in one commit, and say where they are.

    A desk keeps its repo: pushed again, that is changed. The token is used for this call and kept nowhere.
    """
    language, origin = visit.language, origin_of(resources)
    if not desk.cells:
        return cards.message(say(language, "cells_first"))
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
