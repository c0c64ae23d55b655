"""How well the promises of `calibration.json` hold on a split: logits in, figures, plots and the card's section out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from hub_model.evaluation import RESAMPLES, SEED, bootstrap, markdown_table, span
from hub_model.figures import BLUE
from hub_model.inference.calibration import softmax
from hub_model.metrics.cell_classification.cell_classification import (
    ECE_BINS,
    expected_calibration_error,
    negative_log_likelihood,
)
from hub_model.studies.calibration import CONFIDENCE, LEVELS, SHORTFALL, SURE_ERROR

COVERAGES = tuple(round(0.05 * step, 2) for step in range(1, 21))
SELECTED = 0.7  # the coverage that the card names


def calibration_figures(
    logits: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str],
    calibration: dict,
    resamples: int = RESAMPLES,
) -> dict:
    """What one split's entry of `metrics.json` says of calibration; the same input gives the same figures to the last digit.

    Args:
        logits, labels: [N, C] and int [N] of the split.
        label_names: the classes in the order of the columns.
        calibration: the contents of `calibration.json`.
        resamples: bootstrap resamples behind the 95 % intervals.

    Returns:
        `calibrated` {log_loss, ece, intervals}, `reliability` [{confidence, accuracy, images}], `conformal`
        {level: {coverage, mean_set_size, empty_sets, one_class, intervals}}, `sure` (see `sure_figures`), and
        `accuracy_against_coverage` [{coverage, accuracy, threshold, interval}]: the accuracy on the share of images with the
        highest confidence, and the lowest confidence among them.
    """
    probabilities = softmax(logits, calibration["temperature"]["value"])
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    members = {level: in_sets(probabilities, label_names, calibration, level) for level in LEVELS}

    def measure(i: np.ndarray) -> dict[str, np.ndarray]:
        log_loss = negative_log_likelihood(probabilities[i], labels[i])
        scalars = np.array([log_loss, expected_calibration_error(confidence[i], correct[i])])
        accuracies = correct[i][np.argsort(-confidence[i], kind="stable")].cumsum()
        kept = images_kept(len(labels)) - 1
        found = {"scalars": scalars, "accuracies": accuracies[kept] / (kept + 1)}
        return found | {level: set_figures(of[i], labels[i]) for level, of in members.items()}

    found = measure(np.arange(len(labels)))
    spans = bootstrap(lambda i: np.concatenate(list(measure(i).values())), len(labels), resamples, SEED).T
    cuts = np.cumsum([len(part) for part in found.values()])[:-1]
    intervals = dict(zip(found, np.split(spans, cuts), strict=True))
    keys = ("log_loss", "ece")
    calibrated = dict(zip(keys, found["scalars"].tolist(), strict=True))
    calibrated["intervals"] = dict(zip(keys, intervals["scalars"].tolist(), strict=True))
    lowest = np.sort(confidence)[::-1][images_kept(len(labels)) - 1]
    points = (COVERAGES, found["accuracies"].tolist(), lowest.tolist(), intervals["accuracies"].tolist())
    return {
        "calibrated": calibrated,
        "reliability": reliability(confidence, correct),
        "conformal": {
            level: {
                **by_class(found[level], label_names),
                "empty_sets": float((of.sum(axis=1) == 0).mean()),
                "one_class": float((of.sum(axis=1) == 1).mean()),
                "intervals": by_class(intervals[level], label_names),
            }
            for level, of in members.items()
        },
        "sure": sure_figures(probabilities, labels, label_names, calibration),
        "accuracy_against_coverage": [
            dict(zip(("coverage", "accuracy", "threshold", "interval"), point, strict=True))
            for point in zip(*points, strict=True)
        ],
    }


def in_sets(probabilities: np.ndarray, names: Sequence[str], calibration: dict, level: str) -> np.ndarray:
    """Membership [N, C] of each class in the conformal set of a level."""
    thresholds = calibration["conformal"][level]["thresholds"]
    return 1 - probabilities <= np.array([thresholds[name] for name in names])


def images_kept(images: int) -> np.ndarray:
    """How many of the images are kept at each of `COVERAGES`: the share of them, rounded up."""
    return np.maximum(np.ceil(np.array(COVERAGES) * images - 1e-9).astype(int), 1)


def set_figures(members: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Coverage of each class and of all, then mean set size of each and of all: [2 (C + 1)]; NaN without images."""
    covered, size = members[np.arange(len(labels)), labels], members.sum(axis=1)
    groups = [labels == c for c in range(members.shape[1])] + [np.ones(len(labels), dtype=bool)]
    return np.array([values[g].mean() if g.any() else np.nan for values in (covered, size) for g in groups])


def by_class(values: np.ndarray, names: Sequence[str]) -> dict[str, dict]:
    """What `set_figures` gives, or its intervals, by name: {coverage, mean_set_size}; None without images."""
    plain = [None if np.isnan(value).any() else value.tolist() for value in values]
    halves = {"coverage": plain[: len(names) + 1], "mean_set_size": plain[len(names) + 1 :]}
    return {key: dict(zip([*names, "all"], half, strict=True)) for key, half in halves.items()}


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = ECE_BINS) -> list[dict]:
    """Mean confidence and accuracy of the images in each bin of confidence that has any, as the ECE bins them."""
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    groups = [index == number for number in np.unique(index)]
    return [
        {
            "confidence": float(confidence[group].mean()),
            "accuracy": float(correct[group].mean()),
            "images": int(group.sum()),
        }
        for group in groups
    ]


