"""The differential count: from the answers for many cells to the share of each class, with 95% intervals.

In: calibrated probabilities [N, C]. Out: a `Count` a class: as counted (Wilson intervals) and corrected for the
prevalence (bootstrap intervals). The model learned on a chosen mix of classes, its prior; a marrow has another
mix, and where two classes look alike the plain count leans towards the prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054
RESAMPLES = 200


@dataclass(frozen=True)
class Count:
    """Shares in 0…1; intervals are 95%."""

    label: str
    cells: int
    share: float
    share_interval: tuple[float, float]
    corrected: float
    corrected_interval: tuple[float, float]


def wilson_interval(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a share (Wilson 1927); (0, 1) when there are no trials."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def reweight(probabilities: np.ndarray, prior: np.ndarray, prevalence: np.ndarray) -> np.ndarray:
    """Posteriors under `prevalence` [C] of posteriors [N, C] that hold under `prior` [C] (Saerens et al. 2002, eq. 4)."""
    weighted = probabilities * (prevalence / prior)
    return weighted / weighted.sum(axis=1, keepdims=True)


def em_prevalence(
    probabilities: np.ndarray,
    prior: np.ndarray,
    weights: np.ndarray | None = None,
    tolerance: float = 1e-6,
    steps: int = 1000,
) -> np.ndarray:
    """Prevalence [C] with the highest likelihood of posteriors [N, C] under `prior` (Saerens et al. 2002, section 2.3).

    Starts at the prior and alternates re-weighting and averaging until no share moves by more than `tolerance`.
    `weights` [N] are how often each cell counts (for the bootstrap).
    """
    weights = np.ones(len(probabilities)) if weights is None else weights
    prevalence = np.asarray(prior, dtype=np.float64)
    for _ in range(steps):
        updated = weights @ reweight(probabilities, prior, prevalence) / weights.sum()
        if np.abs(updated - prevalence).max() < tolerance:
            return updated
        prevalence = updated
    return prevalence


def resample(cells: int, number: int) -> np.ndarray:
    """How often each of the cells counts in bootstrap resample `number`, [cells].

    Drawn by a hash (Wellons' lowbias32) of a counter and not by NumPy's generator: the static Space draws the same in JavaScript.
    """
    x = np.arange(cells, dtype=np.uint32) + np.uint32(number * cells % 2**32)
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    x ^= x >> 16
    return np.bincount(
        (x.astype(np.uint64) * np.uint64(cells) >> np.uint64(32)).astype(np.intp), minlength=cells
    )


def differential_count(
    label_names: Sequence[str],
    probabilities: np.ndarray,
    prior: np.ndarray | None = None,
    known: np.ndarray | None = None,
    resamples: int = RESAMPLES,
) -> list[Count]:
    """One `Count` a class in the order of `label_names`; empty for no cells.

    Args:
        probabilities: calibrated posteriors [N, C] of the cells.
        prior: class shares or counts [C] that they hold under; flat by default.
        known: prevalence [C] of the sample where it is known; EM estimates it otherwise.
        resamples: bootstrap resamples behind the corrected intervals.
    """
    cells, classes = len(probabilities), len(label_names)
    if cells == 0:
        return []
    prior = np.full(classes, 1 / classes) if prior is None else np.asarray(prior, float) / np.sum(prior)
    probabilities = np.clip(probabilities, 1e-9, 1.0)
    counted = np.bincount(probabilities.argmax(axis=1), minlength=classes)

    def shares(weights: np.ndarray, steps: int = 1000) -> np.ndarray:
        if known is None:
            return em_prevalence(probabilities, prior, weights, steps=steps)
        return weights @ reweight(probabilities, prior, known) / weights.sum()

    corrected = shares(np.ones(cells))
    draws = [shares(resample(cells, number), steps=50) for number in range(resamples)]
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
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
