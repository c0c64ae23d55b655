"""A whole microscope picture: find the nucleated cells by their stain and cut them out as the training crops
were.

In: an RGB picture of a field. Out: one square box a cell. Nuclei take up the blue-violet dye (low red and
green, high blue); red cells and background do not. Classical steps of scikit-image: a stain channel, Otsu's
threshold, closing that joins the lobes of one nucleus, a watershed on the distance map that parts touching
cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label, regionprops
from skimage.morphology import isotropic_closing, remove_small_holes, remove_small_objects
from skimage.segmentation import watershed

WORKING_SIDE = 1200  # pixels of the longer side while searching
CROP_SIDE = 250  # of the training crops
TYPICAL_DIAMETER = 0.36  # of a nucleus in a training crop's side, when no crop was measured
MAX_CELLS = 400  # of one field that are classified
WEAKEST_NUCLEUS = 0.7  # of the stain channel; the palest of 360 real nuclei peaks at 1.4


@dataclass(frozen=True)
class Box:
    """A square in pixels of the original picture; it may reach over the edge."""

    left: int
    top: int
    side: int


def stain_channel(picture: Image.Image) -> np.ndarray:
    """How much nuclear dye, [H, W] float: optical density of red and green, less that of blue.

    Densities are relative to the background. Red cells absorb blue and green but hardly red: where blue is absorbed
    more than red there is no nucleus, and the channel is 0.
    """
    density = -np.log(np.maximum(np.asarray(picture, dtype=np.float32), 16) / 255)
    density -= np.percentile(density, 10, axis=(0, 1))
    red, green, blue = (gaussian(density[..., channel], 1.5) for channel in range(3))
    return np.where(red > blue, 1.5 * red + 0.5 * green - 0.5 * blue, 0)


def nuclear_mask(picture: Image.Image, radius: int) -> np.ndarray:
    """Boolean [H, W]: nuclei, lobes joined, specks below a quarter of `radius` dropped. `radius` in pixels."""
    stain = stain_channel(picture)
    if stain.max() < WEAKEST_NUCLEUS:  # an even picture: whatever the threshold would find is noise
        return np.zeros(stain.shape, dtype=bool)
    mask = stain > max(threshold_otsu(stain), WEAKEST_NUCLEUS)
    mask = isotropic_closing(mask, max(1, radius // 3))
    mask = remove_small_holes(mask, max_size=int(0.5 * np.pi * radius**2))
    return remove_small_objects(mask, max_size=int(0.25 * np.pi * radius**2))


def typical_diameter(crops: Iterable[Image.Image]) -> float:
    """Median nuclear diameter of training crops as a share of their side: the scale a field is cut to."""
    shares = []
    for crop in crops:
        mask = nuclear_mask(crop, radius=round(0.1 * crop.width))
        central = label(mask)[mask.shape[0] // 2, mask.shape[1] // 2]
        if central:
            shares.append(2 * np.sqrt((label(mask) == central).sum() / np.pi) / crop.width)
    return float(np.median(shares)) if len(shares) >= 5 else TYPICAL_DIAMETER


def find_cells(
    picture: Image.Image, diameter: float = TYPICAL_DIAMETER, side: int | None = None
) -> list[Box]:
    """Boxes of the nucleated cells, from left to right in rows.

    `side` is the crop's side in pixels of the picture; when not given it follows from the median nucleus, so
    that its diameter takes up the share `diameter` of the crop.
    """
    scale = min(1.0, WORKING_SIDE / max(picture.size))
    small = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    guess = side * scale * diameter / 2 if side else _guess_radius(small)
    if guess < 2:
        return []
    regions = _nuclei(small, guess)
    if side is None and regions:
        guess = float(np.median([region.equivalent_diameter_area for region in regions])) / 2
        regions = _nuclei(small, guess)
    side = side or round(2 * guess / diameter / scale)
    apart = 1.5 * guess / scale
    centres = _merged([(region.centroid[0] / scale, region.centroid[1] / scale) for region in regions], apart)
    centres.sort(key=lambda centre: (round(centre[0] / side), centre[1]))
    return [Box(round(x - side / 2), round(y - side / 2), side) for y, x in centres]


def evenly(boxes: Sequence[Box], limit: int = MAX_CELLS) -> list[Box]:
    """At most `limit` boxes, evenly over the field: the first ones would be a count of its upper part."""
    chosen = np.linspace(0, len(boxes) - 1, min(limit, len(boxes)))
    return [boxes[i] for i in chosen.round().astype(int)]


def _guess_radius(small: Image.Image) -> float:
    """Radius of a nucleus in pixels from the area-weighted median of the stained regions."""
    mask = nuclear_mask(small, radius=4)
    areas = np.sort([region.area for region in regionprops(label(mask))])
    if not len(areas):
        return 0.0
    middle = areas[np.searchsorted(np.cumsum(areas), areas.sum() / 2)]
    return float(np.sqrt(middle / np.pi))


def _nuclei(small: Image.Image, radius: float) -> list:
    """Regions of single nuclei: touching ones parted where the distance map has separate peaks."""
    from scipy.ndimage import distance_transform_edt

    mask = nuclear_mask(small, round(radius))
    distance = gaussian(distance_transform_edt(mask), radius / 4)
    apart = max(1, round(0.9 * radius))
    peaks = peak_local_max(distance, min_distance=apart, labels=label(mask), exclude_border=False)
    markers = np.zeros(mask.shape, dtype=np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    regions = regionprops(watershed(-distance, markers, mask=mask))
    return [region for region in regions if region.area >= 0.3 * np.pi * radius**2]


def _merged(centres: list[tuple[float, float]], apart: float) -> list[tuple[float, float]]:
    """Centres that lie closer than `apart` are lobes of one nucleus: their midpoint stands for both."""
    merged: list[tuple[float, float]] = []
    for y, x in centres:
        near = next((i for i, (v, u) in enumerate(merged) if np.hypot(v - y, u - x) < apart), None)
        if near is None:
            merged.append((y, x))
        else:
            merged[near] = ((merged[near][0] + y) / 2, (merged[near][1] + x) / 2)
    return merged


def background_of(picture: Image.Image) -> tuple[int, ...]:
    """The colour of the empty field: what lies beyond its edge in a crop."""
    small = picture.resize((64, 64), Image.Resampling.BOX, reducing_gap=2)
    return tuple(int(v) for v in np.percentile(np.asarray(small), 90, axis=(0, 1)))


def cut(picture: Image.Image, box: Box, background: tuple[int, ...] | None = None) -> Image.Image:
    """The crop of a box at the training crops' size; beyond the edge `background`, measured once for many boxes."""
    left, top = max(0, box.left), max(0, box.top)
    right, bottom = min(picture.width, box.left + box.side), min(picture.height, box.top + box.side)
    crop = picture.crop((left, top, right, bottom))
    if crop.size != (box.side, box.side):
        whole = Image.new("RGB", (box.side, box.side), background or background_of(picture))
        whole.paste(crop, (left - box.left, top - box.top))
        crop = whole
    return crop.resize((CROP_SIDE, CROP_SIDE), Image.Resampling.BICUBIC)
