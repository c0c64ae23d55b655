"""Temperature, conformal sets, sure answers and confusion of a model, and how well they hold: from logits alone.

In: `logits_validation.parquet` of a run folder or model repo. Out: its `calibration.json`, which `hub_model.inference` applies.
With p = softmax(logits / T), class c belongs to the set of a level iff 1 - p_c <= its threshold, and an answer is sure iff its
p is at least the class's. What is promised is to hold in every laboratory: where the logits name their sources, the temperature
and each threshold are those of the laboratory that needs the most caution. Nothing is fitted on `test`; `calibration_figures`
measures what holds there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from scipy.optimize import minimize_scalar
from scipy.stats import beta

from hub_model.contract import CALIBRATION, CONFIG, read_logits
from hub_model.evaluation import RESAMPLES, SEED, bootstrap
from hub_model.figures import BLUE
from hub_model.inference.calibration import conformal_threshold, softmax
from hub_model.inference.counts import confusion_of
from hub_model.inference.errors import RepoError
from hub_model.inference.model_repo import read_config, read_json
from hub_model.metrics.cell_classification.cell_classification import (
    ECE_BINS,
    expected_calibration_error,
    negative_log_likelihood,
)

SCHEMA = 2
SURE_ERROR = 0.03  # share of sure answers that may be wrong
LEVELS = ("0.90", "0.95")
SHORTFALL, CONFIDENCE = 0.02, 0.95  # a class's coverage is at least the level less 0.02, with this confidence
TEMPERATURES = (0.05, 20.0)  # the range that is searched
COVERAGES = tuple(round(0.05 * step, 2) for step in range(1, 21))
SELECTED = 0.7  # the coverage that the card names


def add_command(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "calibrate", help="fit temperature, conformal sets and sure answers to the validation logits"
    )
    command.add_argument("folder", type=Path, help="run folder or model repo folder")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write `calibration.json` and print what is in it."""
    calibration = calibrate_folder(arguments.folder)
    print(f"temperature {calibration['temperature']['value']:.4f} (fitted on validation)")
    for level, entry in calibration["conformal"].items():
        limits = ", ".join(f"{name} {limit:.4f}" for name, limit in entry["thresholds"].items())
        print(f"{level}: 1 - p <= {limits}")
    return 0


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature, 0.05…20, with the least log loss (Guo et al. 2017, section 4.2).

    The log loss is convex in 1/T, so the bounded search over ln T finds its only minimum.
    """
    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(softmax(logits, math.exp(log_t)), labels),
        bounds=tuple(math.log(t) for t in TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(math.exp(found.x))


def groups_of(sources: Sequence[str] | None, images: int) -> list[np.ndarray]:
    """Boolean masks [N]: all images, and those of each laboratory where there are several."""
    names = np.unique(sources) if sources is not None else ()
    apart = [np.asarray(sources) == name for name in names] if len(names) > 1 else []
    return [np.ones(images, dtype=bool), *apart]


def assured_threshold(scores: np.ndarray, level: float) -> float:
    """The conformal threshold of the level, raised until one can be confident of it; inf where the scores are too few.

    Over calibration sets of n scores, the coverage of the k-th smallest is distributed as Beta(k, n + 1 - k) (Vovk 2012). Its
    mean is the level, but with 100 images of a class one set in six covers less than the level minus 0.02.
    """
    n, threshold = len(scores), conformal_threshold(scores, level)
    ranks = np.arange(1, n + 1)
    assured = beta.ppf(1 - CONFIDENCE, ranks, n + 1 - ranks) >= level - SHORTFALL
    return max(threshold, float(np.sort(scores)[assured.argmax()])) if assured.any() else math.inf


def fit_conformal(
    probabilities: np.ndarray, labels: np.ndarray, level: float, sources: Sequence[str] | None = None
) -> np.ndarray:
    """Thresholds [C] on 1 - p_c: for each class the larger of its own (Mondrian, i.e. class-conditional) and that of all.

    probabilities: calibrated, [N, C]; labels: int [N]; level: the share of each class that is to be covered, in each of the
    `sources` [N] that has enough images of it. A threshold below that of all images is luck more often than an easy class,
    where a class has few; the larger one keeps the guarantee. A class with too few images for the level gets 1, which lets it
    into every set.
    """
    scores = 1 - probabilities[np.arange(len(labels)), labels]
    groups = groups_of(sources, len(labels))

    def threshold(images: np.ndarray) -> float:
        found = [assured_threshold(scores[group & images], level) for group in groups]
        return max([found[0], *(limit for limit in found if limit < math.inf)])

    pooled = threshold(np.ones(len(labels), dtype=bool))
    own = [threshold(labels == c) for c in range(probabilities.shape[1])]
    return np.clip(own, pooled, 1.0) if pooled < 1 else np.ones(len(own))


def sure_threshold(confidence: np.ndarray, correct: np.ndarray, error: float) -> float:
    """The least confidence from which answers [N] are sure: wrong with a chance of at most `error`; inf for never.

    Of the answers from a threshold on, a new one is wrong with a chance of about (wrong + 1) / (answers + 1), the knockoff+
    bound (Barber & Candès 2015; Jin & Candès 2023).
    """
    order = np.argsort(-confidence, kind="stable")
    bound = (np.cumsum(~correct[order]) + 1) / (np.arange(len(order)) + 2)
    held = np.r_[bound <= error, False]
    first = held.argmax()  # the bound holds from there ...
    last = first + held[first:].argmin() - 1  # ... to here; where it holds again later is luck
    return float(confidence[order[last]]) if held[first] else math.inf


def fit_sure(
    probabilities: np.ndarray,
    labels: np.ndarray,
    error: float = SURE_ERROR,
    sources: Sequence[str] | None = None,
) -> list[float | None]:
    """For each class the least probability from which its answers are sure (see `sure_threshold`); None for never.

    That of all images, or of the laboratory where it is highest, of those of the `sources` [N] with enough answers to tell.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    everywhere, *apart = groups_of(sources, len(labels))
    thresholds: list[float | None] = []
    for c in range(probabilities.shape[1]):
        given = predicted == c
        groups = [
            everywhere & given,
            *(group & given for group in apart if (group & given).sum() >= 1 / error),
        ]
        highest = max(sure_threshold(confidence[group], labels[group] == c, error) for group in groups)
        thresholds.append(None if highest == math.inf else highest)
    return thresholds


