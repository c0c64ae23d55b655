"""Image statistics of illumination, colour, sharpness and noise, compared with those of the training laboratories.

In: the pixels that the network sees. Out: statistics per image; their distance to those of the training images (part of the OOD
score); and for a batch, whether it looks like that of another laboratory. The reference is `appearance` of `calibration.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

STATISTICS = (
    *(f"{kind}_{colour}" for kind in ("background", "mean", "spread") for colour in ("red", "green", "blue")),
    *(f"sharpness_{octave}" for octave in range(4)),
    "grain", "centre", "centre_spread", "border",
)  # fmt: skip
CLASS_FREE = 14  # the first 14 statistics hardly depend on the classes shown
SMALLEST_BATCH = 20
CHUNK = 4  # images processed at a time: more do not fit a core's cache
EXACT_WIDTH = 256  # widest rows whose sum of squared 8-bit values is exact in float32
MAX_SHIFT = 1.0  # standard deviations between means of a batch and of training images: slides differ by less
REASONS = {  # by the first word of a statistic: its value is above that of the training images, or below
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
    """How a batch differs from the nearest training laboratory: its most deviant statistic, in standard deviations."""

    statistic: str
    off: float

    @property
    def cause(self) -> str:
        """The key of `REASONS`."""
        return self.statistic.partition("_")[0]

    def __str__(self) -> str:
        reason = REASONS[self.cause][int(self.off < 0)]
        statistic = self.statistic.replace("_", " ")
        return SENTENCE.format(reason=reason, statistic=statistic, off=f"{self.off:+.1f}")


def _block_sums(values: np.ndarray) -> np.ndarray:
    """Sums over blocks of 2 × 2 pixels of [..., H, W]; an odd last row or column is dropped."""
    height, width = (side // 2 * 2 for side in values.shape[-2:])
    rows = values[..., 0:height:2, :width] + values[..., 1:height:2, :width]
    return rows[..., ::2] + rows[..., 1::2]


def _channel_products(channels: np.ndarray) -> np.ndarray:
    """Sums over all pixels of the product of each pair of channels [N, K, H, W]: [N, K, K]."""
    # row by row: a longer product would start OpenBLAS's threads (see SMALL_PRODUCT in ood.py)
    return np.vecdot(channels[:, :, None], channels[:, None]).sum(axis=-1, dtype=np.float64)


@lru_cache(maxsize=8)
def _centre_and_border(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of the pixels in the centre of an image, and of those along its border."""
    rows, columns = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    radius = np.hypot(rows, columns).ravel()
    return np.flatnonzero(radius < 0.35), np.flatnonzero(radius > 0.85)


def appearance(pixels: np.ndarray) -> np.ndarray:
    """`STATISTICS` of images, float64 [N, K], from pixels [N, 3, H, W] in [0, 1] that were decoded from 8 bits.

    `background`: median of the brightest tenth; `sharpness_k`: log root mean square of detail in octave k, 0 the finest
    (Burt & Adelson's pyramid with a box filter); `grain`: correlation of red and blue in octave 0; `centre`, `border`: optical
    density of green in the centre and along the border. An odd last row or column is dropped.
    """
    chunks = [_appearance(pixels[i : i + CHUNK]) for i in range(0, len(pixels), CHUNK)]
    return np.concatenate([np.empty((0, len(STATISTICS))), *chunks])


