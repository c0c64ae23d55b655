"""The out-of-distribution (OOD) score: the distance of an input's pooled features from those of the training images.

The rule is `out_of_distribution` of `calibration.json` with the arrays of `out_of_distribution.safetensors`;
`hub_model.studies.ood` fits both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

OOD_ARRAYS = "out_of_distribution.safetensors"
# Largest matrix product, in multiply-adds, that OpenBLAS computes in one thread. Its other threads, once started, spin for 50 ms
# on the cores that the network needs.
SMALL_PRODUCT = 2**19 - 1


@dataclass(frozen=True)
class OodRule:
    """Squared Mahalanobis distance to the nearest class mean, one covariance for all classes (Lee et al. 2018).

    The covariance is that of probabilistic PCA (Tipping & Bishop 1999): `variances` [K] along the orthonormal
    `directions` [D, K], and `residual_variance` in every direction orthogonal to them. `class_means` is [C, D]. An input
    that scores above `threshold` is OOD.
    """

    class_means: np.ndarray
    directions: np.ndarray
    variances: np.ndarray
    residual_variance: float
    threshold: float

    @classmethod
    def read(cls, folder: Path, found: dict[str, Any]) -> OodRule:
        """`out_of_distribution` of `calibration.json`; ValueError, KeyError or TypeError where it is malformed."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if found["score"] != "mahalanobis":
            raise ValueError(f"unknown out-of-distribution score {found['score']!r} (known: mahalanobis)")
        try:
            arrays = load_file(folder / OOD_ARRAYS)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{OOD_ARRAYS} cannot be read ({error})") from None
        means, directions, variances = (
            arrays[name].astype(np.float64) for name in ("class_means", "directions", "variances")
        )
        return cls(means, directions, variances, float(found["residual_variance"]), float(found["threshold"]))

    def score(self, features: np.ndarray) -> np.ndarray:
        """Score [N] of pooled features [N, D]; higher is further from the training images."""
        features, rows = np.asarray(features, np.float64), max(1, SMALL_PRODUCT // self.directions.size)
        scores = [self._score(features[start : start + rows]) for start in range(0, len(features), rows)]
        return np.concatenate([np.empty(0), *scores])

    def _score(self, features: np.ndarray) -> np.ndarray:
        centred = features[:, None] - self.class_means  # [N, C, D]
        projected = (features @ self.directions)[:, None] - self._projected_means  # [N, C, K]
        residual = np.maximum(np.vecdot(centred, centred) - np.vecdot(projected, projected), 0)
        explained = np.vecdot(projected, projected / self.variances)
        return (explained + residual / self.residual_variance).min(axis=1)

    @cached_property
    def _projected_means(self) -> np.ndarray:
        """The class means projected onto the directions, [C, K]."""
        return np.stack([mean @ self.directions for mean in self.class_means])
