"""Perturbations that simulate other stains, cameras and microscopes: uint8 RGB [H, W, 3] in and out.

Lengths are relative to the width, so crops of any size are altered alike. Changes of dye act on the optical density, in which
dyes are additive (Ruifrok & Johnston 2001).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation, gaussian_filter
from skimage.color import hed_from_rgb, lab2rgb, rgb2gray, rgb2lab, rgb_from_hed
from skimage.transform import rotate

Perturbation = Callable[[np.ndarray, np.random.Generator], np.ndarray]
BACKGROUND_FRACTION = 0.1  # fraction of a crop's pixels, the brightest, taken for its background
STAINED = 0.72  # nuclei and blue cytoplasm transmit less than this fraction of the background's green
CELL_RADIUS = 0.4  # in widths: anything further from the centre is not part of the cell
CREAM = ((232, 252), (218, 240), (192, 222))  # ranges of R, G, B of a warm, yellowish background


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Values in 0…1, clipped, as uint8."""
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


def background_colour(image: np.ndarray) -> np.ndarray:
    """Colour [3] in 0…255 of the empty field: the median of the brightest tenth of the pixels, float64."""
    grey = rgb2gray(image)
    return np.median(image[grey >= np.quantile(grey, 1 - BACKGROUND_FRACTION)], axis=0)


def stain(image: np.ndarray, haematoxylin: float = 1.0, eosin: float = 1.0) -> np.ndarray:
    """Multiply the amount of the blue (haematoxylin-like) and of the red (eosin) dye; the empty field is unchanged.

    Dyes are the optical density above the background's, unmixed by Ruifrok & Johnston's matrix. Unlike in
    `skimage.color.rgb2hed`, negative amounts are not clipped, which would cause halos around the cells.
    """
    empty = np.maximum(background_colour(image), 1) / 255
    density = -np.log(np.maximum(image, 1) / 255 / empty)
    dyes = density @ hed_from_rgb * np.array([haematoxylin, eosin, 1.0])
    return to_bytes(empty * np.exp(-dyes @ rgb_from_hed))


def scale_channels(image: np.ndarray, gains: Sequence[float] | float) -> np.ndarray:
    """Multiply the channels by `gains` [3] (white balance), or all by the same gain (brightness)."""
    return to_bytes(image / 255 * np.asarray(gains))


def colour_statistics(image: np.ndarray) -> np.ndarray:
    """Mean and standard deviation [2, 3] of a crop in CIE L*a*b* (Reinhard et al. 2001)."""
    lab = rgb2lab(image).reshape(-1, 3)
    return np.stack([lab.mean(axis=0), lab.std(axis=0)])


def reinhard(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Give a crop the L*a*b* mean and standard deviation `target` [2, 3] (Reinhard et al. 2001)."""
    mean, std = colour_statistics(image)
    lab = (rgb2lab(image) - mean) / np.maximum(std, 1e-3) * target[1] + target[0]
    return to_bytes(lab2rgb(lab))


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Defocus: a Gaussian whose sigma is `sigma` of the width."""
    pixels = sigma * image.shape[1]
    return to_bytes(gaussian_filter(image / 255, (pixels, pixels, 0)))


def sharpen(image: np.ndarray, radius: float, strength: float) -> np.ndarray:
    """A sharper camera: add `strength` times the detail that a Gaussian blur of sigma `radius` (of the width) removes."""
    sigma, values = radius * image.shape[1], image / 255
    return to_bytes(values + strength * (values - gaussian_filter(values, (sigma, sigma, 0))))


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Encode as JPEG of the given quality and decode."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def fade_neighbours(canvas: np.ndarray, radius: float) -> np.ndarray:
    """Blend stained areas beyond `radius` pixels from the centre into the background; red cells stay."""
    height, width = canvas.shape[:2]
    colour = background_colour(canvas)
    rows, columns = np.ogrid[:height, :width]
    beyond = np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2) / radius - 1
    soft = 0.03 * radius
    stained = binary_dilation(canvas[..., 1] < STAINED * colour[1], iterations=round(2 * soft))
    cover = (gaussian_filter(stained.astype(float), soft) * np.clip(5 * beyond, 0, 1))[..., None]
    return (canvas * (1 - cover) + colour * cover).round().astype(np.uint8)


