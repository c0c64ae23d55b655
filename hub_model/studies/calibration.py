"""Fit temperature, conformal sets, sure answers and the confusion matrix of a model to its validation logits.

Reads `logits_validation.parquet` of a run folder or model repo and writes its `calibration.json`, for `hub_model.inference`.
With p = softmax(logits / T), class c is in the prediction set at a level iff 1 - p_c <= its threshold, and an answer is sure iff
its p reaches the threshold of the predicted class. The guarantees are meant to hold in every laboratory: where the logits have a
`source` column, the temperature and each threshold are the most conservative over laboratories. Nothing is fitted on `test`;
`calibration_report` measures the guarantees there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import beta

from hub_model.contract import CALIBRATION, CONFIG, read_logits
from hub_model.inference.calibration import conformal_threshold, softmax
from hub_model.inference.counts import confusion_of
from hub_model.inference.errors import RepoError
from hub_model.inference.model_repo import read_config, read_json
from hub_model.metrics.cell_classification.cell_classification import negative_log_likelihood

SCHEMA = 2
SURE_ERROR = 0.03  # maximum error rate of sure answers
LEVELS = ("0.90", "0.95")
SHORTFALL, CONFIDENCE = 0.02, 0.95  # coverage of a class is at least level - 0.02, with this confidence
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


def add_command(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "calibrate", help="fit temperature, conformal sets and sure answers to the validation logits"
    )
    command.add_argument("folder", type=Path, help="run folder or model repo folder")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write `calibration.json` and print temperature and conformal thresholds."""
    calibration = calibrate_folder(arguments.folder)
    print(f"temperature {calibration['temperature']['value']:.4f} (fitted on validation)")
    for level, entry in calibration["conformal"].items():
        thresholds = ", ".join(f"{name} {value:.4f}" for name, value in entry["thresholds"].items())
        print(f"{level}: 1 - p <= {thresholds}")
    return 0


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature, 0.05…20, that minimizes the log loss (Guo et al. 2017, section 4.2).

    The log loss is convex in 1/T, so the bounded search over ln T finds its only minimum.
    """
    result = minimize_scalar(
        lambda log_t: negative_log_likelihood(softmax(logits, math.exp(log_t)), labels),
        bounds=(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(math.exp(result.x))


def source_masks(sources: Sequence[str] | None, n: int) -> list[np.ndarray]:
    """Boolean masks [N]: all images first, then those of each laboratory if there is more than one."""
    names = np.unique(sources) if sources is not None else ()
    masks = [np.asarray(sources) == name for name in names] if len(names) > 1 else []
    return [np.ones(n, dtype=bool), *masks]


def assured_threshold(scores: np.ndarray, level: float) -> float:
    """The conformal threshold, raised until it covers `level - SHORTFALL` with `CONFIDENCE`; inf if there are too few scores.

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

    probabilities: calibrated, [N, C]; labels: int [N]; level: coverage of each class, in each of the `sources` [N] that has
    enough images of it. With few images of a class, a threshold below that of all images is more often luck than an easy class;
    the larger one keeps the guarantee. A class with too few images for the level gets 1, which puts it into every set.
    """
    scores = 1 - probabilities[np.arange(len(labels)), labels]
    masks = source_masks(sources, len(labels))

    def threshold(images: np.ndarray) -> float:
        overall, *by_source = (assured_threshold(scores[mask & images], level) for mask in masks)
        return max([overall, *(value for value in by_source if value < math.inf)])

    pooled = threshold(masks[0])
    return np.clip([threshold(labels == c) for c in range(probabilities.shape[1])], pooled, 1.0)


def sure_threshold(confidence: np.ndarray, correct: np.ndarray, error: float) -> float:
    """The lowest confidence at which answers [N] are sure, i.e. wrong with probability at most `error`; inf if there is none.

    A new answer at or above a threshold is wrong with probability of about (wrong + 1) / (answers + 1), the knockoff+ bound
    (Barber & Candès 2015; Jin & Candès 2023).
    """
    order = np.argsort(-confidence, kind="stable")
    bound = (np.cumsum(~correct[order]) + 1) / (np.arange(len(order)) + 2)
    holds = np.r_[bound <= error, False]
    first = holds.argmax()
    last = first + holds[first:].argmin() - 1  # of the first run: where the bound holds again later is luck
    return float(confidence[order[last]]) if holds[first] else math.inf


def fit_sure(
    probabilities: np.ndarray,
    labels: np.ndarray,
    error: float = SURE_ERROR,
    sources: Sequence[str] | None = None,
) -> list[float | None]:
    """For each class the lowest probability at which its answers are sure (see `sure_threshold`); None if there is none.

    The highest over all images together and each of the `sources` [N] with at least 1 / `error` answers of that class.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    _, *masks = source_masks(sources, len(labels))
    thresholds: list[float | None] = []
    for c in range(probabilities.shape[1]):
        answers = predicted == c
        by_source = [mask & answers for mask in masks if (mask & answers).sum() >= 1 / error]
        highest = max(sure_threshold(confidence[i], labels[i] == c, error) for i in (answers, *by_source))
        thresholds.append(None if highest == math.inf else highest)
    return thresholds


