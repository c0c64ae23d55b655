"""What a visitor takes home: the table as CSV and the count as a page to print.

In: rows and counts. Out: text. CSV cells that a spreadsheet would run as a formula are neutralised (OWASP,
*CSV injection*); everything in the HTML is escaped. Both are handed over inside the page, nothing is written
to disk.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Sequence
from html import escape

from space.texts import say


def harmless(cell: object) -> str:
    """A CSV cell that no spreadsheet takes for a formula."""
    text = str(cell)
    formula = text.lstrip().startswith(("=", "+", "-", "@")) or text.startswith(("\t", "\r", "\n"))
    return "'" + text if formula else text


def as_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """RFC 4180 text; numbers stay numbers."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(header)
    writer.writerows(
        [cell if isinstance(cell, int | float) else harmless(cell) for cell in row] for row in rows
    )
    return out.getvalue()


PAGE_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #111 }
table { border-collapse: collapse; width: 100% }
th, td { border-bottom: 1px solid #ccc; padding: .35rem; text-align: right }
th:first-child { text-align: left }
@media print { button { display: none } }
"""


def as_page(
    language: str, model: str, count_html: str, summary: str, note: str, bad: Sequence[tuple[str, str]]
) -> str:
    """A self-contained HTML page made for paper. `count_html` is trusted, everything else is escaped."""
    title = escape(say(language, "report_title"))
    listed = "".join(f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in bad)
    listed = f"<h2>{escape(say(language, 'bad_title'))}</h2><ul>{listed}</ul>" if bad else ""
    return (
        f'<!doctype html><html lang="{language}"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{PAGE_STYLE}</style><h1>{title}</h1><p>{escape(summary)}</p>{count_html}<p>{escape(note)}</p>"
        f"{listed}<p>{escape(say(language, 'report_model'))}: {escape(model)}. "
        f"{escape(say(language, 'disclaimer'))}</p>"
        f'<button onclick="print()">{escape(say(language, "report_print"))}</button></html>'
    )


def download_link(text: str, file_name: str, media_type: str, label: str) -> str:
    """A link that saves `text` as a file, without a round trip."""
    encoded = base64.b64encode(text.encode()).decode()
    address = f"data:{media_type};charset=utf-8;base64,{encoded}"
    return f'<a class="download" download="{escape(file_name)}" href="{address}">{escape(label)}</a>'
