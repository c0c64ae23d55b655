"""How images look, apart from what they show: light, colour, sharpness and grain, against those of the training laboratories.

In: the pixels that the network sees. Out: statistics of each image; how far they lie from the training images' (part of the OOD
score); and for a batch, whether it comes from a laboratory unlike them. The reference is `appearance` of `calibration.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

STATISTICS = (
    *(f"{what}_{colour}" for what in ("background", "mean", "spread") for colour in ("red", "green", "blue")),
    *(f"sharpness_{band}" for band in range(4)),
    "grain", "centre", "centre_spread", "border",
)  # fmt: skip
CLASS_FREE = 14  # the first so many say little of which cells are shown
SMALLEST_BATCH = 20
PART = 4  # images at a time: more do not fit a core's cache
EXACT_WIDTH = 256  # of rows whose sum of squared levels a float32 holds
SHIFT = (
    1.0  # standard deviations of the training images that a batch's mean may lie off: slides differ by less
)
REASONS = {  # by the beginning of a statistic's name: when it is above, and when it is below
    "background": ("have a lighter background", "have a darker background"),
    "mean": ("are lighter", "are darker"),
    "spread": ("have more contrast", "have less contrast"),
    "sharpness": ("are sharper", "are more blurred"),
    "grain": ("have less coloured noise", "have more coloured noise"),
}
SENTENCE = (
    "These images {reason} than those of every laboratory that the model was trained on "
    "({statistic}: {off} standard deviations); expect more errors."
)


@dataclass(frozen=True)
class Shift:
    """How a batch differs from the nearest training laboratory: the worst statistic, and by how many standard deviations."""

    statistic: str
    off: float

    @property
    def cause(self) -> str:
        """The key of `REASONS`."""
        return self.statistic.partition("_")[0]

    def __str__(self) -> str:
        reason = REASONS[self.cause][int(self.off < 0)]
        return SENTENCE.format(
            reason=reason, statistic=self.statistic.replace("_", " "), off=f"{self.off:+.1f}"
        )


def _blocks(values: np.ndarray) -> np.ndarray:
    """Sums of 2 × 2 pixels of [..., H, W]; an odd last row or column is left out."""
    height, width = (side // 2 * 2 for side in values.shape[-2:])
    rows = values[..., 0:height:2, :width] + values[..., 1:height:2, :width]
    return rows[..., ::2] + rows[..., 1::2]


def _products(channels: np.ndarray) -> np.ndarray:
    """Sums of the products of every two of K channels [N, K, H, W]: [N, K, K]."""
    # row by row: a longer product would wake OpenBLAS's threads (see SMALL_PRODUCT in ood.py)
    return np.vecdot(channels[:, :, None], channels[:, None]).sum(axis=-1, dtype=np.float64)


@lru_cache(maxsize=8)
def _middle_and_edge(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the pixels in the middle of a picture, and of those at its edge and in its corners."""
    rows, columns = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    radius = np.hypot(rows, columns).ravel()
    return np.flatnonzero(radius < 0.35), np.flatnonzero(radius > 0.85)


def appearance(pixels: np.ndarray) -> np.ndarray:
    """`STATISTICS` of images, float64 [N, K], of pixels [N, 3, H, W] in 0…1 that come from 8 bits.

    Background: the median of the brightest tenth; `sharpness_k`: log root mean square of octave k of detail, 0 the finest
    (Burt & Adelson's pyramid with a box filter); `grain`: correlation of red and blue in it; `centre`, `border`: optical
    density of green in the middle and at the edge. An odd last row or column is left out.
    """
    found = [_appearance(pixels[i : i + PART]) for i in range(0, len(pixels), PART)]
    return np.concatenate(found) if found else np.empty((0, len(STATISTICS)))