def fit_calibration(
    logits: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str],
    sources: Sequence[str] | None = None,
) -> dict:
    """The contents of `calibration.json` without the out-of-distribution part.

    logits: [N, C] of `validation`; labels: int [N]; label_names: the C classes in the order of the columns; sources: the
    laboratory of each image, where there are several.

    Raises RepoError: shapes that do not fit, no image, or a value that is not finite.
    """
    logits, labels = check_logits(logits, labels, label_names)
    temperature = max(
        fit_temperature(logits[group], labels[group]) for group in groups_of(sources, len(labels))
    )
    probabilities = softmax(logits, temperature)
    shares = (
        np.bincount(labels, minlength=len(label_names)) + 0.5
    )  # a class without images is rare, not impossible
    confusion = confusion_of(probabilities, np.eye(len(label_names))[labels])
    conformal = {}
    for level in LEVELS:
        thresholds = fit_conformal(probabilities, labels, float(level), sources)
        conformal[level] = {"thresholds": by_name(label_names, thresholds), "fitted_on": "validation"}
    sure = fit_sure(probabilities, labels, sources=sources)
    return {
        "schema": SCHEMA,
        "prior": {"shares": by_name(label_names, shares / shares.sum()), "fitted_on": "validation"},
        "temperature": {"value": temperature, "fitted_on": "validation"},
        "conformal": conformal,
        "sure": {
            "thresholds": dict(zip(label_names, sure, strict=True)),
            "error": SURE_ERROR,
            "fitted_on": "validation",
        },
        "confusion": {
            "answers": dict(zip(label_names, confusion.astype(int).tolist(), strict=True)),
            "fitted_on": "validation",
        },
    }


