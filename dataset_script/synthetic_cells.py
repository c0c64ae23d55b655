"""Synthetic bone-marrow cells (drawings) for tests and the embedded sample: seeds in, JPEG files out.

`draw_folder` writes `OUT/CLASS/CLASS_synthetic_NNNNN.jpg` for the seven classes, with the layout of the real download. The
classes differ as the real ones do (cell size, shape and lobes of the nucleus, granules, colour of the cytoplasm); within a
class, stain, brightness, size, position, neighbours and red cells vary. Every file has the JPEG comment `COMMENT`, by which
`build` recognizes it as a drawing wherever it is copied to.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

COMMENT = b"Synthetic cell, not a photograph (dataset_script.synthetic_cells)"
SIZE = 250  # pixels, as the real crops
DARK_PURPLE, PURPLE, SMUDGE = (62, 28, 118), (98, 52, 148), (92, 60, 140)
RED_CELL = (214, 178, 178)


@dataclass(frozen=True)
class Look:
    """The appearance of a class; colours are RGB in 0…255, ranges are (low, high)."""

    radius: tuple[float, float]  # pixels
    cytoplasm: tuple[int, int, int]
    nucleus: str  # round, kidney, lobes or smudge
    nucleus_radius: float  # fraction of the cell's radius
    nucleus_colour: tuple[int, int, int] = PURPLE
    off_centre: float = 0.05  # of the nucleus, fraction of the cell's radius
    lobes: tuple[int, int] = (1, 1)
    granules: float = 0.0  # fraction of the cytoplasm covered
    granule_size: float = 1.0  # pixels
    granule_colour: tuple[int, int, int] = DARK_PURPLE
    over_nucleus: bool = False
    nucleoli: tuple[int, int] = (0, 0)
    vacuoles: tuple[int, int] = (0, 0)


LOOKS = {
    "BLA": Look((60, 76), (112, 128, 208), "round", 0.86, (116, 62, 156), nucleoli=(1, 4)),
    "EOS": Look(
        (52, 68), (226, 160, 150), "lobes", 0.44, lobes=(2, 2),
        granules=0.5, granule_size=1.9, granule_colour=(214, 92, 62),
    ),
    "LYT": Look((34, 46), (140, 168, 226), "round", 0.84, DARK_PURPLE, off_centre=0.08),
    "MON": Look((68, 84), (172, 178, 206), "kidney", 0.66, (124, 78, 160), vacuoles=(2, 7)),
    "NGS": Look(
        (50, 64), (238, 206, 222), "lobes", 0.30, DARK_PURPLE, lobes=(3, 5),
        granules=0.16, granule_size=0.8, granule_colour=(204, 130, 178),
    ),
    "NIF": Look((36, 58), (206, 190, 222), "smudge", 1.0, SMUDGE),
    "PMO": Look(
        (74, 92), (150, 138, 206), "round", 0.56, (128, 66, 160), off_centre=0.3, nucleoli=(0, 3),
        granules=0.3, granule_size=1.3, granule_colour=(92, 20, 110), over_nucleus=True,
    ),
}  # fmt: skip


def _window(shape, centre, reach: float) -> tuple[slice, slice]:
    """Return the window of a canvas [H, W] within `reach` pixels of `centre` (row, column) as two slices."""
    spans = [(int(c - reach), int(c + reach) + 2) for c in centre]
    return tuple(slice(min(max(a, 0), n), min(max(b, 0), n)) for (a, b), n in zip(spans, shape, strict=True))


def _blob(
    shape, centre, radius: float, rng: np.random.Generator, wobble=0.05, edge=1.5, harmonics=5
) -> np.ndarray:
    """Return the soft mask [H, W] in 0…1 of a disc whose outline varies by about the fraction `wobble` of its radius."""
    waves = [(k, wobble / (k - 1) * rng.normal(), rng.uniform(0, 2 * np.pi)) for k in range(2, harmonics + 1)]
    window = _window(shape, centre, radius * (1 + sum(abs(height) for _, height, _ in waves)) + 6 * edge)
    rows = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None] - np.float32(centre[0])
    columns = np.arange(window[1].start, window[1].stop, dtype=np.float32) - np.float32(centre[1])
    angles = np.linspace(-np.pi, np.pi, 513)
    outline = 1 + sum(height * np.cos(k * angles + phase) for k, height, phase in waves)
    angle = np.arctan2(rows, columns)
    bound = (radius * outline).astype(np.float32)[((angle + np.pi) * (512 / (2 * np.pi))).astype(np.int32)]
    mask = np.zeros(shape, dtype=np.float32)
    mask[window] = 1 / (1 + np.exp(((np.hypot(rows, columns) - bound) / np.float32(edge)).clip(-30, 30)))
    return mask


def _paint(canvas: np.ndarray, mask: np.ndarray, colour) -> None:
    """Blend `colour` (RGB 0…255) into `canvas` [H, W, 3] in place, with opacity `mask` [H, W]."""
    canvas += mask[..., None] * (np.asarray(colour, dtype=np.float32) - canvas)


def _dot(
    canvas: np.ndarray, centre, radius: float, colour, opacity, rng: np.random.Generator, **blob
) -> None:
    """Blend a disc into `canvas` in place; `opacity` is a number or a mask [H, W]."""
    window = _window(canvas.shape[:2], centre, 2 * radius + 24)
    view = canvas[window]
    local = centre[0] - window[0].start, centre[1] - window[1].start
    if view.size:
        opacity = opacity[window] if isinstance(opacity, np.ndarray) else opacity
        _paint(view, opacity * _blob(view.shape[:2], local, radius, rng, **blob), colour)


def _texture(shape, size: float, rng: np.random.Generator) -> np.ndarray:
    """Return smooth noise [H, W] with mean 0, standard deviation 1 and a grain size of about `size` pixels."""
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), size, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def _offset(centre, distance: float, angle: float) -> tuple[float, float]:
    return centre[0] + distance * np.sin(angle), centre[1] + distance * np.cos(angle)


def _nucleus(look: Look, shape, centre, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Return the soft mask [H, W] of the nucleus of a cell with the given centre and radius."""
    turn = rng.uniform(0, 2 * np.pi)
    if look.nucleus == "lobes":
        count = rng.integers(look.lobes[0], look.lobes[1] + 1)
        span = np.pi if count == 2 else rng.uniform(1.1, 1.5) * np.pi
        spots = [_offset(centre, 0.46 * radius, turn + span * i / max(count - 1, 1)) for i in range(count)]
        mask = np.max([_blob(shape, s, look.nucleus_radius * radius, rng, 0.08) for s in spots], axis=0)
        for a, b in itertools.pairwise(spots):  # thin bridges between the lobes
            mask = np.maximum(mask, _blob(shape, ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2), 0.12 * radius, rng))
        return mask
    if look.nucleus == "smudge":
        return _blob(shape, centre, 0.8 * radius, rng, wobble=0.2, edge=rng.uniform(2, 7), harmonics=9)
    middle = _offset(centre, look.off_centre * radius * rng.uniform(0.5, 1.2), turn)
    mask = _blob(shape, middle, look.nucleus_radius * radius * rng.uniform(0.94, 1.05), rng, 0.04)
    if look.nucleus == "kidney":
        mask *= 1 - _blob(shape, _offset(middle, 0.62 * radius, turn + 0.3), 0.42 * radius, rng, edge=3)
    return mask


