"""Find the nucleated cells of a microscope field by their stain, and crop them as the training images were cropped.

In: an RGB picture of a field or a slide. Out: one square box per cell. Nuclei take up the blue-violet dye (they absorb red and
green, hardly blue); red cells and background do not. Classical steps of scikit-image: a stain channel, Otsu's threshold,
closing to join the lobes of a nucleus, a watershed on the distance map to separate touching cells. A slide is searched tile by
tile; a cell belongs to the tile that contains its centre.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label, regionprops
from skimage.morphology import isotropic_closing, remove_small_holes, remove_small_objects
from skimage.segmentation import watershed

TILE = 1200  # pixels of the longer side that are searched at once
SLIDE_SCALE = 1 / 3  # at which a slide is searched when its nuclei are too small in the overview
SMALLEST_RADIUS = 8  # pixels of a nucleus in the overview; below it, the picture is searched at SLIDE_SCALE
CROP_SIDE = 250  # pixels, of the training crops
TYPICAL_DIAMETER = 0.36  # of a nucleus, as a fraction of the crop's side, when it cannot be measured
MAX_CELLS = 400  # classified per field
MIN_STAIN = 0.7  # of a nucleus in the stain channel; the palest of 360 real nuclei peaks at 1.4
BLUR = 1.5  # pixels: standard deviation of the Gaussian filter of the stain channel
Area = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class Box:
    """A square in pixels of the original picture; it may extend beyond the edge."""

    left: int
    top: int
    side: int


def optical_density(picture: Image.Image) -> np.ndarray:
    """Absorbed light by colour, [H, W, 3] float32."""
    return -np.log(np.maximum(np.asarray(picture, dtype=np.float32), 16) / 255)


def stain_channel(picture: Image.Image, background: np.ndarray) -> np.ndarray:
    """Amount of nuclear dye, [H, W] float32: optical density of red and green minus that of blue, over the background [3].

    Red cells absorb blue and green but hardly red: the channel is 0 where blue is absorbed more than red.
    """
    density = optical_density(picture) - background
    red, green, blue = (gaussian(density[..., channel], BLUR) for channel in range(3))
    return np.where(red > blue, 1.5 * red + 0.5 * green - 0.5 * blue, 0).astype(np.float32)


def background_density(picture: Image.Image) -> np.ndarray:
    """Optical density of the empty field, [3]."""
    return np.percentile(optical_density(picture), 10, axis=(0, 1))


def stain_threshold(stain: np.ndarray) -> float:
    """The stain above which a pixel is part of a nucleus; infinite for a picture without nuclei, where Otsu would split noise."""
    return max(threshold_otsu(stain), MIN_STAIN) if stain.max() >= MIN_STAIN else np.inf


def nuclear_mask(stain: np.ndarray, threshold: float, radius: int) -> np.ndarray:
    """Mask of the nuclei, boolean [H, W]: lobes joined, holes filled, specks removed. `radius` of a nucleus in pixels."""
    mask = stain > threshold
    if not mask.any():
        return mask
    mask = isotropic_closing(mask, max(1, radius // 3))
    mask = remove_small_holes(mask, max_size=int(0.5 * np.pi * radius**2))
    return remove_small_objects(mask, max_size=int(0.25 * np.pi * radius**2))


def typical_diameter(crops: Iterable[Image.Image]) -> float:
    """Median nuclear diameter of training crops, as a fraction of their side; TYPICAL_DIAMETER for fewer than 5 nuclei."""
    diameters = []
    for crop in crops:
        stain = stain_channel(crop, background_density(crop))
        regions = label(nuclear_mask(stain, stain_threshold(stain), radius=round(0.1 * crop.width)))
        if central := regions[regions.shape[0] // 2, regions.shape[1] // 2]:
            diameters.append(2 * np.sqrt((regions == central).sum() / np.pi) / crop.width)
    return float(np.median(diameters)) if len(diameters) >= 5 else TYPICAL_DIAMETER


def find_cells(
    picture: Image.Image, diameter: float = TYPICAL_DIAMETER, side: int | None = None
) -> list[Box]:
    """Boxes of the nucleated cells, row by row from left to right.

    Args:
        diameter: of a nucleus, as a fraction of the crop's side.
        side: of the crops in pixels of the picture; estimated from `diameter` and the median nucleus if None.

    Besides the picture, memory holds its stain channel at a ninth of its pixels and the arrays of one tile.
    """
    overview_scale = scale = min(1.0, TILE / max(picture.size))
    overview = picture.resize([max(1, round(length * scale)) for length in picture.size])
    background = background_density(overview)
    stain = stain_channel(overview, background)
    radius = side * scale * diameter / 2 if side else _guess_radius(stain)
    if radius < SMALLEST_RADIUS and scale < SLIDE_SCALE:
        scale = SLIDE_SCALE
        stain = _stain_of_slide(picture, background)
        radius = radius * scale / overview_scale if side else _guess_radius(stain)
    if radius < 2:
        return []
    threshold = stain_threshold(stain)
    nuclei = _nuclei(stain, threshold, radius)
    if side is None and len(nuclei):
        radius = float(np.median(nuclei[:, 2])) / 2
        nuclei = _nuclei(stain, threshold, radius)
    side = side or round(2 * radius / diameter / scale)
    centres = _merged(nuclei[:, :2] / scale, 1.5 * radius / scale)
    centres.sort(key=lambda centre: (round(centre[0] / side), centre[1]))
    return [Box(round(x - side / 2), round(y - side / 2), side) for y, x in centres]


def evenly(boxes: Sequence[Box]) -> list[Box]:
    """At most MAX_CELLS boxes, evenly spaced: the first ones would only represent the upper part of the field."""
    chosen = np.linspace(0, len(boxes) - 1, min(MAX_CELLS, len(boxes)))
    return [boxes[i] for i in chosen.round().astype(int)]


def _stain_of_slide(picture: Image.Image, background: np.ndarray) -> np.ndarray:
    """The stain channel of a large picture at SLIDE_SCALE, computed tile by tile."""
    factor = round(1 / SLIDE_SCALE)
    height, width = picture.height // factor, picture.width // factor
    stain = np.zeros((height, width), np.float32)
    for area, tile in _tiles(height, width, round(6 * BLUR)):
        rows, columns = area
        corners = (columns.start, rows.start, columns.stop, rows.stop)
        reduced = picture.crop(tuple(factor * corner for corner in corners)).reduce(factor)
        inner = tuple(slice(t.start - a.start, t.stop - a.start) for t, a in zip(tile, area, strict=True))
        stain[tile] = stain_channel(reduced, background)[inner]
    return stain


def _tiles(height: int, width: int, overlap: int) -> Iterator[tuple[Area, Area]]:
    """Rows and columns of each tile with `overlap` pixels around it, and without."""
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            bottom, right = min(top + TILE, height), min(left + TILE, width)
            rows = slice(max(0, top - overlap), min(bottom + overlap, height))
            columns = slice(max(0, left - overlap), min(right + overlap, width))
            yield (rows, columns), (slice(top, bottom), slice(left, right))


def _guess_radius(stain: np.ndarray) -> float:
    """Radius of a nucleus in pixels from the area-weighted median of the stained regions; 0 without any."""
    threshold = stain_threshold(stain)
    areas = np.sort([
        region.area
        for tile, _ in _tiles(*stain.shape, 0)
        for region in regionprops(label(nuclear_mask(stain[tile], threshold, radius=4)))
    ])  # fmt: skip
    if not len(areas):
        return 0.0
    median = areas[np.searchsorted(np.cumsum(areas), areas.sum() / 2)]
    return float(np.sqrt(median / np.pi))


def _nuclei(stain: np.ndarray, threshold: float, radius: float) -> np.ndarray:
    """Row, column and diameter of the nuclei, [N, 3]. `_merged` joins those near a border, which are found in both tiles."""
    nuclei = []
    for area, tile in _tiles(*stain.shape, round(5 * radius)):
        for y, x, diameter in _nuclei_of_tile(stain[area], threshold, radius):
            y, x = y + area[0].start, x + area[1].start
            if all(s.start - radius <= at < s.stop + radius for s, at in zip(tile, (y, x), strict=True)):
                nuclei.append((y, x, diameter))
    return np.array(nuclei).reshape(-1, 3)


def _nuclei_of_tile(
    stain: np.ndarray, threshold: float, radius: float
) -> Iterator[tuple[float, float, float]]:
    """Row, column and diameter; touching nuclei are separated where the distance map has several peaks."""
    mask = nuclear_mask(stain, threshold, round(radius))
    if not mask.any():
        return
    distance = gaussian(distance_transform_edt(mask), radius / 4)
    min_distance = max(1, round(0.9 * radius))
    peaks = peak_local_max(distance, min_distance=min_distance, labels=label(mask), exclude_border=False)
    markers = np.zeros(mask.shape, dtype=np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    for region in regionprops(watershed(-distance, markers, mask=mask)):
        if region.area >= 0.3 * np.pi * radius**2:
            yield *region.centroid, region.equivalent_diameter_area


def _merged(centres: np.ndarray, min_distance: float) -> list[tuple[float, float]]:
    """Replace centres [N, 2] closer than `min_distance`, such as lobes of one nucleus, by their mean."""
    if not len(centres):
        return []
    done, merged = np.zeros(len(centres), dtype=bool), []
    for i, near in enumerate(KDTree(centres).query_ball_point(centres, min_distance)):
        if not done[i]:
            near = [n for n in near if not done[n]]
            done[near] = True
            merged.append(tuple(centres[near].mean(axis=0)))
    return merged


def background_of(picture: Image.Image) -> tuple[int, ...]:
    """RGB colour of the empty field, 0…255."""
    small = picture.resize((64, 64), Image.Resampling.BOX, reducing_gap=2)
    return tuple(int(v) for v in np.percentile(np.asarray(small), 90, axis=(0, 1)))


def cut(picture: Image.Image, box: Box, background: tuple[int, ...] | None = None) -> Image.Image:
    """Crop a box and resize it to CROP_SIDE; what lies beyond the edge gets the colour `background`, measured if None."""
    left, top = max(0, box.left), max(0, box.top)
    right, bottom = min(picture.width, box.left + box.side), min(picture.height, box.top + box.side)
    crop = picture.crop((left, top, right, bottom))
    if crop.size != (box.side, box.side):
        inside, crop = crop, Image.new("RGB", (box.side, box.side), background or background_of(picture))
        crop.paste(inside, (left - box.left, top - box.top))
    return crop.resize((CROP_SIDE, CROP_SIDE), Image.Resampling.BICUBIC)
