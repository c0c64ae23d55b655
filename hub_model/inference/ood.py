"""How unlike the training cells an input is: the scores that `calibration.json` may name, higher = stranger.

In: logits [N, C] and pooled features [N, D] of a batch, the rule (`out_of_distribution` of
`calibration.json`) and the arrays of `out_of_distribution.safetensors`. Out: float64 [N]. `hub_model` fits
with the same functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Score = Callable[[np.ndarray, np.ndarray, dict[str, Any], dict[str, np.ndarray]], np.ndarray]


def energy(
    logits: np.ndarray, features: np.ndarray, rule: dict[str, Any], arrays: dict[str, np.ndarray]
) -> np.ndarray:
    """Free energy, -T log sum exp(logits / T) with T = rule["temperature"] or 1 (Liu et al. 2020, eq. 4)."""
    temperature = float(rule.get("temperature", 1.0))
    scaled = np.asarray(logits, np.float64) / temperature
    top = scaled.max(axis=1)
    return -temperature * (top + np.log(np.exp(scaled - top[:, None]).sum(axis=1)))


def max_logit(
    logits: np.ndarray, features: np.ndarray, rule: dict[str, Any], arrays: dict[str, np.ndarray]
) -> np.ndarray:
    """The largest logit, sign turned (Hendrycks et al. 2022)."""
    return -np.asarray(logits, np.float64).max(axis=1)


def mahalanobis(
    logits: np.ndarray, features: np.ndarray, rule: dict[str, Any], arrays: dict[str, np.ndarray]
) -> np.ndarray:
    """Squared Mahalanobis distance to the nearest class mean, one covariance for all classes (Lee et al.
    2018).

    The covariance is that of probabilistic PCA (Tipping & Bishop 1999): `variances` [K] along the
    orthonormal `directions` [D, K], and rule["residual_variance"] in every direction across them.
    `class_means` is [C, D].
    """
    directions, means = (np.asarray(arrays[name], np.float64) for name in ("directions", "class_means"))
    features = np.asarray(features, np.float64)
    projected = features @ directions  # once, not again for every class
    nearest = np.full(len(features), np.inf)
    for mean, projected_mean in zip(means, means @ directions, strict=True):
        along = projected - projected_mean
        across = np.maximum(((features - mean) ** 2).sum(axis=1) - (along**2).sum(axis=1), 0)
        distance = (along**2 / arrays["variances"]).sum(axis=1) + across / float(rule["residual_variance"])
        nearest = np.minimum(nearest, distance)
    return nearest


def neighbours(
    logits: np.ndarray, features: np.ndarray, rule: dict[str, Any], arrays: dict[str, np.ndarray]
) -> np.ndarray:
    """Distance to the rule["k"]-th nearest training image, features scaled to length 1 (Sun et al. 2022).

    `training_features` [M, D], of length 1.
    """
    unit = np.asarray(features, np.float32)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    k = int(rule["k"])
    similarity = unit @ arrays["training_features"].astype(np.float32).T
    kth = np.partition(similarity, -k, axis=1)[:, -k].astype(np.float64)
    return np.sqrt(np.maximum(2 - 2 * kth, 0))


SCORES: dict[str, Score] = {
    "energy": energy,
    "max_logit": max_logit,
    "mahalanobis": mahalanobis,
    "neighbours": neighbours,
}