def _appearance(pixels: np.ndarray) -> np.ndarray:
    """`appearance` of one chunk, in 8-bit values: their sums are exact at any precision of the pixels."""
    height, width = (side // 2 * 2 for side in pixels.shape[2:])
    values = pixels[:, :, :height, :width] * np.float32(255)
    np.rint(values, out=values)
    size, blocks = height * width, _block_sums(values)
    coarse = blocks.reshape(*blocks.shape[:2], -1)
    grey = coarse.sum(axis=1)
    brightest = max(grey.shape[1] // 10, 1)
    thresholds = np.partition(grey, -brightest, axis=1)[:, -brightest, None]
    background = np.empty((len(values), 3))
    for median, colours, bright in zip(background, coarse, grey >= thresholds, strict=True):
        ordered = np.sort(colours[:, np.flatnonzero(bright)], axis=1)
        last = ordered.shape[1] - 1
        median[:] = (ordered[:, last // 2] + ordered[:, (last + 1) // 2]) / 2
    exact = values if width <= EXACT_WIDTH else values.astype(np.float64)
    mean, products = coarse.sum(axis=2, dtype=np.float64) / size, _channel_products(exact)
    variance = np.diagonal(products, axis1=1, axis2=2) / size - mean**2
    # The detail of an octave is each pixel's difference from the mean of its 2 × 2 block. Summed over a block, the product of the
    # details of two channels is the sum of the pixels' products less a quarter of the product of the block's sums.
    detail = (products - _channel_products(blocks.astype(np.float64)) / 4) / size
    powers = [detail.sum(axis=(1, 2))]
    octave = grey.reshape(len(grey), 1, height // 2, width // 2).astype(np.float64)
    for _ in range(3):
        halved = _block_sums(octave)
        rows, columns = (2 * side for side in halved.shape[2:])
        total = _channel_products(octave[..., :rows, :columns]) - _channel_products(halved) / 4
        powers.append(total[:, 0, 0] / (rows * columns))
        octave = halved
    scales = 3 * 255 * 4.0 ** np.arange(4)  # of each octave's block sums, over values in [0, 1]
    sharpness = np.log(np.sqrt(np.stack(powers, axis=1)) / scales + 1e-4)
    grain = detail[:, 0, 2] / (np.sqrt(detail[:, 0, 0] * detail[:, 2, 2]) + 1e-9 * 255**2)
    blank, green = np.log(np.maximum(background[:, 1:2], 4)), coarse[:, 1].astype(np.float64)
    centre, border = (
        blank - np.log(np.maximum(green[:, indices], 4)) for indices in _centre_and_border(*blocks.shape[2:])
    )
    centre_spread, spread = np.log(centre.std(axis=1) + 1e-3), np.log(np.sqrt(variance) / 255 + 1e-3)
    rest = sharpness, grain, centre.mean(axis=1), centre_spread, border.mean(axis=1)
    return np.column_stack([background / (4 * 255), mean / 255, spread, *rest])


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
            raise ValueError("appearance.statistics are not those that this version computes: fit them again")
        sources, k = found["sources"], len(STATISTICS)
        means, covariances, class_means, deviations = (
            np.array([source[key] for source in sources.values()], float)
            for key in ("mean", "covariance", "class_means", "deviation")
        )
        shapes = {array.shape[1:] for array in (means, deviations)} | {class_means.shape[2:]}
        if shapes != {(k,)} or covariances.shape[1:] != (k, k):
            raise ValueError(f"appearance must have {k} statistics for each source and class")
        weight = float(found["weight"])
        if not 0 <= weight <= 1:
            raise ValueError(f"appearance.weight must be between 0 and 1, not {weight}")
        threshold = float(found["threshold"])
        return cls(tuple(sources), means, covariances, class_means, deviations, threshold, weight)

    def score(self, statistics: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distance [N] of statistics [N, K] to the nearest laboratory."""
        centred = statistics - self.means[:, None]
        return (centred @ self._precisions * centred).sum(axis=2).min(axis=0)

    @cached_property
    def _precisions(self) -> np.ndarray:
        return np.linalg.inv(self.covariances)

    def shift(self, statistics: np.ndarray, probabilities: np.ndarray) -> Shift | None:
        """How a batch [N, K] of 20 or more images differs from every training laboratory; None where it does not.

        The batch mean of each statistic is compared with the mean expected of each laboratory's images in the same mix of classes
        (probabilities [N, C]), in standard deviations within a class: a batch of lymphocytes alone is not a shift.
        """
        if len(statistics) < SMALLEST_BATCH:
            return None
        expected = probabilities.mean(axis=0) @ self.class_means
        off = ((statistics.mean(axis=0) - expected) / self.deviations)[:, :CLASS_FREE]
        nearest = off[np.abs(off).max(axis=1).argmin()]
        worst = int(np.abs(nearest).argmax())
        if abs(nearest[worst]) <= MAX_SHIFT:
            return None
        return Shift(STATISTICS[worst], float(nearest[worst]))