def _appearance(pixels: np.ndarray) -> np.ndarray:
    """`appearance` of few images: in levels of 0…255, of which all sums are exact, whatever the precision of the pixels."""
    height, width = (side // 2 * 2 for side in pixels.shape[2:])
    levels = pixels[:, :, :height, :width] * np.float32(255)
    np.rint(levels, out=levels)
    size, blocks = height * width, _blocks(levels)
    coarse = blocks.reshape(*blocks.shape[:2], -1)
    grey = coarse.sum(axis=1)
    kept = max(grey.shape[1] // 10, 1)
    limits = np.partition(grey, -kept, axis=1)[:, -kept, None]
    background = np.empty((len(levels), 3))
    for median, values, bright in zip(background, coarse, grey >= limits, strict=True):
        ordered = np.sort(values[:, np.flatnonzero(bright)], axis=1)
        last = ordered.shape[1] - 1
        median[:] = (ordered[:, last // 2] + ordered[:, (last + 1) // 2]) / 2
    exact = levels if width <= EXACT_WIDTH else levels.astype(np.float64)
    mean, whole = coarse.sum(axis=2, dtype=np.float64) / size, _products(exact)
    variance = np.diagonal(whole, axis1=1, axis2=2) / size - mean**2
    # what halving loses of a pixel is its difference from the mean of its 2 × 2 block: summed over a block, the product of two
    # such is the products of its pixels less a quarter of the product of its sums
    lost = (whole - _products(blocks.astype(np.float64)) / 4) / size
    powers = [lost.sum(axis=(1, 2))]
    picture = grey.reshape(len(grey), 1, height // 2, width // 2).astype(np.float64)
    for _ in range(3):
        smaller = _blocks(picture)
        rows, columns = (2 * side for side in smaller.shape[2:])
        total = _products(picture[..., :rows, :columns]) - _products(smaller) / 4
        powers.append(total[:, 0, 0] / (rows * columns))
        picture = smaller
    scales = 3 * 255 * 4.0 ** np.arange(4)  # of the octaves' values, 1 after division
    sharpness = np.log(np.sqrt(np.stack(powers, axis=1)) / scales + 1e-4)
    grain = lost[:, 0, 2] / (np.sqrt(lost[:, 0, 0] * lost[:, 2, 2]) + 1e-9 * 255**2)
    empty, green = np.log(np.maximum(background[:, 1:2], 4)), coarse[:, 1].astype(np.float64)
    centre, border = (
        empty - np.log(np.maximum(green[:, where], 4)) for where in _middle_and_edge(*blocks.shape[2:])
    )
    rest = (grain, centre.mean(axis=1), np.log(centre.std(axis=1) + 1e-3), border.mean(axis=1))
    spread = np.log(np.sqrt(variance) / 255 + 1e-3)
    return np.concatenate(
        [background / (4 * 255), mean / 255, spread, sharpness, np.stack(rest, axis=1)], axis=1
    )


@dataclass(frozen=True)
class AppearanceReference:
    """Means [S, K] and covariances [S, K, K] of the training images of each laboratory (`sources`).

    `class_means` [S, C, K] are those of each class, `deviations` [S, K] the standard deviations within a class. `threshold` and
    `weight` (0…1) are those of this distance in the OOD score.
    """

    sources: tuple[str, ...]
    means: np.ndarray
    covariances: np.ndarray
    class_means: np.ndarray
    deviations: np.ndarray
    threshold: float
    weight: float

    @classmethod
    def read(cls, found: dict[str, Any]) -> AppearanceReference:
        """`appearance` of `calibration.json`; ValueError, KeyError or TypeError where it is malformed."""
        if tuple(found["statistics"]) != STATISTICS:
            raise ValueError("appearance holds other statistics than this version computes: fit them again")
        sources, each = found["sources"], len(STATISTICS)
        means, covariances, class_means, deviations = (
            np.array([source[key] for source in sources.values()], float)
            for key in ("mean", "covariance", "class_means", "deviation")
        )
        shapes = {array.shape[1:] for array in (means, deviations)} | {class_means.shape[2:]}
        if shapes != {(each,)} or covariances.shape[1:] != (each, each):
            raise ValueError(f"appearance must hold {each} statistics a source and class")
        weight = float(found["weight"])
        if not 0 <= weight <= 1:
            raise ValueError(f"the weight of appearance is {weight}, not of 0…1")
        threshold = float(found["threshold"])
        return cls(tuple(sources), means, covariances, class_means, deviations, threshold, weight)

    def score(self, statistics: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distance [N] of statistics [N, K] to the nearest laboratory."""
        away = statistics - self.means[:, None]
        return (away @ self._precisions * away).sum(axis=2).min(axis=0)

    @cached_property
    def _precisions(self) -> np.ndarray:
        return np.linalg.inv(self.covariances)

    def shift(self, statistics: np.ndarray, probabilities: np.ndarray) -> Shift | None:
        """How a batch [N, K] of 20 or more images looks unlike every training laboratory; None where it does not.

        Its mean is compared with what the nearest laboratory's images of these classes (probabilities [N, C]) would have, in
        standard deviations within a class, statistic by statistic: a batch of lymphocytes alone is no other laboratory.
        """
        if len(statistics) < SMALLEST_BATCH:
            return None
        expected = probabilities.mean(axis=0) @ self.class_means
        off = ((statistics.mean(axis=0) - expected) / self.deviations)[:, :CLASS_FREE]
        nearest = off[np.abs(off).max(axis=1).argmin()]
        worst = int(np.abs(nearest).argmax())
        if abs(nearest[worst]) <= SHIFT:
            return None
        return Shift(STATISTICS[worst], float(nearest[worst]))
