"""How well the guarantees of `calibration.json` hold on a split, measured on its logits, with plots and the card's section."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes

from hub_model.evaluation import RESAMPLES, SEED, bootstrap, markdown_table, reported_split, span
from hub_model.figures import BLUE
from hub_model.inference.calibration import softmax
from hub_model.metrics.cell_classification.cell_classification import (
    confidence_bins,
    expected_calibration_error,
    negative_log_likelihood,
)
from hub_model.studies.calibration import CONFIDENCE, LEVELS, SHORTFALL, SURE_ERROR

COVERAGES = tuple(round(0.05 * step, 2) for step in range(1, 21))
SELECTED = 0.7  # the coverage that the card reports


def calibration_metrics(
    logits: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str],
    calibration: dict,
    resamples: int = RESAMPLES,
) -> dict:
    """Calibration metrics of a split for `metrics.json`; deterministic, bit for bit.

    Args:
        logits, labels: [N, C] and int [N] of the split.
        label_names: the classes in column order.
        calibration: the contents of `calibration.json`.
        resamples: bootstrap resamples for the 95 % intervals.

    Returns:
        `calibrated` {log_loss, ece, intervals}, `reliability` [{confidence, accuracy, images}], `conformal`
        {level: {coverage, mean_set_size, empty_sets, one_class, intervals}}, `sure` (see `sure_figures`), and
        `accuracy_against_coverage` [{coverage, accuracy, threshold, interval}]: the accuracy on the fraction of images with
        the highest confidence, and the lowest confidence among them.
    """
    probabilities, n = softmax(logits, calibration["temperature"]["value"]), len(labels)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    selected = np.ceil(np.array(COVERAGES) * n - 1e-9).astype(int).clip(1)  # images, rounded up

    def with_intervals(statistic: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return statistic(np.arange(n)), bootstrap(statistic, n, resamples, SEED).T

    def scalars(i: np.ndarray) -> np.ndarray:
        log_loss = negative_log_likelihood(probabilities[i], labels[i])
        return np.array([log_loss, expected_calibration_error(confidence[i], correct[i])])

    def accuracies(i: np.ndarray) -> np.ndarray:
        return correct[i][np.argsort(-confidence[i], kind="stable")].cumsum()[selected - 1] / selected

    calibrated, intervals = (
        dict(zip(("log_loss", "ece"), values.tolist(), strict=True)) for values in with_intervals(scalars)
    )
    conformal = {}
    for level in LEVELS:
        members = in_sets(probabilities, label_names, calibration, level)
        size = members.sum(axis=1)
        measured, spans = with_intervals(lambda i, members=members: set_figures(members[i], labels[i]))
        conformal[level] = {
            **by_class(measured, label_names),
            "empty_sets": float((size == 0).mean()),
            "one_class": float((size == 1).mean()),
            "intervals": by_class(spans, label_names),
        }
    lowest = np.sort(confidence)[::-1][selected - 1]
    points = (COVERAGES, lowest, *with_intervals(accuracies))
    return {
        "calibrated": calibrated | {"intervals": intervals},
        "reliability": reliability(confidence, correct),
        "conformal": conformal,
        "sure": sure_figures(probabilities, labels, label_names, calibration),
        "accuracy_against_coverage": [
            {"coverage": c, "accuracy": float(a), "threshold": float(t), "interval": interval.tolist()}
            for c, t, a, interval in zip(*points, strict=True)
        ],
    }


def in_sets(probabilities: np.ndarray, names: Sequence[str], calibration: dict, level: str) -> np.ndarray:
    """Boolean [N, C]: which classes are in the conformal set at a level."""
    thresholds = calibration["conformal"][level]["thresholds"]
    return 1 - probabilities <= np.array([thresholds[name] for name in names])


def set_figures(members: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Coverage of each class and of all, then mean set size of each and of all: [2 (C + 1)]; NaN without images."""
    covered, size = members[np.arange(len(labels)), labels], members.sum(axis=1)
    groups = [labels == c for c in range(members.shape[1])] + [np.ones(len(labels), dtype=bool)]
    return np.array([values[g].mean() if g.any() else np.nan for values in (covered, size) for g in groups])


def by_class(values: np.ndarray, names: Sequence[str]) -> dict[str, dict]:
    """The output of `set_figures`, or its intervals, by name: {coverage, mean_set_size}; None without images."""
    plain = [None if np.isnan(value).any() else value.tolist() for value in values]
    halves = {"coverage": plain[: len(names) + 1], "mean_set_size": plain[len(names) + 1 :]}
    return {key: dict(zip([*names, "all"], half, strict=True)) for key, half in halves.items()}


def reliability(confidence: np.ndarray, correct: np.ndarray) -> list[dict]:
    """Mean confidence and accuracy of the images in each non-empty bin of the ECE."""
    bins = confidence_bins(confidence)
    return [
        {
            "confidence": float(confidence[bins == index].mean()),
            "accuracy": float(correct[bins == index].mean()),
            "images": int((bins == index).sum()),
        }
        for index in np.unique(bins)
    ]


def sure_figures(
    probabilities: np.ndarray, labels: np.ndarray, label_names: Sequence[str], calibration: dict
) -> dict[str, dict[str, int]]:
    """How many answers of each class, and of all, are sure, and how many of those are right: {class: {sure, right}}."""
    thresholds = np.array([calibration["sure"]["thresholds"][name] for name in label_names], dtype=float)
    predicted = probabilities.argmax(axis=1)
    sure = probabilities.max(axis=1) >= thresholds[predicted]  # never where the threshold is None, NaN here
    groups = {name: predicted == c for c, name in enumerate(label_names)} | {"all": predicted >= 0}
    return {
        name: {"sure": int((group & sure).sum()), "right": int((group & sure & (predicted == labels)).sum())}
        for name, group in groups.items()
    }


