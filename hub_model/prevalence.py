"""Differential counts at the prevalence of the sample, not at that of the training set.

The training set has as many images of each class as of any other; a marrow does not. A count of predicted classes is
therefore biased: rare classes are over-counted. In: logits of the cells of one sample (any Parquet file with a
`logits` column, such as `predictions.parquet` of bulk scoring), and the model's folder for its temperature and its
confusion on `validation`. Out: the share of each class, with a bootstrap interval, by one of four methods:

    plain     the predicted classes, counted
    known     posteriors re-weighted with a prevalence that is known (Saerens et al. 2002, eq. 4)
    em        the prevalence that makes the sample most likely, by EM (Saerens, Latinne & Decaestecker 2002, section 2.3)
    adjusted  the prevalence whose confusion gives the predicted counts (Forman 2008; multi-class, least squares on the
              simplex)

All but `plain` assume that cells of a class look alike here and there: only the mixture differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from hub_model.calibration import read_label_names
from hub_model.contract import read_logits
from hub_model.evaluation import SEED, bootstrap
from hub_model.inference.calibration import softmax
from hub_model.inference.errors import RepoError
from hub_model.trust_report import read_temperature

METHODS = ("plain", "known", "em", "adjusted")
RESAMPLES = 200
# Cells of each class in the whole archive (171,373 of 945 patients, 21 classes; Matek et al. 2021): the mixture of
# these seven that a laboratory sees.
ARCHIVE_COUNTS = {
    "BLA": 11973,
    "EOS": 5883,
    "LYT": 26242,
    "MON": 4040,
    "NGS": 29424,
    "NIF": 3538,
    "PMO": 11994,
}


def reweight(probabilities: np.ndarray, prior: np.ndarray, prevalence: np.ndarray) -> np.ndarray:
    """Posteriors [N, C] under `prevalence` [C] of posteriors [N, C] that hold under `prior` [C] (Saerens, eq. 4)."""
    weighted = probabilities * (prevalence / prior)
    return weighted / weighted.sum(axis=1, keepdims=True)


def em_prevalence(
    probabilities: np.ndarray, prior: np.ndarray, tolerance: float = 1e-6, steps: int = 1000
) -> np.ndarray:
    """Prevalence [C] with the highest likelihood of a sample with posteriors [N, C] under `prior` [C].

    Starts at the prior and alternates re-weighting and averaging until no share moves by more than `tolerance`.
    """
    prevalence = np.asarray(prior, dtype=np.float64)
    for _ in range(steps):
        updated = reweight(probabilities, prior, prevalence).mean(axis=0)
        if np.abs(updated - prevalence).max() < tolerance:
            return updated
        prevalence = updated
    return prevalence


def adjusted_prevalence(counts: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    """Prevalence [C] that explains the predicted `counts` [C] best, by least squares among shares that sum to 1.

    confusion: [C, C] counts on labelled images of each class, rows = true class.
    """
    rates = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    classes, weight = len(counts), 1e3  # the heavy last row makes the shares sum to 1
    system = np.vstack([rates.T, np.full((1, classes), weight)])
    shares, _ = nnls(system, np.append(counts / counts.sum(), weight))
    return shares / shares.sum()


@dataclass(frozen=True)
class Labelled:
    """What was seen on labelled images: predicted and true classes, int [M] each, of `validation`."""

    predicted: np.ndarray
    labels: np.ndarray

    def confusion(self, classes: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """[C, C], rows = true class; of a bootstrap resample when a generator is given."""
        n = len(self.labels)
        chosen = np.arange(n) if rng is None else rng.integers(0, n, n)
        table = np.zeros((classes, classes))
        np.add.at(table, (self.labels[chosen], self.predicted[chosen]), 1)
        return table


@dataclass(frozen=True)
class DifferentialCount:
    """Share of each class, [C], with the ends of its 95 % interval, [2, C]; `cells` were counted by `method`."""

    label_names: tuple[str, ...]
    method: str
    cells: int
    shares: np.ndarray
    interval: np.ndarray

    def rows(self) -> list[dict]:
        """One dict a class: label, share, low, high, cells (expected number)."""
        table = zip(self.label_names, self.shares, *self.interval, strict=True)
        return [
            {
                "label": n,
                "share": float(s),
                "low": float(lo),
                "high": float(hi),
                "cells": float(s * self.cells),
            }
            for n, s, lo, hi in table
        ]


def _estimator(
    probabilities: np.ndarray,
    method: str,
    prior: np.ndarray,
    known: np.ndarray | None,
    labelled: Labelled | None,
) -> Callable[[np.ndarray, np.random.Generator | None], np.ndarray]:
    """Shares [C] of the cells with the given indices; the generator, if any, resamples the labelled images too."""
    classes = probabilities.shape[1]
    if method == "known":
        if known is None:
            raise RepoError("method 'known' needs the known prevalence (--prevalence BLA=0.02,…)")
        posteriors = reweight(probabilities, prior, known)
        return lambda i, rng: posteriors[i].mean(axis=0)
    if method == "em":
        return lambda i, rng: em_prevalence(probabilities[i], prior)
    predicted = probabilities.argmax(axis=1)
    if method == "plain":
        return lambda i, rng: np.bincount(predicted[i], minlength=classes) / len(i)
    if method == "adjusted":
        if labelled is None:
            raise RepoError("method 'adjusted' needs labelled images (logits_validation.parquet)")
        return lambda i, rng: adjusted_prevalence(
            np.bincount(predicted[i], minlength=classes), labelled.confusion(classes, rng)
        )
    raise RepoError(f"unknown method {method!r} (known: {', '.join(METHODS)})")


def differential_count(
    probabilities: np.ndarray,
    label_names: Sequence[str],
    method: str = "em",
    prior: np.ndarray | None = None,
    known: np.ndarray | None = None,
    labelled: Labelled | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> DifferentialCount:
    """Count the cells of one sample.

    Args:
        probabilities: calibrated posteriors [N, C] of its cells.
        label_names: the C classes.
        method: one of `METHODS`.
        prior: class shares [C] of the training set; flat by default.
        known: the prevalence [C] for method `known`.
        labelled: predictions on labelled images for method `adjusted`; resampled for its interval.

    Raises RepoError: no cells, an unknown method, or an input that the method needs is missing.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if len(probabilities) == 0:
        raise RepoError("there are no cells to count")
    classes = len(label_names)
    prior = np.full(classes, 1 / classes) if prior is None else np.asarray(prior) / np.sum(prior)
    estimate = _estimator(probabilities, method, prior, known, labelled)
    rng = np.random.default_rng(seed)
    interval = bootstrap(lambda i: estimate(i, rng), len(probabilities), resamples, seed)
    shares = estimate(np.arange(len(probabilities)), None)
    return DifferentialCount(tuple(label_names), method, len(probabilities), shares, interval)


