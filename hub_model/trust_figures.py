"""Figures of trust for the card: from `metrics.json` alone to PNG files.

In: the contents of `metrics.json`. Out: `reliability.png`, `accuracy_against_coverage.png`, and, where they were measured,
`robustness.png`, `out_of_distribution.png` and `size_curve.png`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREY = (
    "#1f5f8b",
    "#d1651b",
    "#8a8f98",
)  # distinguishable without colour vision; also differ in lightness
UNCURED = "none"
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "axes.axisbelow": True}


def draw_reliability(axes: Axes, metrics: dict, split: str = "test") -> None:
    """Accuracy against confidence after temperature scaling; the area of a point is the number of images."""
    figures = metrics["splits"][split]
    points = figures["reliability"]
    largest = max(point["images"] for point in points)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as sure as right")
    axes.scatter(
        [point["confidence"] for point in points],
        [point["accuracy"] for point in points],
        s=[15 + 150 * point["images"] / largest for point in points],
        color=BLUE,
        alpha=0.8,
        label="images of like confidence",
    )
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence (calibrated)", ylabel="accuracy")
    before = f"ECE {figures['ece']:.3f} before, " if "ece" in figures else "ECE "
    axes.set_title(f"Reliability, {split}: {before}{figures['calibrated']['ece']:.3f} after")
    axes.legend(loc="upper left", frameon=False)


def draw_coverage(axes: Axes, metrics: dict, split: str = "test") -> None:
    """Accuracy on the share of images that the model is surest of, with its 95 % interval."""
    points = metrics["splits"][split]["accuracy_against_coverage"]
    coverage = [point["coverage"] for point in points]
    low, high = zip(*(point["interval"] for point in points), strict=True)
    axes.fill_between(coverage, low, high, color=BLUE, alpha=0.2, linewidth=0, label="95 % interval")
    axes.plot(coverage, [point["accuracy"] for point in points], color=BLUE, marker="o", markersize=3)
    axes.set(xlim=(0, 1.02), ylim=(min(low) - 0.03, 1.005), xlabel="share of images answered, surest first")
    axes.set(ylabel="accuracy")
    axes.set_title(f"Accuracy against coverage, {split}")
    axes.legend(loc="lower left", frameon=False)


def draw_robustness(axes: Axes, metrics: dict) -> None:
    """Balanced accuracy under each condition, without a cure and with the one that helps most there."""
    rows = metrics["robustness"]
    places = range(len(rows))
    plain = [row["cures"][UNCURED] for row in rows]
    values = [figures["balanced_accuracy"] for figures in plain]
    error = [[v - f["interval"][0] for v, f in zip(values, plain, strict=True)],
             [f["interval"][1] - v for v, f in zip(values, plain, strict=True)]]  # fmt: skip
    axes.barh(places, values, height=0.6, color=BLUE, xerr=[[max(e, 0) for e in side] for side in error],
              error_kw={"elinewidth": 0.8, "ecolor": "black"}, label="no cure")  # fmt: skip
    best = [_best_cure(row) for row in rows]
    axes.scatter([figure for _, figure in best], places, color=ORANGE, zorder=3, s=22, label="best cure")
    for place, (name, figure) in zip(places, best, strict=True):
        if name != UNCURED:
            axes.annotate(name, (figure, place), (5, 5), textcoords="offset points", fontsize=7, color=ORANGE)
    axes.set_yticks(places, [row["condition"] for row in rows])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="balanced accuracy (95 % interval)")
    axes.set_title("Other stains, cameras and microscopes")
    axes.legend(loc="lower left", frameon=True)


def _best_cure(row: dict) -> tuple[str, float]:
    name = max(row["cures"], key=lambda cure: row["cures"][cure]["balanced_accuracy"])
    return name, row["cures"][name]["balanced_accuracy"]


def draw_out_of_distribution(axes: Axes, metrics: dict) -> None:
    """Scores of test cells and of strangers, as shares of each, and the threshold between them."""
    figures = metrics["out_of_distribution"]
    histogram = figures["histogram"]
    foreign = {kind: counts for kind, counts in histogram["strangers"].items() if "simulated" not in kind}
    strangers = [sum(counts) for counts in zip(*foreign.values(), strict=True)]
    for counts, colour, label in (
        (histogram["cells"], BLUE, "cells of the test split"),
        (strangers, ORANGE, "things that are no cells"),
    ):
        shares = [count / max(sum(counts), 1) for count in counts]
        axes.stairs(shares, histogram["edges"], fill=True, color=colour, alpha=0.6, label=label)
    axes.axvline(figures["threshold"], color="black", linestyle="--", linewidth=1, label="threshold")
    axes.set(xlabel=f"ood_score ({figures['score'].replace('_', ' ')})", ylabel="share")
    axes.set_title(f"{figures['false_alarms']:.1%} of the test cells are turned away")
    axes.legend(frameon=False)


def draw_size_curve(axes: Axes, metrics: dict) -> None:
    """Accuracy on validation against multiply-adds, a point an input size."""
    rows = metrics["size_curve"]
    axes.plot([row["gmacs"] for row in rows], [row["accuracy"] for row in rows], color=BLUE, marker="o")
    for number, row in enumerate(rows):  # below and above in turn, so that close sizes stay apart
        place = (-14, 8) if number % 2 else (4, -13)
        axes.annotate(f"{row['size']} px", (row["gmacs"], row["accuracy"]), place, textcoords="offset points")
    axes.set(xlabel="multiply-adds of one image (10⁹)", ylabel="accuracy (validation)")
    axes.margins(x=0.15, y=0.2)
    axes.set_title("Accuracy against cost")


def draw_trust_figures(metrics: dict, folder: Path) -> list[Path]:
    """Write every figure whose numbers are in `metrics` into `folder`; return the files."""
    split = "test" if "test" in metrics["splits"] else "validation"
    drawers: dict[str, tuple[Callable[[Axes], None], tuple[float, float]]] = {}
    if "calibrated" in metrics["splits"][split]:
        drawers["reliability"] = (lambda axes: draw_reliability(axes, metrics, split), (5, 5))
        drawers["accuracy_against_coverage"] = (lambda axes: draw_coverage(axes, metrics, split), (6, 4))
    for name, draw, size in (
        ("robustness", draw_robustness, (8, 7)),
        ("out_of_distribution", draw_out_of_distribution, (6, 4)),
        ("size_curve", draw_size_curve, (6, 4)),
    ):
        if metrics.get(name):
            drawers[name] = (lambda axes, draw=draw: draw(axes, metrics), size)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        for name, (draw, size) in drawers.items():
            figure = Figure(figsize=size, layout="constrained")
            draw(figure.subplots())
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=110, metadata={"Software": None})
    return written