def fit_calibration(
    logits: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str],
    sources: Sequence[str] | None = None,
) -> dict:
    """The contents of `calibration.json` without the out-of-distribution part.

    logits: [N, C] of `validation`; labels: int [N]; label_names: the C classes in column order; sources: the laboratory of each
    image, if there is more than one.
    """
    masks = source_masks(sources, len(labels))
    temperature = max(fit_temperature(logits[mask], labels[mask]) for mask in masks)
    probabilities = softmax(logits, temperature)
    # a class without images is rare, not impossible
    counts = np.bincount(labels, minlength=len(label_names)) + 0.5
    confusion = confusion_of(probabilities, np.eye(len(label_names))[labels])
    sure = fit_sure(probabilities, labels, sources=sources)
    fitted = {"fitted_on": "validation"}
    conformal = {level: fit_conformal(probabilities, labels, float(level), sources) for level in LEVELS}
    return {
        "schema": SCHEMA,
        "prior": {"shares": by_name(label_names, counts / counts.sum())} | fitted,
        "temperature": {"value": temperature} | fitted,
        "conformal": {
            level: {"thresholds": by_name(label_names, thresholds)} | fitted
            for level, thresholds in conformal.items()
        },
        "sure": {"thresholds": dict(zip(label_names, sure, strict=True)), "error": SURE_ERROR} | fitted,
        "confusion": {"answers": dict(zip(label_names, confusion.astype(int).tolist(), strict=True))}
        | fitted,
    }


def by_name(label_names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Values [C] as {class: number}."""
    return {name: float(value) for name, value in zip(label_names, values, strict=True)}


def read_label_names(folder: Path) -> list[str]:
    """The classes, in the order of the logits, from the `config.json` of a run folder or model repo."""
    if names := read_config(folder / CONFIG, str(folder)).label_names:
        return list(names)
    raise RepoError(f"{folder / CONFIG} has no list 'label_names' of 2 or more different names")


def write_json(path: Path, value: dict) -> None:
    """Write JSON atomically. Raises RepoError for a number that is not finite."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:
        raise RepoError(f"{path} is not written: a number in it is not finite") from None
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


def calibrate_folder(folder: Path) -> dict:
    """Fit on `folder/logits_validation.parquet`, write `folder/calibration.json`, and return its contents.

    The out-of-distribution part of an existing file, which the `ood` study writes, is kept.
    """
    label_names = read_label_names(folder)
    logits = read_logits(folder / "logits_validation.parquet", len(label_names))
    path = folder / CALIBRATION
    existing = read_json(path) if path.is_file() else {}
    calibration = fit_calibration(logits.values, logits.labels, label_names, logits.sources)
    calibration |= {key: existing[key] for key in ("out_of_distribution", "appearance") if key in existing}
    write_json(path, calibration)
    return calibration