def parse_prevalence(text: str, label_names: Sequence[str]) -> np.ndarray:
    """`BLA=0.02,LYT=0.3,…` as shares [C] that sum to 1; every class must be named and positive.

    Raises RepoError naming what is missing, unknown, given twice or not a positive number.
    """
    given: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name in given:
            raise RepoError(f"the prevalence of {name} is given twice")
        try:
            given[name] = float(value)
        except ValueError:
            raise RepoError(f"{part.strip()!r} is not of the form CLASS=SHARE") from None
    return prevalence_of(given, label_names)


def prevalence_of(counts: Mapping[str, float], label_names: Sequence[str]) -> np.ndarray:
    """Counts or shares by class name as shares [C] that sum to 1. Raises RepoError as `parse_prevalence`."""
    if missing := [name for name in label_names if name not in counts]:
        raise RepoError(f"the prevalence of {', '.join(missing)} is missing")
    if unknown := [name for name in counts if name not in label_names]:
        raise RepoError(f"unknown classes in the prevalence: {', '.join(unknown)}")
    given = [float(counts[name]) for name in label_names]
    if min(given) > 0 and (shares := np.array(given) / sum(given)).min() > 0:  # an infinite sum leaves 0
        return shares
    raise RepoError("every class needs a finite prevalence above 0")


def labelled_of(folder: Path) -> Labelled:
    """The predictions on `validation` that a run folder or model repo holds."""
    logits = read_logits(folder / "logits_validation.parquet", len(read_label_names(folder)))
    return Labelled(logits.values.argmax(axis=1), logits.labels)


def simulate_samples(
    folder: Path, prevalence: np.ndarray, cells: int = 500, samples: int = 100, seed: int = SEED
) -> dict:
    """How far off each method is on samples drawn from the `test` logits at a given prevalence.

    Returns {"cells", "samples", "prevalence", "mean_absolute_error": {method: …}}: the error of a share, averaged over
    classes and samples. `known` is told the true prevalence, so its error is a floor, not a rival.
    """
    names = read_label_names(folder)
    temperature = read_temperature(folder)
    labelled = labelled_of(folder)
    logits = read_logits(folder / "logits_test.parquet", len(names))
    labels = logits.labels
    probabilities, rng = softmax(logits.values, temperature), np.random.default_rng(seed)
    members = [np.flatnonzero(labels == c) for c in range(len(names))]
    if empty := [n for n, m in zip(names, members, strict=True) if not len(m)]:
        raise RepoError(f"no test images of {', '.join(empty)} to draw samples from")
    errors: dict[str, list[float]] = {method: [] for method in METHODS}
    flat = np.full(len(names), 1 / len(names))
    for _ in range(samples):
        drawn = rng.choice(len(names), cells, p=prevalence)
        truth = np.bincount(drawn, minlength=len(names)) / cells
        chosen = np.array([rng.choice(members[c]) for c in drawn])
        for method in METHODS:
            estimate = _estimator(probabilities[chosen], method, flat, prevalence, labelled)
            errors[method].append(np.abs(estimate(np.arange(cells), None) - truth).mean())
    return {
        "cells": cells,
        "samples": samples,
        "prevalence": dict(zip(names, prevalence.tolist(), strict=True)),
        "mean_absolute_error": {method: float(np.mean(error)) for method, error in errors.items()},
    }
