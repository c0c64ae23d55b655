"""The differential count: the fraction of each class among many cells, with 95% intervals.

In: calibrated probabilities [N, C]. Out: a `Count` per class: as counted (Wilson intervals) and corrected for the prevalence.
The training set has a chosen mix of classes, the prior; a marrow has another, and where two classes look alike the plain
count is biased towards the prior. The correction is EM (Saerens et al. 2002). Its intervals include what EM ignores: the
sample is small, and the confusion matrix was itself measured on few images (Ziegler & Czyż 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054
CONFIDENT = 0.6  # the probability from which a prediction counts as a confident one
DISPERSION = 3.0  # overdispersion: cells of other slides vary more than binomially, so labelled images count for a third
UNSEEN, UNIFORM = 0.1, 0.5  # pseudo-counts of an answer given a class, and of a class in the sample
CHAINS, STEPS = 200, 20  # of the Gibbs sampler


@dataclass(frozen=True)
class Count:
    """The count of one class. Shares are fractions in [0, 1], with 95% intervals."""

    label: str
    cells: int
    share: float
    share_interval: tuple[float, float]
    corrected: float
    corrected_interval: tuple[float, float]


def wilson_interval(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927); (0, 1) when there are no trials."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def reweight(probabilities: np.ndarray, prior: np.ndarray, prevalence: np.ndarray) -> np.ndarray:
    """Posteriors [N, C] under `prior` [C], adjusted to `prevalence` [C] (Saerens et al. 2002, eq. 4)."""
    weighted = probabilities * (prevalence / prior)
    return weighted / weighted.sum(axis=1, keepdims=True)


def em_prevalence(
    probabilities: np.ndarray, prior: np.ndarray, tolerance: float = 1e-6, steps: int = 1000
) -> np.ndarray:
    """Maximum-likelihood prevalence [C] from posteriors [N, C] under `prior` (Saerens et al. 2002, section 2.3).

    Starts at the prior and alternates reweighting and averaging until no class changes by `tolerance` or more.
    """
    prevalence = np.asarray(prior, dtype=np.float64)
    for _ in range(steps):
        updated = reweight(probabilities, prior, prevalence).mean(axis=0)
        if np.abs(updated - prevalence).max() < tolerance:
            return updated
        prevalence = updated
    return prevalence


def answers(probabilities: np.ndarray) -> np.ndarray:
    """The classifier's answer for each cell, int [N] in [0, 2C): 2c for predicted class c, 2c + 1 where it is confident."""
    return 2 * probabilities.argmax(axis=1) + (probabilities.max(axis=1) >= CONFIDENT)


def confusion_of(probabilities: np.ndarray, membership: np.ndarray) -> np.ndarray:
    """Counts [C, 2C] of each answer for each class, from probabilities [N, C] and one-hot or soft labels [N, C]."""
    classes = probabilities.shape[1]
    return membership.T @ np.eye(2 * classes)[answers(probabilities)]


def sample_prevalence(
    given: np.ndarray, confusion: np.ndarray, known: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """Posterior draws [S, C] of the prevalence of a sample in which each answer was `given` so many times, int [2C].

    Bayesian quantification (Ziegler & Czyż 2024, TMLR) by Gibbs sampling: each chain draws the distribution of answers in each
    class from `confusion` [C, 2C], then alternates between the classes of the cells and the prevalence. Where the prevalence is
    `known` [C], the draws are the fractions of the classes among these cells.
    """
    rates = rng.gamma(np.broadcast_to(UNSEEN + confusion / DISPERSION, (CHAINS, *confusion.shape)))
    rates = (rates / rates.sum(axis=2, keepdims=True)).transpose(0, 2, 1)  # [chains, answers, C]
    classes = len(confusion)
    prevalence, draws = np.full((CHAINS, 1, classes), 1 / classes) if known is None else known, []
    for step in range(STEPS):
        posterior = rates * prevalence + 1e-300
        posterior /= posterior.sum(axis=2, keepdims=True)
        cells = rng.multinomial(given, posterior).sum(axis=1)
        if known is None:
            gamma = np.maximum(rng.gamma(cells + UNIFORM), 1e-300)
            shares = gamma / gamma.sum(axis=1, keepdims=True)
            prevalence = shares[:, None]
        else:
            shares = cells / given.sum()
        if step >= STEPS // 2:
            draws.append(shares)
    return np.concatenate(draws)


def differential_count(
    label_names: Sequence[str],
    probabilities: np.ndarray,
    prior: np.ndarray | None = None,
    confusion: np.ndarray | None = None,
    known: np.ndarray | None = None,
    seed: int = 0,
) -> list[Count]:
    """One `Count` per class in the order of `label_names`; empty for no cells.

    Args:
        probabilities: calibrated posteriors [N, C] of the cells.
        prior: class fractions or counts [C] for which they are calibrated; uniform by default.
        confusion: answers for labelled images of each class, [C, 2C] (see `confusion_of`). Without it, the probabilities
            serve as soft labels, and the intervals are those of a perfectly calibrated classifier.
        known: prevalence [C] of the sample if known; estimated by EM otherwise.
    """
    cells, classes = len(probabilities), len(label_names)
    if cells == 0:
        return []
    prior = np.full(classes, 1 / classes) if prior is None else np.asarray(prior, float) / np.sum(prior)
    probabilities = np.clip(probabilities, 1e-9, 1.0)
    counted = np.bincount(probabilities.argmax(axis=1), minlength=classes)
    prevalence = em_prevalence(probabilities, prior) if known is None else known
    corrected = reweight(probabilities, prior, prevalence).mean(axis=0)
    if confusion is None:
        confusion = confusion_of(probabilities, reweight(probabilities, prior, prevalence))
    given = np.bincount(answers(probabilities), minlength=2 * classes)
    draws = sample_prevalence(given, confusion, known, np.random.default_rng(seed))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    low = np.where(low * cells < 0.5, 0, low)  # less than half a cell is zero
    return [
        Count(
            label=label,
            cells=int(counted[i]),
            share=float(counted[i] / cells),
            share_interval=wilson_interval(int(counted[i]), cells),
            corrected=float(corrected[i]),
            corrected_interval=(float(min(low[i], corrected[i])), float(max(high[i], corrected[i]))),
        )
        for i, label in enumerate(label_names)
    ]