def _draw_cell_at(canvas: np.ndarray, look: Look, centre, rng: np.random.Generator) -> None:
    """Draw one white cell of a class on `canvas` [H, W, 3] float32, in place."""
    radius = rng.uniform(*look.radius)
    window = _window(canvas.shape[:2], centre, 2.2 * radius)
    canvas, centre = canvas[window], (centre[0] - window[0].start, centre[1] - window[1].start)
    shape = canvas.shape[:2]
    if not canvas.size:
        return
    body = _blob(shape, centre, radius, rng, wobble=0.2 if look.nucleus == "smudge" else 0.05, edge=1.8)
    nucleus = _nucleus(look, shape, centre, radius, rng)
    _paint(canvas, 0.92 * body * (1 + 0.04 * _texture(shape, 4, rng)).clip(0, 1.05), look.cytoplasm)
    for _ in range(rng.integers(look.vacuoles[0], look.vacuoles[1] + 1)):
        spot = _offset(centre, rng.uniform(0.3, 0.85) * radius, rng.uniform(0, 2 * np.pi))
        _dot(canvas, spot, rng.uniform(2, 5), (236, 232, 244), 0.8 * body, rng, edge=1)
    _paint(canvas, 0.95 * nucleus, look.nucleus_colour)
    chromatin = nucleus * (0.25 * _texture(shape, 3.0, rng)).clip(0, 0.6)
    _paint(canvas, chromatin, np.asarray(look.nucleus_colour) * 0.72)
    for _ in range(rng.integers(look.nucleoli[0], look.nucleoli[1] + 1)):
        spot = _offset(centre, rng.uniform(0.05, 0.4) * radius, rng.uniform(0, 2 * np.pi))
        _dot(canvas, spot, rng.uniform(5, 9), (168, 146, 208), 0.5 * nucleus, rng)
    if look.granules:
        grains = _texture(shape, look.granule_size, rng)
        threshold = np.quantile(grains, 1 - look.granules)
        region = body * (1 if look.over_nucleus else 1 - nucleus)
        _paint(canvas, 0.85 * region * ((grains - threshold) * 4).clip(0, 1), look.granule_colour)
    if look.nucleus == "smudge":  # torn: streaks of the nucleus beside it
        for _ in range(rng.integers(2, 5)):
            spot = _offset(centre, rng.uniform(0.7, 1.3) * radius, rng.uniform(0, 2 * np.pi))
            _dot(canvas, spot, rng.uniform(6, 16), look.nucleus_colour, 0.6, rng, wobble=0.3, edge=4)


