"""Tables: writes the CSV files of the dataset repo, and reads test lists and label tables in the formats of many programs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset_script.source import DatasetError
from hub_model.inference.errors import first_line
from hub_model.inference.text import csv_cell, printable

ENDING = re.compile(r"\.[A-Za-z]\w{1,4}$")
COLUMNS = {  # accepted column names, in order of preference
    "file": ("file_name", "filename", "file", "image", "image_path", "path", "image_name", "img", "image_id", "name", "id"),
    "label": ("label", "labels", "class", "class_name", "category", "cell_type", "diagnosis", "target", "annotation"),
    "split": ("split", "subset", "set", "partition"),
    "group": ("group", "patient", "patient_id", "subject", "subject_id", "case", "case_id", "donor", "slide", "slide_id"),
}  # fmt: skip


@dataclass(frozen=True)
class LabelRow:
    """A file with its label, and its split and group, "" if none; `file` has forward slashes."""

    file: str
    label: str
    split: str = ""
    group: str = ""


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as UTF-8 CSV with Unix line endings; cells that a spreadsheet would run as formulas are escaped."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([csv_cell(printable(str(value))) for value in row] for row in rows)


def _decode(name: str, data: bytes) -> str:
    """Decode a text file: UTF-16 with a BOM, UTF-8 with or without one, or Windows-1252."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    # three such letters in a row hardly occur in western languages
    if garbled := re.search(r"[^\x00-\x7f‘’“”–—…•]{3,}", text):
        raise DatasetError(f"{name} is in an unknown code page ({garbled[0]}): save it as UTF-8")
    return text


def parse_cells(name: str, data: bytes) -> list[list[str]]:
    """Return the rows of stripped cells of a table separated by tabs, semicolons, commas or bars; cells may be quoted.

    Raises:
        DatasetError: it is not text in a known encoding, or a cell is too long.
    """
    text = re.sub(r"\Asep=.\s*\n", "", _decode(name, data))  # Excel writes it above the header
    separator = max("\t;,|", key=re.sub(r'"[^"\n]*"', "", text).count)
    options = {"delimiter": separator, "skipinitialspace": True}
    try:
        try:  # a quoted cell may contain newlines
            rows = list(csv.reader(io.StringIO(text, newline=""), strict=True, **options))
        except csv.Error:  # an unmatched quote: parse each line on its own
            rows = [row for line in text.splitlines() for row in csv.reader([line], **options)]
    except csv.Error as error:
        raise DatasetError(f"{name} is not a table: {error}") from error
    return [[cell.strip().strip("\"'").strip() for cell in row] for row in rows if any(map(str.strip, row))]


def forward(name: str) -> str:
    """Return a path with single forward slashes and no leading one."""
    return "/".join(part for part in re.split(r"[/\\]", name) if part not in ("", "."))


def read_option(option: str, path: Path) -> bytes:
    """Return the bytes of the file passed to an option; DatasetError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{option} {path} cannot be read: {error.strerror}") from error


def read_test_names(path: Path) -> set[str]:
    """Return the names on a published test list: text with one name per line, or CSV with a column of names or paths.

    A name keeps its folders.

    Raises:
        DatasetError: the file cannot be read or contains no file name.
    """
    rows = parse_cells(f"--test_names {path}", read_option("--test_names", path))
    names = {forward(cell) for row in rows for cell in row if ENDING.search(cell)}
    if not names:
        raise DatasetError(
            f"--test_names {path} names no image file: it needs one file name (like BLA_00001.jpg) per line"
        )
    return names


def read_labels(name: str, data: bytes) -> list[LabelRow]:
    """Return the rows of a label table: CSV, TSV, JSON lines or Parquet with a column of file names and one of labels.

    Columns are recognized by name (see `COLUMNS`); a table of two columns needs no header.

    Raises:
        DatasetError: it is not such a table.
    """
    reader = _read_arrow if name.lower().endswith((".parquet", ".jsonl")) else _read_text
    header, rows = reader(name, data)
    rows = [row + [""] * (len(header) - len(row)) for row in rows]
    lowered = [cell.lower().strip().replace(" ", "_") for cell in header]
    index = {
        kind: next((lowered.index(n) for n in names if n in lowered), None) for kind, names in COLUMNS.items()
    }
    if index["file"] is None:  # a column of another name whose cells are mostly file names
        counts = [sum(bool(ENDING.search(row[i])) for row in rows) for i in range(len(header))]
        largest = max(counts, default=0)
        index["file"] = counts.index(largest) if largest > len(rows) / 2 else None
    if len(header) == 2 and index["file"] is not None:
        index["label"] = 1 - index["file"]
    for kind in ("file", "label"):
        if index[kind] is None:
            found = ", ".join(f"'{printable(cell)}'" for cell in header[:12])
            raise DatasetError(
                f"{name} has no column of {kind} names (found: {found}): name one '{COLUMNS[kind][0]}'"
            )
    columns = [[row[i] for row in rows] if i is not None else [""] * len(rows) for i in index.values()]
    return [LabelRow(forward(file), *others) for file, *others in zip(*columns, strict=True) if forward(file)]


def _read_text(name: str, data: bytes) -> tuple[list[str], list[list[str]]]:
    if name.lower().endswith((".xlsx", ".xls", ".ods")):
        raise DatasetError(f"{name} is a spreadsheet: save it as CSV")
    rows = parse_cells(name, data)
    if not rows:
        raise DatasetError(f"{name} is empty")
    if len(rows[0]) == 2 and sum(bool(ENDING.search(cell)) for cell in rows[0]) == 1:  # no header
        return ["file", "label"] if ENDING.search(rows[0][0]) else ["label", "file"], rows
    return rows[0], rows[1:]


def _read_arrow(name: str, data: bytes) -> tuple[list[str], list[list[str]]]:
    from pyarrow import ArrowException, json, parquet

    read = json.read_json if name.lower().endswith(".jsonl") else parquet.read_table
    try:
        columns = read(io.BytesIO(data)).to_pydict()
    except (ArrowException, ValueError) as error:
        raise DatasetError(f"{name} cannot be read as a table: {first_line(error)}") from error
    texts = [["" if value is None else str(value) for value in column] for column in columns.values()]
    return list(columns), list(map(list, zip(*texts, strict=True)))