def by_name(label_names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Values [C] as {class: number}."""
    return {name: float(value) for name, value in zip(label_names, values, strict=True)}


def check_logits(
    logits: np.ndarray, labels: np.ndarray, label_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Logits as float64 [N, C] and labels as int64 [N]. Raises RepoError when they do not fit together."""
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if logits.ndim != 2 or logits.shape[0] == 0 or logits.shape[1] != len(label_names):
        raise RepoError(f"logits must be images x {len(label_names)} classes, not of shape {logits.shape}")
    if labels.shape != (len(logits),) or labels.min() < 0 or labels.max() >= len(label_names):
        raise RepoError(f"there must be one label of 0…{len(label_names) - 1} for each row of logits")
    if not np.isfinite(logits).all():
        raise RepoError("the logits hold a value that is not finite")
    return logits, labels


def read_label_names(folder: Path) -> list[str]:
    """The classes, in the order of the logits, from the `config.json` of a run folder or model repo."""
    if names := read_config(folder / CONFIG, str(folder)).label_names:
        return list(names)
    raise RepoError(f"{folder / CONFIG} has no list 'label_names' of 2 or more different names")


def write_json(path: Path, value: dict) -> None:
    """Write JSON whole or not at all. Raises RepoError for a number that is not finite."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:
        raise RepoError(f"{path} is not written: a number in it is not finite") from None
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, "utf-8")
    unfinished.replace(path)


def calibrate_folder(folder: Path) -> dict:
    """Fit on `folder/logits_validation.parquet`, write `folder/calibration.json`, and return its contents.

    An out-of-distribution part that is already there stays: it is the `ood` study's to write.
    """
    label_names = read_label_names(folder)
    logits = read_logits(folder / "logits_validation.parquet", len(label_names))
    path = folder / CALIBRATION
    before = read_json(path) if path.is_file() else {}
    calibration = fit_calibration(logits.values, logits.labels, label_names, logits.sources)
    calibration |= {key: before[key] for key in ("out_of_distribution", "appearance") if key in before}
    write_json(path, calibration)
    return calibration


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = ECE_BINS) -> list[dict]:
    """Mean confidence and accuracy of the images in each bin of confidence that has any, as the ECE bins them."""
    index = np.clip(np.ceil(np.asarray(confidence) * bins).astype(int) - 1, 0, bins - 1)
    return [
        {
            "confidence": float(confidence[index == number].mean()),
            "accuracy": float(np.mean(correct[index == number])),
            "images": int((index == number).sum()),
        }
        for number in np.unique(index)
    ]


def most_confident(confidence: np.ndarray, coverage: float) -> np.ndarray:
    """Indices of the ceil(coverage · N) images with the highest confidence [N], highest first."""
    kept = max(1, math.ceil(coverage * len(confidence) - 1e-9))
    return np.argsort(-confidence, kind="stable")[:kept]


def _selective_accuracies(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    return np.array([correct[most_confident(confidence, coverage)].mean() for coverage in COVERAGES])


def _set_figures(members: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Coverage of each class and of all, then mean set size of each and of all: [2 (C + 1)]; NaN without images."""
    covered, size = members[np.arange(len(labels)), labels], members.sum(axis=1)
    groups = [labels == c for c in range(members.shape[1])] + [np.ones(len(labels), dtype=bool)]
    return np.array([values[g].mean() if g.any() else np.nan for values in (covered, size) for g in groups])


def _conformal_figures(members: np.ndarray, labels: np.ndarray, names: Sequence[str], resamples: int) -> dict:
    """Coverage and set size of sets with these members [N, C], by class, with intervals; None without images."""
    keys = [*names, "all"]
    spans = bootstrap(lambda i: _set_figures(members[i], labels[i]), len(labels), resamples, SEED).T

    def named(values: np.ndarray) -> dict:
        plain = [None if np.isnan(value).any() else value.tolist() for value in values]
        parts = {"coverage": plain[: len(keys)], "mean_set_size": plain[len(keys) :]}
        return {key: dict(zip(keys, part, strict=True)) for key, part in parts.items()}

    sizes = members.sum(axis=1)
    return {
        **named(_set_figures(members, labels)),
        "empty_sets": float((sizes == 0).mean()),
        "one_class": float((sizes == 1).mean()),
        "intervals": named(spans),
    }


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
    thresholds = calibration["conformal"][LEVELS[-1]]["thresholds"]
    covered = 1 - probabilities <= np.array([thresholds[name] for name in label_names])
    return {
        "ece": expected_calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels),
        "coverage": {
            label_names[c]: float(covered[labels == c, c].mean()) for c in np.unique(labels).tolist()
        },
        "sure": sure_figures(probabilities, labels, label_names, calibration)["all"],
    }


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
    logits, labels = check_logits(logits, labels, label_names)
    probabilities = softmax(logits, calibration["temperature"]["value"])
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels

    def scalars(i: np.ndarray) -> np.ndarray:
        ece = expected_calibration_error(confidence[i], correct[i])
        return np.array([negative_log_likelihood(probabilities[i], labels[i]), ece])

    log_loss, ece = scalars(np.arange(len(labels))).tolist()
    spans = bootstrap(scalars, len(labels), resamples, SEED).T.tolist()
    selective = _selective_accuracies(confidence, correct)
    selective_spans = bootstrap(
        lambda i: _selective_accuracies(confidence[i], correct[i]), len(labels), resamples, SEED
    ).T.tolist()
    return {
        "calibrated": {
            "log_loss": log_loss,
            "ece": ece,
            "intervals": {"log_loss": spans[0], "ece": spans[1]},
        },
        "reliability": reliability(confidence, correct),
        "conformal": {
            level: _conformal_figures(
                1 - probabilities <= np.array([entry["thresholds"][name] for name in label_names]),
                labels,
                label_names,
                resamples,
            )
            for level, entry in calibration["conformal"].items()
        },
        "sure": sure_figures(probabilities, labels, label_names, calibration),
        "accuracy_against_coverage": [
            {
                "coverage": coverage,
                "accuracy": float(selective[k]),
                "threshold": float(confidence[most_confident(confidence, coverage)[-1]]),
                "interval": selective_spans[k],
            }
            for k, coverage in enumerate(COVERAGES)
        ],
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


def span(interval: list | None) -> str:
    """An interval as the card writes it behind a figure."""
    return "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """Cells as a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])
