"""How sure is sure: temperature and conformal thresholds of a model, from its logits on `validation`.

In: `logits_validation.parquet` of a run folder or model repo. Out: the parts `temperature` and `conformal` of its
`calibration.json`, which the Space applies. With p = softmax(logits / T), class c belongs to the answer of a level
iff 1 - p_c <= thresholds[c]. Nothing here reads `test`; how well it works there is measured by `trust_report`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from hub_model.contract import CONFIG, read_logits
from hub_model.inference.calibration import softmax
from hub_model.inference.errors import RepoError
from hub_model.inference.model_repo import read_config, read_json

SCHEMA = 1
LEVELS = ("0.90", "0.95")
TEMPERATURES = (0.05, 20.0)  # the range that is searched


def mean_log_loss(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of softmax(logits [N, C] / temperature) at int labels [N], in nats."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    return float(np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature, 0.05…20, with the least log loss (Guo et al. 2017, section 4.2).

    The log loss is convex in 1/T, so the bounded search over ln T finds its only minimum.
    """
    found = minimize_scalar(
        lambda log_t: mean_log_loss(logits, labels, math.exp(log_t)),
        bounds=tuple(math.log(t) for t in TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(math.exp(found.x))


def conformal_threshold(scores: np.ndarray, level: float) -> float:
    """The limit under which a new score of the same kind falls with probability of at least `level`.

    The ceil((n + 1) · level)-th smallest of the n calibration scores (Vovk 2012; Angelopoulos & Bates 2023,
    section 1). With fewer than level / (1 - level) scores no such limit exists: 1, which lets the class into every set.
    """
    n = len(scores)
    rank = math.ceil((n + 1) * level - 1e-9)  # 1e-9: (n + 1) · level may be an integer that floats overshoot
    return 1.0 if rank > n else float(np.sort(scores)[rank - 1])


def fit_conformal(probabilities: np.ndarray, labels: np.ndarray, level: float) -> np.ndarray:
    """Thresholds [C] on 1 - p_c, one for each class from its own images (Mondrian, i.e. class-conditional).

    probabilities: calibrated, [N, C]; labels: int [N]; level: the share of each class that is to be covered.
    """
    ood_score = 1 - probabilities[np.arange(len(labels)), labels]
    return np.array(
        [conformal_threshold(ood_score[labels == c], level) for c in range(probabilities.shape[1])]
    )


def fit_calibration(logits: np.ndarray, labels: np.ndarray, label_names: Sequence[str]) -> dict:
    """The contents of `calibration.json` without the out-of-distribution part.

    logits: [N, C] of `validation`; labels: int [N]; label_names: the C classes in the order of the columns.

    Raises RepoError: shapes that do not fit, no image, or a value that is not finite.
    """
    logits, labels = check_logits(logits, labels, label_names)
    temperature = fit_temperature(logits, labels)
    probabilities = softmax(logits, temperature)
    conformal = {}
    for level in LEVELS:
        thresholds = fit_conformal(probabilities, labels, float(level))
        conformal[level] = {
            "thresholds": {name: float(t) for name, t in zip(label_names, thresholds, strict=True)},
            "fitted_on": "validation",
        }
    return {
        "schema": SCHEMA,
        "temperature": {"value": temperature, "fitted_on": "validation"},
        "conformal": conformal,
    }


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

    An out-of-distribution part that is already there stays: it is `strangers`' to write.
    """
    label_names = read_label_names(folder)
    logits = read_logits(folder / "logits_validation.parquet", len(label_names))
    path = folder / "calibration.json"
    known = read_json(path) if path.is_file() else {}
    calibration = fit_calibration(logits.values, logits.labels, label_names)
    if "out_of_distribution" in known:
        calibration["out_of_distribution"] = known["out_of_distribution"]
    write_json(path, calibration)
    return calibration
