"""The differential count: from the answers for many cells to the share of each class, with 95% intervals.

In: probabilities [N, C], calibrated. Out: a `Count` a class: as counted (Wilson intervals) and corrected for
the prevalence (EM of Saerens et al. 2002, bootstrap intervals). The model learned on a chosen mix of
classes, its prior; a marrow has another mix, and where two classes look alike the plain count leans towards
the prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054


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


def corrected_prevalence(
    probabilities: np.ndarray, prior: np.ndarray, weights: np.ndarray | None = None, steps: int = 200
) -> np.ndarray:
    """Shares [C] that explain probabilities [N, C] made under `prior` [C] (Saerens et al. 2002, equation
    2.9).

    `weights` [N] are how often each cell counts (for the bootstrap).
    """
    weights = np.ones(len(probabilities)) if weights is None else weights
    share = prior.copy()
    ratio = probabilities / prior
    for _ in range(steps):
        posterior = ratio * share
        posterior /= posterior.sum(axis=1, keepdims=True)
        new = weights @ posterior / weights.sum()
        if np.abs(new - share).max() < 1e-6:
            return new
        share = new
    return share


def differential_count(
    label_names: Sequence[str],
    probabilities: np.ndarray,
    prior: np.ndarray | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> list[Count]:
    """One `Count` a class in the order of `label_names`; empty for no cells. `prior` is flat when not
    given."""
    cells = len(probabilities)
    if cells == 0:
        return []
    classes = len(label_names)
    prior = np.full(classes, 1 / classes) if prior is None else np.asarray(prior, float) / np.sum(prior)
    probabilities = np.clip(probabilities, 1e-9, 1.0)
    counted = np.bincount(probabilities.argmax(axis=1), minlength=classes)
    corrected = corrected_prevalence(probabilities, prior)
    rng = np.random.default_rng(seed)
    draws = np.stack(
        [
            corrected_prevalence(
                probabilities, prior, rng.multinomial(cells, np.full(cells, 1 / cells)), steps=50
            )
            for _ in range(resamples)
        ]
    )
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
