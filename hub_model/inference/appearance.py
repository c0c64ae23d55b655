"""How images look, apart from what they show: light, colour, sharpness and grain, against those of the training laboratories.

In: the pixels that the network sees. Out: statistics of each image; how far they lie from the training images' (part of the OOD
score); and for a batch, whether it comes from a laboratory unlike them. The reference is `appearance` of `calibration.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

STATISTICS = (
    *(f"{what}_{colour}" for what in ("background", "mean", "spread") for colour in ("red", "green", "blue")),
    *(f"sharpness_{band}" for band in range(4)),
    "grain", "centre", "centre_spread", "border",
)  # fmt: skip
CLASS_FREE = 14  # the first so many say little of which cells are shown
SMALLEST_BATCH = 20
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


def _halved(values: np.ndarray) -> np.ndarray:
    """Means of 2 × 2 pixels of [..., H, W]."""
    height, width = (side // 2 * 2 for side in values.shape[-2:])
    blocks = values[..., :height, :width].reshape(*values.shape[:-2], height // 2, 2, width // 2, 2)
    return blocks.mean(axis=(-3, -1))


def _detail(values: np.ndarray, halved: np.ndarray) -> np.ndarray:
    """What is lost by halving, [..., H, W] (Burt & Adelson's pyramid with a box filter)."""
    larger = halved.repeat(2, axis=-2).repeat(2, axis=-1)
    return values[..., : larger.shape[-2], : larger.shape[-1]] - larger


def appearance(pixels: np.ndarray) -> np.ndarray:
    """`STATISTICS` of images, float64 [N, K], of pixels [N, 3, H, W] in 0…1.

    Background: the median of the brightest tenth; `sharpness_k`: log root mean square of octave k of detail, 0 the finest;
    `grain`: correlation of red and blue in it; `centre`, `border`: optical density of green in the middle and at the edge.
    """
    halved = _halved(pixels)
    coarse = halved.reshape(len(pixels), 3, halved.shape[2] * halved.shape[3])
    kept = max(coarse.shape[2] // 10, 1)
    grey = np.round(coarse.mean(axis=1), 4)  # ties stay ties, whatever the precision
    limits = np.partition(grey, -kept, axis=1)[:, -kept]
    background = np.empty((len(pixels), 3))
    for image, (values, level, limit) in enumerate(zip(coarse, grey, limits, strict=True)):
        background[image] = np.median(values[:, level >= limit], axis=1)
    spread = np.log(pixels.std(axis=(2, 3)) + 1e-3)
    octaves, scaled = [], pixels.mean(axis=1)
    for _ in range(4):
        smaller = _halved(scaled)
        octaves.append(np.log(np.sqrt((_detail(scaled, smaller) ** 2).mean(axis=(1, 2))) + 1e-4))
        scaled = smaller
    red, _, blue = _detail(pixels, halved).transpose(1, 0, 2, 3)
    power = np.sqrt((red**2).mean(axis=(1, 2)) * (blue**2).mean(axis=(1, 2)))
    grain = (red * blue).mean(axis=(1, 2)) / (power + 1e-9)
    rows, columns = np.ogrid[-1 : 1 : halved.shape[2] * 1j, -1 : 1 : halved.shape[3] * 1j]
    radius = np.hypot(rows, columns).ravel()
    density = -np.log(np.maximum(coarse[:, 1], 1 / 255) / np.maximum(background[:, 1:2], 1 / 255))
    centre = density[:, radius < 0.35]
    rest = (
        grain,
        centre.mean(axis=1),
        np.log(centre.std(axis=1) + 1e-3),
        density[:, radius > 0.85].mean(axis=1),
    )
    parts = (background, pixels.mean(axis=(2, 3)), spread, np.stack(octaves, axis=1), np.stack(rest, axis=1))
    return np.concatenate(parts, axis=1, dtype=np.float64)


@dataclass(frozen=True)
class AppearanceReference:
    """Mean [S, K] and covariance [S, K, K] of the training images of each laboratory (`sources`), and the OOD threshold."""

    sources: tuple[str, ...]
    means: np.ndarray
    covariances: np.ndarray
    threshold: float

    @classmethod
    def read(cls, found: dict[str, Any]) -> AppearanceReference:
        """`appearance` of `calibration.json`; ValueError, KeyError or TypeError where it is malformed."""
        if tuple(found["statistics"]) != STATISTICS:
            raise ValueError("appearance holds other statistics than this version computes: fit them again")
        sources = found["sources"]
        means, covariances = (
            np.array([source[key] for source in sources.values()], float) for key in ("mean", "covariance")
        )
        if means.shape[1:] != (len(STATISTICS),) or covariances.shape[1:] != (len(STATISTICS),) * 2:
            raise ValueError(f"appearance must hold {len(STATISTICS)} statistics a source")
        return cls(tuple(sources), means, covariances, float(found["threshold"]))

    def score(self, statistics: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distance [N] of statistics [N, K] to the nearest laboratory."""
        away = statistics[:, None] - self.means
        return np.einsum("nsk,skl,nsl->ns", away, np.linalg.inv(self.covariances), away).min(axis=1)

    def shift(self, statistics: np.ndarray) -> Shift | None:
        """How a batch [N, K] of 20 or more images looks unlike every training laboratory; None where it does not.

        Its mean is compared with the nearest laboratory's, in standard deviations of that laboratory's images, statistic by
        statistic.
        """
        if len(statistics) < SMALLEST_BATCH:
            return None
        deviations = np.sqrt(np.diagonal(self.covariances, axis1=1, axis2=2))
        off = ((statistics.mean(axis=0) - self.means) / deviations)[:, :CLASS_FREE]
        nearest = off[np.abs(off).max(axis=1).argmin()]
        worst = int(np.abs(nearest).argmax())
        if abs(nearest[worst]) <= SHIFT:
            return None
        return Shift(STATISTICS[worst], float(nearest[worst]))
