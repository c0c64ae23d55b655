"""Interleaved measurements and their tables.

On a shared machine a single timing means little. So the entries of a comparison are measured in turn, for `repeats` rounds. A row
has the smallest, median and largest value, and the ratio to the reference is taken within rounds, so a slow minute affects both.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
RELEASE = ROOT / "hub_model" / "release"
PAUSE = 0.2  # seconds, after which threads of the previous entry no longer spin


@dataclass(frozen=True)
class Row:
    """One entry of a comparison: `low`, `median`, `high` in `unit`; `ratio` to the reference (median, low, high).

    A ratio above 1 is better than the reference, whether the unit is a time or a rate.
    """

    comparison: str
    name: str
    unit: str
    low: float
    median: float
    high: float
    ratio: tuple[float, float, float]
    note: str = ""


def seconds(function: Callable[[], object], at_least: float = 0.2) -> float:
    """Mean seconds per call of `function`, over as many calls as take `at_least` seconds in total.

    A call before them, which is not timed, warms up the caches after the previous entry.
    """
    function()
    calls, elapsed, started = 0, 0.0, time.perf_counter()
    while not calls or elapsed < at_least:
        function()
        calls, elapsed = calls + 1, time.perf_counter() - started
    return elapsed / calls


def interleave(measures: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Call every measure once per round, for `repeats` rounds, and return the values of each."""
    values: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            time.sleep(PAUSE)
            values[name].append(measure())
    return values


def rows(
    comparison: str,
    values: Mapping[str, list[float]],
    unit: str,
    reference: str,
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """One row for each entry of `values`, compared with `reference`; higher is better for units that end with "/s"."""
    table, higher_is_better = [], unit.endswith("/s")
    for name, entry in values.items():
        pairs = zip(entry, values[reference], strict=True)
        ratios = [value / base if higher_is_better else base / value for value, base in pairs]
        ratio = (median(ratios), min(ratios), max(ratios))
        note = (notes or {}).get(name, "")
        table.append(Row(comparison, name, unit, min(entry), median(entry), max(entry), ratio, note))
    return table


def markdown(table: list[Row]) -> str:
    """The rows as Markdown tables, one for each comparison."""
    lines: list[str] = []
    for comparison, group in groupby(table, lambda row: row.comparison):
        lines += [f"**{comparison}**", "", "| | median | min–max | ratio (min–max) | |", "|---" * 5 + "|"]
        for row in group:
            values = f"{number(row.median)} {row.unit} | {number(row.low)}–{number(row.high)}"
            ratio = "{:.2f} ({:.2f}–{:.2f})".format(*row.ratio)
            lines.append(f"| {row.name} | {values} | {ratio} | {row.note} |")
        lines.append("")
    return "\n".join(lines)


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def run(command: list[object], environment: Mapping[str, str] | None = None) -> str:
    """Run a command from the project's root and return its output; if it fails, exit with the end of its errors."""
    words = [str(word) for word in command]
    environment = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | (environment or {})
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(words)} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def sample(data: Path, folder: Path, per_class: int) -> Path:
    """Copy the first `per_class` images of each class into `folder`."""
    for source in sorted(path for path in data.iterdir() if path.is_dir()):
        (folder / source.name).mkdir(parents=True)
        for path in sorted(source.glob("*.jpg"))[:per_class]:
            shutil.copyfile(path, folder / source.name / path.name)
    return folder


def evenly(data: Path, count: int) -> list[Path]:
    """`count` images, evenly spaced over the class folders."""
    files = sorted(data.glob("*/*.jpg"))
    return [files[len(files) * i // count] for i in range(count)]
