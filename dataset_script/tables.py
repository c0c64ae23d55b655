"""Tables: the CSV files of the dataset repo out; published test lists and label tables in, from whatever system."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset_script.source import DatasetError, shown

FORMULA = ("=", "+", "-", "@")  # a spreadsheet would run a cell that begins with one of these
ENDING = re.compile(r"\.[A-Za-z]\w{1,4}$")
COLUMNS = {  # names of columns as they are found, in order of preference
    "file": ("file_name", "filename", "file", "image", "image_path", "path", "image_name", "img", "image_id", "name", "id"),
    "label": ("label", "labels", "class", "class_name", "category", "cell_type", "diagnosis", "target", "annotation"),
    "split": ("split", "subset", "set", "partition"),
    "group": ("group", "patient", "patient_id", "subject", "subject_id", "case", "case_id", "donor", "slide", "slide_id"),
}  # fmt: skip


@dataclass(frozen=True)
class LabelRow:
    """A row of a label table; `name` has forward slashes."""

    name: str
    label: str
    split: str = ""
    group: str = ""


def cell(value: object) -> str:
    """Return a value as a CSV cell that no spreadsheet takes for a formula (an apostrophe goes before it)."""
    text = shown(str(value))
    return "'" + text if text.startswith(FORMULA) else text


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as UTF-8 CSV with Unix line ends."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([cell(value) for value in row] for row in rows)


def decode_text(data: bytes) -> str:
    """Return a text file's content: UTF-16 or UTF-8, with or without a byte order mark, or the Windows code page.

    Raises:
        DatasetError: it is none of them.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    if (
        data[1:2] == b"\0" or data[:1] == b"\0"
    ):  # UTF-16 without its mark: ASCII has a zero in every second byte
        return data.decode("utf-16-le" if data[1:2] == b"\0" else "utf-16-be", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    if odd := re.search(
        r"[^\x00-\x7f‘’“”–—…•]{3,}", text
    ):  # no word of a western language: it is another code page
        raise DatasetError(f"the table is in an unknown code page ({odd[0]}): save it as UTF-8")
    return text


def parse_cells(text: str) -> list[list[str]]:
    """Return the rows of a table whose cells are parted by tabs, semicolons, commas or bars, stripped; a cell may be quoted.

    Raises:
        csv.Error: a cell is absurdly long.
    """
    text = re.sub(r"\Asep=.\s*\n", "", text)  # what Excel writes before the header
    separator = max("\t;,|", key=re.sub(r'"[^"\n]*"', "", text).count)
    options = {"delimiter": separator, "skipinitialspace": True, "strict": True}
    try:  # a quoted cell may go on over several lines
        rows = list(csv.reader(io.StringIO(text, newline=""), **options))
    except csv.Error:  # a quote that stands alone ends with its line
        options["strict"] = False
        rows = [row for line in text.splitlines() for row in csv.reader([line], **options)]
    return [[cell.strip().strip("\"'").strip() for cell in row] for row in rows if any(map(str.strip, row))]


def forward(name: str) -> str:
    """Return a path with single forward slashes, without leading ones."""
    return "/".join(part for part in re.split(r"[/\\]", name) if part not in ("", "."))


def read_test_names(path: Path) -> set[str]:
    """Return the names of a published test list: text with a name a line, or CSV with a column of names or paths.

    Folders stay before a name.

    Raises:
        DatasetError: the file cannot be read or names no file.
    """
    try:
        rows = parse_cells(decode_text(path.read_bytes()))
    except OSError as error:
        raise DatasetError(f"--test_names {path} cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise DatasetError(f"--test_names {path} is no list of file names: {error}") from error
    names = {forward(cell) for row in rows for cell in row if ENDING.search(cell)}
    if not names:
        raise DatasetError(
            f"--test_names {path} names no image file: it needs a file name (like BLA_00001.jpg) a line"
        )
    return names


def read_labels(name: str, data: bytes) -> list[LabelRow]:
    """Return the rows of a label table: CSV, TSV, JSON lines or Parquet with a column of file names and one of labels.

    Columns are known by their names (see `COLUMNS`); a table of two columns needs no header.

    Raises:
        DatasetError: it is no such table.
    """
    readers = {"parquet": _read_parquet, "jsonl": _read_json_lines}
    header, rows = readers.get(name.rpartition(".")[2].lower(), _read_text)(name, data)
    lowered = [cell.lower().strip().replace(" ", "_") for cell in header]
    place = {
        kind: next((lowered.index(n) for n in names if n in lowered), None) for kind, names in COLUMNS.items()
    }
    if place["file"] is None:  # a column of another name that holds file names
        endings = [
            sum(bool(ENDING.search(row[i])) for row in rows if i < len(row)) for i in range(len(header))
        ]
        place["file"] = endings.index(max(endings)) if endings and max(endings) > len(rows) / 2 else None
    if len(header) == 2 and place["file"] is not None:
        place["label"] = 1 - place["file"]
    for kind in ("file", "label"):
        if place[kind] is None:
            found = ", ".join(f"'{shown(cell)}'" for cell in header[:12])
            raise DatasetError(
                f"{name} has no column of {kind} names (found: {found}): call one '{COLUMNS[kind][0]}'"
            )

    def value(row: list[str], kind: str) -> str:
        index = place[kind]
        return row[index] if index is not None and index < len(row) else ""

    read = [
        LabelRow(forward(value(row, "file")), value(row, "label"), value(row, "split"), value(row, "group"))
        for row in rows
    ]
    return [row for row in read if row.name]


def _read_text(name: str, data: bytes) -> tuple[list[str], list[list[str]]]:
    if name.lower().endswith((".xlsx", ".xls", ".ods")):
        raise DatasetError(f"{name} is a spreadsheet: save it as CSV")
    try:
        rows = parse_cells(decode_text(data))
    except csv.Error as error:
        raise DatasetError(f"{name} is no table: {error}") from error
    if not rows:
        raise DatasetError(f"{name} is empty")
    if len(rows[0]) == 2 and sum(bool(ENDING.search(cell)) for cell in rows[0]) == 1:  # no header
        return ["file", "label"] if ENDING.search(rows[0][0]) else ["label", "file"], rows
    return rows[0], rows[1:]


def _read_json_lines(name: str, data: bytes) -> tuple[list[str], list[list[str]]]:
    try:
        rows = [dict(json.loads(line)) for line in decode_text(data).splitlines() if line.strip()]
    except (ValueError, TypeError, RecursionError) as error:
        raise DatasetError(f"{name} is no JSON lines: {error}") from error
    header = list(dict.fromkeys(str(key) for row in rows for key in row))
    return header, [["" if row.get(key) is None else str(row[key]) for key in header] for row in rows]


def _read_parquet(name: str, data: bytes) -> tuple[list[str], list[list[str]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(data))
    except pa.ArrowException as error:
        raise DatasetError(f"{name} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    columns = [
        ["" if value is None else str(value) for value in column.to_pylist()] for column in table.columns
    ]
    return table.column_names, [list(row) for row in zip(*columns, strict=True)]
