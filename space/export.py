"""The exports of a desk: tables, a printable report, and the corrected cells as class folders and as a dataset repo.

CSV cells that a spreadsheet would run as a formula are neutralised (OWASP, *CSV injection*); text in HTML is escaped. Pictures
are exported byte for byte.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml

from hub_model.inference.calibration import VERDICT_LEVEL
from hub_model.inference.text import csv_cell
from space.desk import EXCLUDED, UNDECIDED, Cell, Desk, Row
from space.texts import number, say, say_error

SPLITS = ("train", "train", "train", "validation", "test")  # of every five cells, sorted by class


@dataclass(frozen=True)
class Origin:
    """The model that made the predictions, and when; written into every file."""

    model: str
    revision: str
    date: str


def as_csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """RFC 4180 CSV with a byte-order mark, so that Excel reads it as UTF-8; numbers stay numbers."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(csv_cell(name) for name in header)
    writer.writerows(
        ["" if cell is None else cell if isinstance(cell, int | float) else csv_cell(cell) for cell in row]
        for row in rows
    )
    return "\ufeff" + out.getvalue()


def records(desk: Desk, origin: Origin) -> list[dict[str, Any]]:
    """One record per cell, then one with `error` per file that could not be used. Keys are in English."""
    made_by = {"model": origin.model, "revision": origin.revision, "date": origin.date}
    rows: list[dict[str, Any]] = []
    for cell in desk.cells:
        box, correction = cell.source.box, desk.corrections.get(cell.number, "")
        probabilities = zip(desk.label_names, cell.probabilities, strict=True)
        rows.append({
            "sample": cell.sample, "file": cell.file, "label": desk.label_of(cell) or "",
            "correction": {UNDECIDED: "undecided", EXCLUDED: "excluded"}.get(correction, correction),
            "model_label": cell.label, "probability": round(float(cell.probabilities.max()), 6),
            "verdict": str(cell.verdict), "conformal_set": " ".join(cell.sets.get(VERDICT_LEVEL, [])),
            "ood_score": None if cell.ood_score is None else round(cell.ood_score, 6),
            "left": box and box.left, "top": box and box.top, "side": box and box.side, "error": "",
            **{f"p_{name}": round(float(p), 6) for name, p in probabilities},
        } | made_by)  # fmt: skip
    return rows + [{"file": name, "error": str(error), **made_by} for name, error in desk.bad]


def cells_csv(desk: Desk, origin: Origin) -> str:
    """The records as CSV."""
    rows = records(desk, origin)
    header = list(dict.fromkeys(key for row in rows for key in row))
    return as_csv(header, [[row.get(key) for key in header] for row in rows])


def cells_json(desk: Desk, counts: Sequence[Row], origin: Origin) -> str:
    """The count and the records as JSON."""
    count = [
        {
            "label": row.label, "cells": row.cells, "by_model": row.by_model, "by_you": row.by_you, "share": row.share,
            "share_interval": row.interval, "corrected": row.corrected, "corrected_interval": row.corrected_interval,
        }
        for row in counts
    ]  # fmt: skip
    content = {"count": count, "cells": records(desk, origin), "left_out": dict(desk.left_out)}
    return json.dumps(content, indent=1, ensure_ascii=False)


def originals(desk: Desk) -> Iterator[tuple[Cell, str, bytes, str, str]]:
    """Yield cell, class, original bytes, SHA-256 and a unique file name of each counted cell; duplicates are skipped."""
    seen: set[tuple[str, str]] = set()
    for cell in desk.counted():
        label = desk.label_of(cell)
        data = cell.source.read()
        digest = hashlib.sha256(data).hexdigest()
        if (label, digest) in seen:
            continue
        seen.add((label, digest))
        suffix = ".png" if cell.source.box else Path(cell.file).suffix.lower() or ".png"
        stem = re.sub(r"[^\w.-]+", "_", Path(cell.file).stem).lstrip(".") or "cell"
        yield cell, label, data, digest, f"{stem}_{digest[:8]}{suffix}"


def zipped(files: Iterable[tuple[str, bytes]], path: Path) -> Path:
    """Write (name, bytes) pairs as an uncompressed zip file and return its path."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return path


def class_folders(desk: Desk) -> Iterator[tuple[str, bytes]]:
    """Class folders, as `dataset_script build` reads them."""
    for _, label, data, _, name in originals(desk):
        folder = re.sub(r"[^\w -]+", "_", label)
        yield f"{folder}/{name}", data


CARD = """---
{front}---

# Corrected cells

