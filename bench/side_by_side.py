"""Contestants measured in turns, and the table of them: callables in, `Row`s out.

On a shared machine a single time says little. So the contestants of a comparison take turns, `repeats` times; a row keeps the
smallest, median and largest value, and the ratio to the reference is taken turn by turn, so that a slow minute hits both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """One contestant of a comparison: `low`, `median`, `high` in `unit`; `ratio` (median, low, high) to the reference, by turn.

    A ratio above 1 is better than the reference, whether the unit is a time or a rate.
    """

    comparison: str
    contestant: str
    unit: str
    low: float
    median: float
    high: float
    ratio: tuple[float, float, float] | None = None
    note: str = ""

    def to_dict(self) -> dict:
        return asdict(self)


def seconds(act: Callable[[], object], at_least: float = 0.2) -> float:
    """Seconds of one call of `act`, the mean of as many calls as take `at_least` seconds together."""
    calls, started = 0, time.perf_counter()
    while True:
        act()
        calls += 1
        passed = time.perf_counter() - started
        if passed >= at_least:
            return passed / calls


def in_turns(contestants: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Call every contestant once a turn, `repeats` turns; each returns its value of that turn."""
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, measure in contestants.items():
            values[name].append(measure())
    return values


def rows(
    comparison: str,
    values: Mapping[str, list[float]],
    unit: str,
    reference: str,
    more_is_better: bool,
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """One row a contestant, in the order of `values`, each against `reference`."""
    made = []
    for name, own in values.items():
        pairs = zip(own, values[reference], strict=True)
        ratios = [mine / its if more_is_better else its / mine for mine, its in pairs]
        made.append(
            Row(
                comparison=comparison,
                contestant=name,
                unit=unit,
                low=min(own),
                median=statistics.median(own),
                high=max(own),
                ratio=(statistics.median(ratios), min(ratios), max(ratios)),
                note=(notes or {}).get(name, ""),
            )
        )
    return made


def markdown(table: list[Row]) -> str:
    """The rows as Markdown tables, one a comparison."""
    lines: list[str] = []
    for comparison in dict.fromkeys(row.comparison for row in table):
        lines += [
            f"**{comparison}**",
            "",
            "| | median | min–max | ratio (min–max) | |",
            "|---|---|---|---|---|",
        ]
        for row in (row for row in table if row.comparison == comparison):
            ratio = "" if row.ratio is None else "{:.2f} ({:.2f}–{:.2f})".format(*row.ratio)
            spread = f"{number(row.low)}–{number(row.high)}"
            lines.append(
                f"| {row.contestant} | {number(row.median)} {row.unit} | {spread} | {ratio} | {row.note} |"
            )
        lines.append("")
    return "\n".join(lines)


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
