"""The out-of-distribution (OOD) score: how far an input's pooled features lie from those of the training images.

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


@dataclass(frozen=True)
class OodRule:
    """Squared Mahalanobis distance to the nearest class mean, one covariance for all classes (Lee et al. 2018).

    The covariance is that of probabilistic PCA (Tipping & Bishop 1999): `variances` [K] along the orthonormal
    `directions` [D, K], and `residual_variance` in every direction across them. `class_means` is [C, D]. An input
    that scores above `threshold` is OOD.
    """

    class_means: np.ndarray
    directions: np.ndarray
    variances: np.ndarray
    residual_variance: float
    threshold: float

    @classmethod
    def read(cls, folder: Path, found: dict[str, Any]) -> OodRule:
        """The rule in `calibration.json`; ValueError, KeyError, TypeError or OSError where it is malformed."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if found["score"] != "mahalanobis":
            raise ValueError(f"unknown out-of-distribution score {found['score']!r} (known: mahalanobis)")
        try:
            arrays = load_file(folder / OOD_ARRAYS)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{OOD_ARRAYS} cannot be read ({error})") from None
        names = ("class_means", "directions", "variances")
        return cls(
            *(arrays[name].astype(np.float64) for name in names),
            float(found["residual_variance"]),
            float(found["threshold"]),
        )

    def score(self, features: np.ndarray) -> np.ndarray:
        """Score [N] of pooled features [N, D], higher = further from the training images."""
        features = np.asarray(features, np.float64)
        projected = features @ self.directions
        squares, means, along, scaled = self._of_means
        # |x - m|^2 = |x|^2 - 2 x·m + |m|^2, for all classes at once, whole and along the directions
        whole = (features**2).sum(axis=1)[:, None] - 2 * features @ means + squares
        part = (projected**2).sum(axis=1)[:, None] - 2 * projected @ along + (along**2).sum(axis=0)
        weighted = (
            (projected**2 @ (1 / self.variances))[:, None]
            - 2 * projected @ scaled
            + (along * scaled).sum(axis=0)
        )
        return (weighted + np.maximum(whole - part, 0) / self.residual_variance).min(axis=1)

    @cached_property
    def _of_means(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What does not depend on the input: |m|^2 [C], the means [D, C], their projections [K, C], those over the variances."""
        along = (self.class_means @ self.directions).T
        return (
            (self.class_means**2).sum(axis=1),
            self.class_means.T.copy(),
            along,
            along / self.variances[:, None],
        )
