"""Tab "Many cells": up to 500 pictures or a zip in; table, differential count, CSV and report out."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from space import cards, charts, report
from space.bulk import BulkAnswer, answer_uploads, prior_note, summary
from space.inputs import FileInput, forget
from space.resources import Resources
from space.texts import language_of, say, say_error

BULK_JOBS = 2  # at a time, of the page and of the API together


def build(resources: Resources, i18n: gr.I18n) -> None:
    """Lay the tab out and wire it."""
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=4, min_width=300):
            files = FileInput(
                label=i18n("cells_files"), file_count="multiple", height=220, elem_id="cells-files"
            )
            gr.HTML(f'<p class="help">{i18n("cells_help")}</p>')
            run = gr.Button(i18n("cells_run"), variant="primary", elem_id="cells-run")
        with gr.Column(scale=7, min_width=300):
            result = gr.HTML(elem_id="cells-result")
            chart = gr.Plot(show_label=False, visible=False, elem_id="cells-chart", elem_classes="plot")
            numbers = gr.HTML(elem_id="cells-numbers")
    table = gr.Dataframe(
        visible=False,
        interactive=False,
        show_search="filter",
        max_height=460,
        wrap=True,
        datatype=["str", "str", "str", "number", "str"],
        elem_id="cells-table",
    )
    bad = gr.HTML(elem_id="cells-bad")

    def respond(paths: list[str] | None, request: gr.Request, progress: gr.Progress = gr.Progress()) -> tuple:  # noqa: B008
        language = language_of(request)
        nothing = gr.update(visible=False)
        if not paths:
            return gr.update(), cards.message(say(language, "cells_first")), nothing, "", nothing, ""
        try:
            answer = answer_uploads(
                resources,
                paths,
                lambda done, total: progress((done, total), desc=say(language, "cells_progress"), unit=""),
            )
        finally:
            forget(paths)
        rejected = bad_list(language, answer)
        if answer.predictions is None:
            return None, cards.message(say(language, "cells_none"), "bad"), nothing, "", nothing, rejected
        header, rows = table_of(resources, language, answer)
        return (
            None,
            result_head(resources, language, answer, header, rows),
            gr.update(value=charts.count_chart(answer.counts, language), visible=bool(answer.counts)),
            cards.count_table(resources.classifier, language, answer.counts)
            + f'<p class="help">{escape(prior_note(language, resources))}</p>',
            gr.update(value=rows, headers=header, visible=True, label=say(language, "table_title")),
            rejected,
        )

    run.click(
        respond,
        files,
        [files, result, chart, numbers, table, bad],
        api_visibility="private",
        concurrency_id="bulk",
        concurrency_limit=BULK_JOBS,
        show_progress_on=result,
    )


def table_of(resources: Resources, language: str, answer: BulkAnswer) -> tuple[list[str], list[list[Any]]]:
    """Header and one row a cell, the doubtful ones first."""
    classifier, predictions = resources.classifier, answer.predictions
    header = [say(language, f"table_{key}") for key in ("file", "label", "name", "confidence", "verdict")]
    labels, confidences = predictions.labels, predictions.confidences
    rows = [
        [
            answer.names[row],
            labels[row],
            cards.name_of(classifier, language, labels[row]),
            round(100 * float(confidences[row]), 1),
            cards.verdict_text(classifier, language, predictions.verdicts[row]),
        ]
        for row in answer.doubtful_first()
    ]
    return header, rows


def result_head(
    resources: Resources, language: str, answer: BulkAnswer, header: list[str], rows: list[list[Any]]
) -> str:
    """Title, summary and the two downloads."""
    repo = resources.classifier.repo
    line = summary(language, answer)
    model = f"{repo.name}@{repo.commit[:8]}" if repo.commit else repo.name
    page = report.as_page(
        language,
        model,
        cards.count_table(resources.classifier, language, answer.counts),
        line,
        prior_note(language, resources),
        [(name, say_error(language, error)) for name, error in answer.bad],
    )
    csv_link = report.download_link(
        report.as_csv(header, rows), "cells.csv", "text/csv", say(language, "download_csv")
    )
    page_link = report.download_link(page, "report.html", "text/html", say(language, "download_report"))
    return (
        f'<section class="result" aria-live="polite"><h2>{escape(say(language, "count_title"))}</h2>'
        f'<p>{escape(line)}</p><p class="downloads">{csv_link}{page_link}</p></section>'
    )


def bad_list(language: str, answer: BulkAnswer) -> str:
    """The files that could not be used, each with its reason; empty when all were fine."""
    if not answer.bad:
        return ""
    items = "".join(
        f"<li><b>{escape(name)}</b> {escape(say_error(language, error))}</li>" for name, error in answer.bad
    )
    return (
        f'<section class="bad-files"><h3>{escape(say(language, "bad_title"))}</h3><ul>{items}</ul></section>'
    )
