"""Temperature, conformal sets, sure answers and confusion of a model, fitted to logits alone.

In: `logits_validation.parquet` of a run folder or model repo. Out: its `calibration.json`, which `hub_model.inference` applies.
With p = softmax(logits / T), class c belongs to the set of a level iff 1 - p_c <= its threshold, and an answer is sure iff its
p is at least the class's. What is promised is to hold in every laboratory: where the logits name their sources, the temperature
and each threshold are those of the laboratory that needs the most caution. Nothing is fitted on `test`; `calibration_report`
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
from scipy.optimize import minimize_scalar
from scipy.stats import beta

from hub_model.contract import CALIBRATION, CONFIG, read_logits
from hub_model.inference.calibration import conformal_threshold, softmax
from hub_model.inference.counts import confusion_of
from hub_model.inference.errors import RepoError
from hub_model.inference.model_repo import read_config, read_json
from hub_model.metrics.cell_classification.cell_classification import negative_log_likelihood

SCHEMA = 2
SURE_ERROR = 0.03  # share of sure answers that may be wrong
LEVELS = ("0.90", "0.95")
SHORTFALL, CONFIDENCE = 0.02, 0.95  # a class's coverage is at least the level less 0.02, with this confidence
TEMPERATURES = (0.05, 20.0)  # the range that is searched


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
    """
    groups = groups_of(sources, len(labels))
    temperature = max(fit_temperature(logits[group], labels[group]) for group in groups)
    probabilities = softmax(logits, temperature)
    # a class without images is rare, not impossible
    shares = np.bincount(labels, minlength=len(label_names)) + 0.5
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