def _draw_background(canvas: np.ndarray, rng: np.random.Generator, red_cells: int) -> None:
    shape = canvas.shape[:2]
    canvas += 3 * _texture(shape, 12, rng)[..., None]
    for _ in range(red_cells):
        centre = rng.uniform(-20, shape[0] + 20), rng.uniform(-20, shape[1] + 20)
        radius = rng.uniform(24, 34)
        _dot(canvas, centre, radius, RED_CELL, 0.85, rng)
        _dot(canvas, centre, 0.4 * radius, (238, 228, 230), 0.45, rng, edge=4)


def _stain(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return `canvas` as uint8 with the random stain depth, lamp colour and sensor noise of one slide."""
    depth = rng.uniform(0.8, 1.35) * rng.uniform(0.9, 1.12, 3)
    lamp = rng.uniform(0.68, 1.0) * rng.uniform(0.94, 1.0, 3)
    light = 255 * lamp * (canvas.clip(1, 255) / 255) ** depth.astype(np.float32)
    return (light + 2 * rng.standard_normal(canvas.shape, dtype=np.float32)).clip(0, 255).astype(np.uint8)


def draw_cell(label: str, seed: int | tuple[int, ...]) -> Image.Image:
    """Return a drawing of one cell of class `label` (a key of `LOOKS`), 250×250 RGB, determined by the seed."""
    rng = np.random.default_rng(seed)
    canvas = np.full((SIZE, SIZE, 3), 244, dtype=np.float32)
    _draw_background(canvas, rng, rng.integers(1, 7))
    for _ in range(rng.integers(0, 3)):  # neighbours at the edge
        side = _offset((SIZE / 2, SIZE / 2), rng.uniform(135, 165), rng.uniform(0, 2 * np.pi))
        _draw_cell_at(canvas, LOOKS[list(LOOKS)[rng.integers(len(LOOKS))]], side, rng)
    centre = SIZE / 2 + rng.normal(0, 6), SIZE / 2 + rng.normal(0, 6)
    _draw_cell_at(canvas, LOOKS[label], centre, rng)
    return Image.fromarray(_stain(canvas, rng))


def draw_field(height: int, width: int, cells: list[tuple[str, int, int]], seed: int = 0) -> Image.Image:
    """Return a drawing of a microscope field, RGB: the given (label, row, column) cells among red cells."""
    rng = np.random.default_rng(seed)
    canvas = np.full((height, width, 3), 244, dtype=np.float32)
    _draw_background(canvas, rng, height * width // 12_000)
    for label, row, column in cells:
        _draw_cell_at(canvas, LOOKS[label], (row, column), rng)
    return Image.fromarray(_stain(canvas, rng))


def draw_folder(out: Path, per_class: int, seed: int = 0) -> None:
    """Write `per_class` synthetic cells of each class as `out/CLASS/CLASS_synthetic_NNNNN.jpg`.

    The same seed gives the same bytes, and image N does not depend on `per_class`.

    Raises:
        FileExistsError: a file of that name already exists (nothing is overwritten).
    """
    cells = [(i, label, number) for i, label in enumerate(LOOKS) for number in range(1, per_class + 1)]
    for i, label, number in tqdm(cells, desc="drawing", unit="image", disable=None):
        folder = out / label
        folder.mkdir(parents=True, exist_ok=True)
        image = draw_cell(label, (seed, i, number))
        with (folder / f"{label}_synthetic_{number:05d}.jpg").open("xb") as file:
            image.save(file, "JPEG", quality=92, comment=COMMENT)