def magnify(image: np.ndarray, zoom: float) -> np.ndarray:
    """Show the cell `zoom` times as large in the same frame.

    Below 1, the field is extended by reflection, and stained areas outside the cell are faded out, so that no
    cell appears cut or twice.
    """
    height, width = image.shape[:2]
    if zoom < 1:
        pad = [(n, n) for n in (round(height * (1 / zoom - 1) / 2), round(width * (1 / zoom - 1) / 2))]
        canvas = fade_neighbours(np.pad(image, [*pad, (0, 0)], mode="reflect"), CELL_RADIUS * width)
        return np.asarray(Image.fromarray(canvas).resize((width, height), Image.Resampling.LANCZOS))
    left, top = width * (1 - 1 / zoom) / 2, height * (1 - 1 / zoom) / 2
    box = (left, top, width - left, height - top)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box))


def other_laboratory(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another laboratory's camera, stain and magnification at once.

    The cell shrinks to 60–80 % of its width, the background becomes cream (warm white balance), the amounts of dye change by
    up to a quarter, and focus and JPEG quality vary.
    """
    image = magnify(image, rng.uniform(0.6, 0.8))
    image = stain(image, *rng.uniform(0.75, 1.25, 2))
    cream = np.array([rng.uniform(*span) for span in CREAM])
    image = scale_channels(image, np.clip(cream / np.maximum(background_colour(image), 1), 0.6, 2.0))
    image = blur(image, rng.uniform(0.001, 0.006))
    return jpeg(image, int(rng.integers(60, 95)))


def another_slide(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another slide: shift the L*a*b* mean by N(0, (8, 6, 6)) and scale its standard deviation by exp(N(0, 0.2))."""
    mean, std = colour_statistics(image)
    return reinhard(image, np.stack([mean + rng.normal(0, (8, 6, 6)), std * np.exp(rng.normal(0, 0.2, 3))]))


PERTURBATIONS: dict[str, Perturbation] = {
    "as photographed": lambda image, rng: image,
    "stain: blue dye × 0.7": lambda image, rng: stain(image, haematoxylin=0.7),
    "stain: blue dye × 1.4": lambda image, rng: stain(image, haematoxylin=1.4),
    "stain: red dye × 0.6": lambda image, rng: stain(image, eosin=0.6),
    "stain: red dye × 1.5": lambda image, rng: stain(image, eosin=1.5),
    "stain: another slide (Reinhard)": another_slide,
    "white balance: warm": lambda image, rng: scale_channels(image, gains=(1.0, 0.95, 0.82)),
    "white balance: cool": lambda image, rng: scale_channels(image, gains=(0.85, 0.95, 1.05)),
    "brightness × 0.7": lambda image, rng: scale_channels(image, gains=0.7),
    "brightness × 1.3": lambda image, rng: scale_channels(image, gains=1.3),
    "blur: 0.4 % of the width": lambda image, rng: blur(image, sigma=0.004),
    "blur: 1 % of the width": lambda image, rng: blur(image, sigma=0.01),
    "JPEG quality 50": lambda image, rng: jpeg(image, quality=50),
    "JPEG quality 15": lambda image, rng: jpeg(image, quality=15),
    "scale × 0.8": lambda image, rng: magnify(image, zoom=0.8),
    "scale × 1.2": lambda image, rng: magnify(image, zoom=1.2),
    "rotation by 45°": lambda image, rng: to_bytes(rotate(image, 45, mode="reflect", order=1)),
    "rotation by 90°": lambda image, rng: np.ascontiguousarray(np.rot90(image)),
    "another laboratory": other_laboratory,
}
