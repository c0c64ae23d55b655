"""The CSV files of the dataset repo, and the published test list: rows to text and text to names."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from dataset_script.source import DatasetError, shown

FORMULA = ("=", "+", "-", "@")  # a spreadsheet would run a cell that begins with one of these


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


def read_test_names(path: Path) -> set[str]:
    """Return the names of a published test list: text with a name a line, or CSV with a column of names or paths.

    Folders stay before a name, parted by one slash each.

    Raises:
        DatasetError: the file cannot be read or names no file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        separator = max("\t;,", key=re.sub(r'"[^"\n]*"', "", text).count)
        rows = [
            row
            for line in text.splitlines()
            for row in csv.reader([line], delimiter=separator, skipinitialspace=True)
        ]
    except OSError as error:
        raise DatasetError(f"--test_names {path} cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise DatasetError(f"--test_names {path} is no list of file names: {error}") from error
    cells = (cell.strip().strip("\"'") for row in rows for cell in row)
    names = {
        "/".join(part for part in re.split(r"[/\\]", cell) if part not in ("", "."))
        for cell in cells
        if re.search(r"\.[A-Za-z]\w{1,4}$", cell)
    }
    if not names:
        raise DatasetError(
            f"--test_names {path} names no image file: it needs a file name (like BLA_00001.jpg) a line"
        )
    return names
