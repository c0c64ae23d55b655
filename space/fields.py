"""A whole microscope picture: find the nucleated cells by their stain and cut them out as the training crops were.

In: an RGB picture of a field or a slide. Out: one square box a cell. Nuclei take up the blue-violet dye (low red and green,
high blue); red cells and background do not. Classical steps of scikit-image: a stain channel, Otsu's threshold, closing that
joins the lobes of one nucleus, a watershed on the distance map that parts touching cells. A slide is searched tile by tile;
a cell belongs to the tile that its centre lies in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label, regionprops
from skimage.morphology import isotropic_closing, remove_small_holes, remove_small_objects
from skimage.segmentation import watershed

TILE = 1200  # pixels of the longer side while searching; a larger search goes tile by tile
FINEST = 1 / 3  # of the picture's size: how large slides are searched whose nuclei are small in the whole
SMALLEST_RADIUS = 8  # pixels of a nucleus while searching, below which the picture is searched larger
CROP_SIDE = 250  # of the training crops
TYPICAL_DIAMETER = 0.36  # of a nucleus in a training crop's side, when no crop was measured
MAX_CELLS = 400  # of one field that are classified
WEAKEST_NUCLEUS = 0.7  # of the stain channel; the palest of 360 real nuclei peaks at 1.4
BLUR = 1.5  # pixels: standard deviation of the filter of the stain channel


@dataclass(frozen=True)
class Box:
    """A square in pixels of the original picture; it may reach over the edge."""

    left: int
    top: int
    side: int


def optical_density(picture: Image.Image) -> np.ndarray:
    """[H, W, 3] float: how much light of each colour is taken up."""
    return -np.log(np.maximum(np.asarray(picture, dtype=np.float32), 16) / 255)


def stain_channel(picture: Image.Image, background: np.ndarray) -> np.ndarray:
    """How much nuclear dye, [H, W] float32: optical density of red and green, less that of blue.

    Densities are relative to the `background`'s. Red cells absorb blue and green but hardly red: where blue is absorbed
    more than red there is no nucleus, and the channel is 0.
    """
    density = optical_density(picture) - background
    red, green, blue = (gaussian(density[..., channel], BLUR) for channel in range(3))
    return np.where(red > blue, 1.5 * red + 0.5 * green - 0.5 * blue, 0).astype(np.float32)


def background_density(picture: Image.Image) -> np.ndarray:
    """Optical density of the empty field, by colour."""
    return np.percentile(optical_density(picture), 10, axis=(0, 1))


def weakest_stain(stain: np.ndarray) -> float:
    """The least stain of a nucleus; infinite for an even picture, where whatever a threshold would find is noise."""
    return max(threshold_otsu(stain), WEAKEST_NUCLEUS) if stain.max() >= WEAKEST_NUCLEUS else np.inf


def nuclear_mask(stain: np.ndarray, weakest: float, radius: int) -> np.ndarray:
    """Boolean [H, W]: nuclei, lobes joined, specks below a quarter of `radius` dropped. `radius` in pixels."""
    mask = stain > weakest
    if not mask.any():
        return mask
    mask = isotropic_closing(mask, max(1, radius // 3))
    mask = remove_small_holes(mask, max_size=int(0.5 * np.pi * radius**2))
    return remove_small_objects(mask, max_size=int(0.25 * np.pi * radius**2))


def typical_diameter(crops: Iterable[Image.Image]) -> float:
    """Median nuclear diameter of training crops as a share of their side: the scale a field is cut to."""
    shares = []
    for crop in crops:
        stain = stain_channel(crop, background_density(crop))
        parts = label(nuclear_mask(stain, weakest_stain(stain), radius=round(0.1 * crop.width)))
        if central := parts[parts.shape[0] // 2, parts.shape[1] // 2]:
            shares.append(2 * np.sqrt((parts == central).sum() / np.pi) / crop.width)
    return float(np.median(shares)) if len(shares) >= 5 else TYPICAL_DIAMETER


def find_cells(
    picture: Image.Image, diameter: float = TYPICAL_DIAMETER, side: int | None = None
) -> list[Box]:
    """Boxes of the nucleated cells, from left to right in rows.

    `side` is the crop's side in pixels of the picture; when not given it follows from the median nucleus, so
    that its diameter takes up the share `diameter` of the crop. Besides the picture, memory holds its stain at a ninth of
    its pixels and the work on one tile.
    """
    whole = scale = min(1.0, TILE / max(picture.size))
    overview = _resized(picture, scale)
    background = background_density(overview)
    stain = stain_channel(overview, background)
    guess = side * scale * diameter / 2 if side else _guess_radius(stain)
    if guess < SMALLEST_RADIUS and scale < FINEST:
        scale = FINEST
        stain = _stain_of_slide(picture, background)
        guess = guess * scale / whole if side else _guess_radius(stain)
    if guess < 2:
        return []
    weakest = weakest_stain(stain)
    nuclei = _nuclei(stain, weakest, guess)
    if side is None and len(nuclei):
        guess = float(np.median(nuclei[:, 2])) / 2
        nuclei = _nuclei(stain, weakest, guess)
    side = side or round(2 * guess / diameter / scale)
    centres = _merged(nuclei[:, :2] / scale, 1.5 * guess / scale)
    centres.sort(key=lambda centre: (round(centre[0] / side), centre[1]))
    return [Box(round(x - side / 2), round(y - side / 2), side) for y, x in centres]


def evenly(boxes: Sequence[Box], limit: int = MAX_CELLS) -> list[Box]:
    """At most `limit` boxes, evenly over the field: the first ones would be a count of its upper part."""
    chosen = np.linspace(0, len(boxes) - 1, min(limit, len(boxes)))
    return [boxes[i] for i in chosen.round().astype(int)]


def _resized(picture: Image.Image, scale: float) -> Image.Image:
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))


def _stain_of_slide(picture: Image.Image, background: np.ndarray) -> np.ndarray:
    """The stain channel of a large picture at `FINEST` of its size, computed tile by tile."""
    factor = round(1 / FINEST)
    height, width = picture.height // factor, picture.width // factor
    stain, reach = np.zeros((height, width), np.float32), round(6 * BLUR)
    for rows, columns, inner in _tiles(height, width, reach):
        area = (columns.start, rows.start, columns.stop, rows.stop)
        part = picture.crop(tuple(factor * end for end in area)).reduce(factor)
        found = stain_channel(part, background)
        stain[inner] = found[inner[0].start - rows.start :, inner[1].start - columns.start :][
            : inner[0].stop - inner[0].start, : inner[1].stop - inner[1].start
        ]
    return stain


def _tiles(height: int, width: int, overlap: int) -> Iterator[tuple[slice, slice, tuple[slice, slice]]]:
    """Rows and columns of each tile with `overlap` pixels of its neighbours, and those that are its own."""
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            own = slice(top, min(top + TILE, height)), slice(left, min(left + TILE, width))
            rows = slice(max(0, top - overlap), min(own[0].stop + overlap, height))
            columns = slice(max(0, left - overlap), min(own[1].stop + overlap, width))
            yield rows, columns, own


def _guess_radius(stain: np.ndarray) -> float:
    """Radius of a nucleus in pixels from the area-weighted median of the stained regions; 0 without any."""
    weakest = weakest_stain(stain)
    areas = [
        region.area
        for rows, columns, _ in _tiles(*stain.shape, 0)
        for region in regionprops(label(nuclear_mask(stain[rows, columns], weakest, radius=4)))
    ]
    if not areas:
        return 0.0
    areas = np.sort(areas)
    middle = areas[np.searchsorted(np.cumsum(areas), areas.sum() / 2)]
    return float(np.sqrt(middle / np.pi))


def _nuclei(stain: np.ndarray, weakest: float, radius: float) -> np.ndarray:
    """Row, column and diameter, [N, 3], of single nuclei: touching ones parted where the distance map has separate peaks.

    A nucleus is taken where its centre lies within the tile or a radius around it: one on a border is seen from both sides,
    whole, and `_merged` makes one of the two.
    """
    found = []
    for rows, columns, own in _tiles(*stain.shape, round(5 * radius)):
        for y, x, diameter in _nuclei_of_tile(stain[rows, columns], weakest, radius):
            y, x = y + rows.start, x + columns.start
            if all(s.start - radius <= at < s.stop + radius for s, at in zip(own, (y, x), strict=True)):
                found.append((y, x, diameter))
    return np.array(found).reshape(-1, 3)


def _nuclei_of_tile(stain: np.ndarray, weakest: float, radius: float) -> Iterator[tuple[float, float, float]]:
    from scipy.ndimage import distance_transform_edt

    mask = nuclear_mask(stain, weakest, round(radius))
    if not mask.any():
        return
    distance = gaussian(distance_transform_edt(mask), radius / 4)
    apart = max(1, round(0.9 * radius))
    peaks = peak_local_max(distance, min_distance=apart, labels=label(mask), exclude_border=False)
    markers = np.zeros(mask.shape, dtype=np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    for region in regionprops(watershed(-distance, markers, mask=mask)):
        if region.area >= 0.3 * np.pi * radius**2:
            yield *region.centroid, region.equivalent_diameter_area


def _merged(centres: np.ndarray, apart: float) -> list[tuple[float, float]]:
    """Centres [N, 2] that lie closer than `apart` are lobes of one nucleus: their mean stands for all."""
    from scipy.spatial import KDTree

    if not len(centres):
        return []
    taken, merged = np.zeros(len(centres), dtype=bool), []
    for i, near in enumerate(KDTree(centres).query_ball_point(centres, apart)):
        if not taken[i]:
            near = [n for n in near if not taken[n]]
            taken[near] = True
            merged.append(tuple(centres[near].mean(axis=0)))
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
