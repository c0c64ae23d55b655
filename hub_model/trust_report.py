"""How far the model's certainty can be trusted: measured on a split, from its logits and `calibration.json` alone.

In: logits, labels and the contents of `calibration.json`. Out: the keys `calibrated`, `reliability`, `conformal`
and `accuracy_against_coverage` of that split in `metrics.json`, each figure with a 95 % bootstrap interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hub_model.calibration import check_logits
from hub_model.contract import malformed_as_error
from hub_model.evaluation import RESAMPLES, SEED, bootstrap
from hub_model.inference.calibration import softmax
from hub_model.inference.errors import RepoError
from hub_model.inference.model_repo import read_json
from hub_model.metrics.cell_classification.cell_classification import (
    ECE_BINS,
    expected_calibration_error,
    negative_log_likelihood,
)

COVERAGES = tuple(round(0.05 * step, 2) for step in range(1, 21))


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


def surest(confidence: np.ndarray, coverage: float) -> np.ndarray:
    """Indices of the ceil(coverage · N) images with the highest confidence [N], surest first."""
    kept = max(1, math.ceil(coverage * len(confidence) - 1e-9))
    return np.argsort(-confidence, kind="stable")[:kept]


def _selective_accuracies(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    return np.array([correct[surest(confidence, coverage)].mean() for coverage in COVERAGES])


def _set_figures(members: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Coverage of each class and of all, then mean set size of each and of all: [2 (C + 1)]; NaN without images."""
    covered, size = members[np.arange(len(labels)), labels], members.sum(axis=1)
    groups = [labels == c for c in range(members.shape[1])] + [np.ones(len(labels), dtype=bool)]
    return np.array([values[g].mean() if g.any() else np.nan for values in (covered, size) for g in groups])


def _plain(values: np.ndarray) -> list:
    """Python numbers, None for NaN."""
    return [None if np.isnan(value).any() else value.tolist() for value in np.asarray(values)]


def _conformal_report(
    probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str], thresholds: dict, resamples: int
) -> dict:
    members = 1 - probabilities <= np.array([thresholds[name] for name in names])
    figures = _plain(_set_figures(members, labels))
    spans = bootstrap(lambda i: _set_figures(members[i], labels[i]), len(labels), resamples, SEED)
    intervals, keys = _plain(spans.T), [*names, "all"]
    half = len(keys)
    return {
        "coverage": dict(zip(keys, figures[:half], strict=True)),
        "mean_set_size": dict(zip(keys, figures[half:], strict=True)),
        "empty_sets": float((members.sum(axis=1) == 0).mean()),
        "one_class": float((members.sum(axis=1) == 1).mean()),
        "intervals": {
            "coverage": dict(zip(keys, intervals[:half], strict=True)),
            "mean_set_size": dict(zip(keys, intervals[half:], strict=True)),
        },
    }


def trust_figures(
    logits: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str],
    calibration: dict,
    resamples: int = RESAMPLES,
) -> dict:
    """The trust keys of one split of `metrics.json`; the same input gives the same figures to the last digit.

    Args:
        logits, labels: [N, C] and int [N] of the split.
        label_names: the classes in the order of the columns.
        calibration: the contents of `calibration.json`.
        resamples: bootstrap resamples behind the intervals.

    Returns:
        `calibrated` {log_loss, ece, intervals}, `reliability` [{confidence, accuracy, images}], `conformal`
        {level: {coverage, mean_set_size, empty_sets, one_class, intervals}}, and `accuracy_against_coverage`
        [{coverage, accuracy, threshold, interval}]: the accuracy on the share of images with the highest
        confidence, and the lowest confidence among them.
    """
    logits, labels = check_logits(logits, labels, label_names)
    probabilities = softmax(logits, calibration["temperature"]["value"])
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels

    def scalars(i: np.ndarray) -> np.ndarray:
        ece = expected_calibration_error(confidence[i], correct[i])
        return np.array([negative_log_likelihood(probabilities[i], labels[i]), ece])

    everyone = np.arange(len(labels))
    log_loss, ece = scalars(everyone).tolist()
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
            level: _conformal_report(probabilities, labels, label_names, entry["thresholds"], resamples)
            for level, entry in calibration["conformal"].items()
        },
        "accuracy_against_coverage": [
            {
                "coverage": coverage,
                "accuracy": float(selective[k]),
                "threshold": float(confidence[surest(confidence, coverage)[-1]]),
                "interval": selective_spans[k],
            }
            for k, coverage in enumerate(COVERAGES)
        ],
    }


def read_calibration(folder: Path) -> dict:
    """The contents of `calibration.json`. Raises RepoError when it is not there."""
    path = folder / "calibration.json"
    if not path.is_file():
        raise RepoError(f"{folder} has no calibration.json: run `python -m hub_model calibrate` first")
    return read_json(path)


def read_temperature(folder: Path) -> float:
    """The temperature in `calibration.json`. Raises RepoError when there is none, or none above 0."""
    path, calibration = folder / "calibration.json", read_calibration(folder)
    with malformed_as_error(path):
        temperature = float(calibration["temperature"]["value"])
    if not 0 < temperature < math.inf:
        raise RepoError(f"{path} has the temperature {temperature}: it must be a finite number above 0")
    return temperature