def source_figures(
    logits: np.ndarray, labels: np.ndarray, label_names: Sequence[str], calibration: dict
) -> dict:
    """Calibration metrics on the images of one laboratory: {ece, coverage {class: …}, sure {sure, right}}."""
    probabilities = softmax(logits, calibration["temperature"]["value"])
    covered = in_sets(probabilities, label_names, calibration, LEVELS[-1])
    return {
        "ece": expected_calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels),
        "coverage": {
            label_names[c]: float(covered[labels == c, c].mean()) for c in np.unique(labels).tolist()
        },
        "sure": sure_figures(probabilities, labels, label_names, calibration)["all"],
    }


def reported_metrics(metrics: dict) -> dict:
    """The metrics of the split that card and figures report, with its name as `split`."""
    split = reported_split(metrics)
    return {"split": split, **metrics["splits"][split]}


def figures(metrics: dict) -> dict[str, tuple]:
    """The calibration figures, by file name: draw function, its data, and size in inches."""
    measured = reported_metrics(metrics)
    if "calibrated" not in measured:
        return {}
    return {
        "reliability": (draw_reliability, measured, (5, 5)),
        "accuracy_against_coverage": (draw_coverage, measured, (6, 4)),
    }


def draw_reliability(axes: Axes, measured: dict) -> None:
    """Accuracy against confidence after temperature scaling; the area of a point grows with its number of images."""
    points = measured["reliability"]
    largest = max(point["images"] for point in points)
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="perfect calibration")
    axes.scatter(
        [point["confidence"] for point in points],
        [point["accuracy"] for point in points],
        s=[15 + 150 * point["images"] / largest for point in points],
        color=BLUE,
        alpha=0.8,
        label="bin of confidence",
    )
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence (calibrated)", ylabel="accuracy")
    axes.set_title(
        f"Reliability, {measured['split']}: ECE {measured['ece']:.3f} before, {measured['calibrated']['ece']:.3f} after"
    )
    axes.legend(loc="upper left", frameon=False)


def draw_coverage(axes: Axes, measured: dict) -> None:
    """Accuracy on the fraction of images with the highest confidence, with its 95 % interval."""
    points = measured["accuracy_against_coverage"]
    coverage = [point["coverage"] for point in points]
    low, high = zip(*(point["interval"] for point in points), strict=True)
    axes.fill_between(coverage, low, high, color=BLUE, alpha=0.2, linewidth=0, label="95 % interval")
    axes.plot(coverage, [point["accuracy"] for point in points], color=BLUE, marker="o", markersize=3)
    axes.set(xlim=(0, 1.02), ylim=(min(low) - 0.03, 1.005), xlabel="coverage, most confident first")
    axes.set(ylabel="accuracy")
    axes.set_title(f"Accuracy against coverage, {measured['split']}")
    axes.legend(loc="lower left", frameon=False)


def section(metrics: dict) -> str:
    """The card's section on calibration; empty if it was not measured."""
    measured = reported_metrics(metrics)
    if "conformal" not in measured:
        return ""
    split, conformal, after = measured["split"], measured["conformal"], measured["calibrated"]
    point = min(measured["accuracy_against_coverage"], key=lambda p: abs(p["coverage"] - SELECTED))
    head, rows = ["class"], {name: [name] for name in [*metrics["label_names"], "all"]}
    for level, sets in conformal.items():
        for key, title in (("coverage", "coverage"), ("mean_set_size", "set size")):
            head.append(f"{float(level):.0%} {title}")
            for name, row in rows.items():
                value, interval = sets[key][name], sets["intervals"][key][name]
                row.append("–" if value is None else f"{value:.3f}{span(interval)}")
    sure = [
        [name, str(of["sure"]), f"{of['right'] / of['sure']:.3f}" if of["sure"] else "–"]
        for name, of in measured["sure"].items()
    ]
    before_ece, after_ece = (f"{of['ece']:.3f}{span(of['intervals']['ece'])}" for of in (measured, after))
    return f"""`calibration.json`, fitted on validation, has a temperature for the logits and thresholds for conformal sets: with
p = softmax(logits / temperature), class c is in the set iff 1 − p_c ≤ its threshold. The thresholds are those of the laboratory
that needs the largest ones, raised until, with {CONFIDENCE:.0%} confidence, no class's coverage is more than
{100 * SHORTFALL:.0f} percentage points below the nominal level. On {split}, the expected calibration error (ECE) falls from
{before_ece} to {after_ece}; accuracy is {point["accuracy"]:.3f}{span(point["interval"])} on the
{point["coverage"]:.0%} of images with the highest confidence.

{markdown_table(head, list(rows.values()))}

A prediction is called sure if, judging by the validation images of each laboratory, at most {SURE_ERROR:.0%} of equally confident
predictions of its class are expected to be wrong. If there are too few images to tell, no prediction of that class is called
sure. On {split}:

{markdown_table(["predicted class", "sure", "of these correct"], sure)}

![reliability](figures/reliability.png)
![accuracy against coverage](figures/accuracy_against_coverage.png)"""
