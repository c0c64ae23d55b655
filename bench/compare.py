"""Interleaved measurements and their table: callables in, `Row`s out.

On a shared machine a single time says little. So the entries of a comparison take turns, `repeats` times; a row keeps the
smallest, median and largest value, and the ratio to the reference is taken turn by turn, so that a slow minute hits both.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
RELEASE = ROOT / "hub_model" / "release"
PAUSE = 0.2  # seconds, after which the threads of the entry before no longer spin


@dataclass(frozen=True)
class Row:
    """One entry of a comparison: `low`, `median`, `high` in `unit`; `ratio` (median, low, high) to the reference, by turn.

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


def seconds(act: Callable[[], object], at_least: float = 0.2) -> float:
    """Seconds of one call of `act`, the mean of as many calls as take `at_least` seconds together.

    The call before them is not timed: it meets the caches that the entry before has left.
    """
    act()
    calls, started = 0, time.perf_counter()
    while True:
        act()
        calls += 1
        passed = time.perf_counter() - started
        if passed >= at_least:
            return passed / calls


def interleave(measures: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Call every measure once a turn, `repeats` turns; each returns its value of that turn."""
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
    """One row for each entry of `values`, against `reference`; more is better for units that end with "/s"."""
    made, more_is_better = [], unit.endswith("/s")
    for name, own in values.items():
        pairs = zip(own, values[reference], strict=True)
        ratios = [mine / its if more_is_better else its / mine for mine, its in pairs]
        ratio = (median(ratios), min(ratios), max(ratios))
        note = (notes or {}).get(name, "")
        made.append(Row(comparison, name, unit, min(own), median(own), max(own), ratio, note))
    return made


def markdown(table: list[Row]) -> str:
    """The rows as Markdown tables, one for each comparison."""
    lines: list[str] = []
    for comparison, group in groupby(table, lambda row: row.comparison):
        lines += [
            f"**{comparison}**",
            "",
            "| | median | min–max | ratio (min–max) | |",
            "|---|---|---|---|---|",
        ]
        for row in group:
            spread = f"{number(row.low)}–{number(row.high)}"
            ratio = "{:.2f} ({:.2f}–{:.2f})".format(*row.ratio)
            lines.append(
                f"| {row.name} | {number(row.median)} {row.unit} | {spread} | {ratio} | {row.note} |"
            )
        lines.append("")
    return "\n".join(lines)


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def run(
    command: list[object],
    environment: Mapping[str, str] | None = None,
    meanwhile: Callable[[int], None] = lambda pid: time.sleep(0.05),
) -> str:
    """Run a command from the project's folder and return its output; `meanwhile(pid)` is called until it ends.

    A command that fails ends the bench with its last error.
    """
    words = [str(word) for word in command]
    whole = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | (environment or {})
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(words, cwd=ROOT, env=whole, stdout=output, stderr=errors) as running:
            while running.poll() is None:
                meanwhile(running.pid)
        for file in (output, errors):
            file.seek(0)
        if running.returncode:
            raise SystemExit(f"error: {' '.join(words)} failed: {errors.read().strip()[-500:]}")
        return output.read()


def sample(data: Path, folder: Path, per_class: int) -> Path:
    """Copies of the first `per_class` images of each class."""
    for source in sorted(path for path in data.iterdir() if path.is_dir()):
        (folder / source.name).mkdir(parents=True)
        for path in sorted(source.glob("*.jpg"))[:per_class]:
            shutil.copyfile(path, folder / source.name / path.name)
    return folder


def evenly(data: Path, count: int) -> list[Path]:
    """`count` images of class folders, evenly spread over them."""
    files = sorted(data.glob("*/*.jpg"))
    return [files[len(files) * i // count] for i in range(count)]