def sure_figures(
    probabilities: np.ndarray, labels: np.ndarray, label_names: Sequence[str], calibration: dict
) -> dict[str, dict[str, int]]:
    """How many answers of each class, and of all, are sure, and how many of those are right: {class: {sure, right}}."""
    limits = [calibration["sure"]["thresholds"][name] for name in label_names]
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    sure = confidence >= np.array([math.inf if limit is None else limit for limit in limits])[predicted]
    groups = {name: predicted == c for c, name in enumerate(label_names)} | {
        "all": np.ones(len(labels), bool)
    }
    return {
        name: {"sure": int((group & sure).sum()), "right": int((group & sure & (predicted == labels)).sum())}
        for name, group in groups.items()
    }


def source_figures(
    logits: np.ndarray, labels: np.ndarray, label_names: Sequence[str], calibration: dict
) -> dict:
    """What holds of the promises for the images of one laboratory: {ece, coverage {class: …}, sure {sure, right}}."""
    probabilities = softmax(logits, calibration["temperature"]["value"])
    covered = in_sets(probabilities, label_names, calibration, LEVELS[-1])
    return {
        "ece": expected_calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels),
        "coverage": {
            label_names[c]: float(covered[labels == c, c].mean()) for c in np.unique(labels).tolist()
        },
        "sure": sure_figures(probabilities, labels, label_names, calibration)["all"],
    }


def figures(metrics: dict) -> dict[str, tuple]:
    """What there is to draw of calibration, by file name: the function, what it draws, and inches."""
    split = reported_split(metrics)
    if "calibrated" not in metrics["splits"][split]:
        return {}
    part = {"split": split, **metrics["splits"][split]}
    return {
        "reliability": (draw_reliability, part, (5, 5)),
        "accuracy_against_coverage": (draw_coverage, part, (6, 4)),
    }


def reported_split(metrics: dict) -> str:
    """The split that card and figures report on."""
    return "test" if "test" in metrics["splits"] else "validation"


def draw_reliability(axes: Axes, part: dict) -> None:
    """Accuracy against confidence after temperature scaling; the area of a point is the number of images."""
    points = part["reliability"]
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
        f"Reliability, {part['split']}: ECE {part['ece']:.3f} before, {part['calibrated']['ece']:.3f} after"
    )
    axes.legend(loc="upper left", frameon=False)


def draw_coverage(axes: Axes, part: dict) -> None:
    """Accuracy on the share of images with the highest confidence, with its 95 % interval."""
    points = part["accuracy_against_coverage"]
    coverage = [point["coverage"] for point in points]
    low, high = zip(*(point["interval"] for point in points), strict=True)
    axes.fill_between(coverage, low, high, color=BLUE, alpha=0.2, linewidth=0, label="95 % interval")
    axes.plot(coverage, [point["accuracy"] for point in points], color=BLUE, marker="o", markersize=3)
    axes.set(xlim=(0, 1.02), ylim=(min(low) - 0.03, 1.005), xlabel="coverage, most confident first")
    axes.set(ylabel="accuracy")
    axes.set_title(f"Accuracy against coverage, {part['split']}")
    axes.legend(loc="lower left", frameon=False)


def section(metrics: dict) -> str:
    """The card's text on calibration; empty when it was not measured."""
    split = reported_split(metrics)
    part = metrics["splits"][split]
    if "conformal" not in part:
        return ""
    after = part["calibrated"]
    point = min(part["accuracy_against_coverage"], key=lambda p: abs(p["coverage"] - SELECTED))
    keys, head = ("coverage", "mean_set_size"), ["class"]
    for level in part["conformal"]:
        head += [f"{float(level):.0%} {what}" for what in ("coverage", "set size")]
    rows = []
    for name in [*metrics["label_names"], "all"]:
        found = [
            (of[key][name], of["intervals"][key][name]) for of in part["conformal"].values() for key in keys
        ]
        rows.append(
            [name, *("–" if value is None else f"{value:.3f}{span(limits)}" for value, limits in found)]
        )
    sure = [
        [name, str(of["sure"]), f"{of['right'] / of['sure']:.3f}" if of["sure"] else "–"]
        for name, of in part["sure"].items()
    ]
    before_ece, after_ece = (f"{of['ece']:.3f}{span(of['intervals']['ece'])}" for of in (part, after))
    return f"""`calibration.json`, fitted on validation, holds a temperature, by which the logits are divided, and thresholds for
sets of classes: with p = softmax(logits / temperature), class c belongs to the set iff 1 − p_c ≤ its threshold. They are those
of the laboratory that needs the most caution, and raised until one can be {CONFIDENCE:.0%} confident that no class's coverage is
more than {100 * SHORTFALL:.0f} points below its level. Measured on {split}: the expected calibration error (ECE) falls from
{before_ece} to {after_ece}; accuracy is {point["accuracy"]:.3f}{span(point["interval"])} on the
{point["coverage"]:.0%} of images with the highest confidence.

{markdown_table(head, rows)}

An answer is called sure where, by the validation images of each laboratory, at most {SURE_ERROR:.0%} of the answers of its class
that are as confident are expected to be wrong. Where they are too few to tell, no answer of that class is called sure.
On {split}:

{markdown_table(["answer", "sure", "of these right"], sure)}

![reliability](figures/reliability.png)
![accuracy against coverage](figures/accuracy_against_coverage.png)"""