{cells} cells, classified by `{model}` (revision `{revision}`) and corrected by a person on {date}: {corrected} labels are
that person's. Splits are stratified by class; every fifth cell is `validation`, every fifth `test`.
"""


def dataset_repo(desk: Desk, origin: Origin, descriptions: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """The files of a dataset repo that `load_dataset` reads: one Parquet file per split, and README.md.

    `descriptions` are the full names of the model's classes; a model trained on the export adopts them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = sorted(originals(desk), key=lambda original: (original[1], original[3]))
    names = [*desk.label_names, *sorted({label for _, label, *_ in cells} - set(desk.label_names))]
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    split_of: dict[str, str] = {}  # a picture with two labels stays in one split
    for i, (_, label, data, digest, name) in enumerate(cells):
        splits[split_of.setdefault(digest, SPLITS[i % 5])].append(
            {
                "image": {"bytes": data, "path": name}, "label": names.index(label), "file_name": name, "sha256": digest,
                "group": digest[:16],
            }
        )  # fmt: skip
    texts = ("file_name", "sha256", "group")
    features = {
        "image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"},
        **{column: {"dtype": "string", "_type": "Value"} for column in texts},
    }  # fmt: skip
    schema = pa.schema(
        {
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64(),
            **dict.fromkeys(texts, pa.string()),
        },
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )  # fmt: skip
    class_label = {"names": {str(i): name for i, name in enumerate(names)}}
    files = [{"split": split, "path": f"data/{split}-*"} for split, rows in splits.items() if rows]
    front = {
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {
            "features": [
                {"name": "image", "dtype": "image"},
                {"name": "label", "dtype": {"class_label": class_label}},
                *({"name": column, "dtype": "string"} for column in texts),
            ]
        },
        "label_descriptions": {name: descriptions[name] for name in names if name in descriptions},
        "task_categories": ["image-classification"],
    }
    for split, rows in splits.items():
        if rows:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer := io.BytesIO())
            yield f"data/{split}-00000-of-00001.parquet", buffer.getvalue()
    card = CARD.format(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True), cells=len(cells), model=origin.model,
        revision=origin.revision or "local", date=origin.date,
        corrected=sum(cell.number in desk.corrections for cell, *_ in cells),
    )  # fmt: skip
    yield "README.md", card.encode()


PAGE_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #111 }
table { border-collapse: collapse; width: 100% } caption { text-align: left; font-weight: 600 }
th, td { border-bottom: 1px solid #ccc; padding: .35rem; text-align: right } th:first-child { text-align: left }
.range { position: relative; display: block; height: .8rem; background: #eee } .bars td:last-child { width: 75% }
.range i { position: absolute; top: 0; bottom: 0; background: #b9a3f7 }
.range b { position: absolute; top: 0; bottom: 0; width: 2px; background: #241a3a }
.cells { display: grid; grid-template-columns: repeat(6, 1fr); gap: .5rem } figure { margin: 0; break-inside: avoid }
figure img { width: 100% } figcaption { font-size: 11px; overflow-wrap: anywhere }
td small { display: block; color: #555 }
@media print { button { display: none } }
"""
MAX_FIGURES = 48  # of uncertain cells in a report


def report(
    desk: Desk,
    counts: Sequence[Row],
    language: str,
    origin: Origin,
    summary: str,
    notes: Sequence[str],
    table: str,
) -> str:
    """A self-contained HTML page to print. `table` is trusted HTML; everything else is escaped."""

    def bar(row: Row) -> str:
        low, high = row.interval
        return (
            f'<tr><th scope="row">{escape(row.label)}</th><td>{number(language, 100 * row.share, 1)}%</td>'
            '<td><span class="range">'
            f'<i style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i><b style="left:{100 * row.share:.1f}%"></b>'
            "</span></td></tr>"
        )

    uncertain = [cell for cell in desk.cells if cell.verdict.kind != "sure"][:MAX_FIGURES]
    figures = "".join(
        f'<figure><img src="data:image/jpeg;base64,{base64.b64encode(cell.thumbnail.read_bytes()).decode()}" alt="">'
        f"<figcaption>{escape(cell.file)}<br>{escape(desk.label_of(cell) or '?')}"
        f"{' ✓' if cell.number in desk.corrections else ''}</figcaption></figure>"
        for cell in uncertain
    )
    bad = "".join(
        f"<li>{escape(name)}: {escape(say_error(language, error))}</li>" for name, error in desk.bad
    )
    title = escape(say(language, "report_title"))
    samples = escape(", ".join(desk.samples()))
    sections = [
        f"<h1>{title}</h1><p>{escape(origin.date)} · {escape(say(language, 'sample'))}: {samples}</p>",
        f"<p>{escape(summary)}</p>{table}",
        f"<table class='bars'><caption>{escape(say(language, 'interval'))}</caption>{''.join(map(bar, counts))}</table>",
        *(f"<p>{escape(note)}</p>" for note in notes),
        f"<h2>{escape(say(language, 'report_doubtful'))}</h2><div class='cells'>{figures}</div>"
        if figures
        else "",
        f"<h2>{escape(say(language, 'bad_title'))}</h2><ul>{bad}</ul>" if bad else "",
        f"<p>{escape(say(language, 'report_model'))}: {escape(f'{origin.model} {origin.revision}'.strip())}. "
        f"{escape(say(language, 'disclaimer'))} {escape(say(language, 'footer_left_out'))}</p>",
        f'<button onclick="print()">{escape(say(language, "report_print"))}</button>',
    ]
    head = f'<!doctype html><html lang="{language}"><meta charset="utf-8"><title>{title}</title><style>{PAGE_STYLE}</style>'
    return head + "".join(sections) + "</html>"
