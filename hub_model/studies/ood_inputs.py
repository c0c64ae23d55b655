"""Seeded out-of-distribution inputs: uint8 RGB images of a given kind.

The photographs and microscope images are read from the scikit-image and scikit-learn wheels, not copied here. The inputs are
for evaluation only: nothing is fitted to them.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter, uniform_filter1d
from skimage.color import rgb2gray
from skimage.transform import rotate

from hub_model.studies.crops import Crops
from hub_model.studies.perturbations import STAINED, background_colour, blur, to_bytes

SIZE = 250  # side length of the real crops in pixels
PHOTOGRAPHS = (
    "skimage/astronaut.png", "skimage/brick.png", "skimage/camera.png", "skimage/chelsea.png", "skimage/coffee.png",
    "skimage/coins.png", "skimage/grass.png", "skimage/gravel.png", "skimage/moon.png", "skimage/motorcycle_left.png",
    "skimage/page.png", "skimage/rocket.jpg", "sklearn/china.jpg", "sklearn/flower.jpg",
)  # fmt: skip
MICROSCOPY = (
    "skimage/cell.png", "skimage/hubble_deep_field.jpg", "skimage/ihc.png", "skimage/microaneurysms.png",
    "skimage/retina.jpg",
)  # fmt: skip
PACKAGES = {"skimage": "skimage.data", "sklearn": "sklearn.datasets.images"}


@cache
def _picture(name: str) -> Image.Image:
    package, _, file = name.partition("/")
    with (files(PACKAGES[package]) / file).open("rb") as stream:
        return Image.open(stream).convert("RGB")


def random_crop(names: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """A random square crop of a random image, with a side of a third to all of its shorter side."""
    picture = _picture(names[rng.integers(len(names))])
    side = int(min(picture.size) * rng.uniform(1 / 3, 1))
    left, top = (int(rng.integers(0, length - side + 1)) for length in picture.size)
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))


def pick(rng: np.random.Generator, cells: Sequence[np.ndarray]) -> np.ndarray:
    return cells[rng.integers(len(cells))]


def noise(rng: np.random.Generator, cells: Sequence[np.ndarray]) -> np.ndarray:
    """Uniform, normal or smoothed noise, grey or coloured."""
    channels = 3 if rng.random() < 0.5 else 1
    style = rng.integers(3)
    values = rng.random((SIZE, SIZE, channels)) if style == 0 else rng.standard_normal((SIZE, SIZE, channels))
    if style == 2:
        sigma = rng.uniform(1, 25)
        values = gaussian_filter(values, (sigma, sigma, 0))
    if style:
        values = rng.uniform(0.3, 0.7) + rng.uniform(0.1, 0.3) * values / values.std()
    return np.broadcast_to(to_bytes(values), (SIZE, SIZE, 3)).copy()


def blank(rng: np.random.Generator, cells: Sequence[np.ndarray]) -> np.ndarray:
    """An empty field: one colour with a slight illumination gradient and sensor noise."""
    colour = rng.uniform(0, 1) if rng.random() < 0.3 else rng.uniform(0.65, 1)
    tint = colour * rng.uniform(0.85, 1, 3)
    across = np.linspace(-1, 1, SIZE)
    gradient = across[:, None] * rng.uniform(-0.05, 0.05) + across * rng.uniform(-0.05, 0.05)
    sensor_noise = rng.uniform(0, 0.02) * rng.standard_normal((SIZE, SIZE, 3))
    return to_bytes(tint + gradient[..., None] + sensor_noise)


def drawing(rng: np.random.Generator, cells: Sequence[np.ndarray]) -> np.ndarray:
    """A synthetic cell of the embedded example dataset: drawn, not photographed."""
    from dataset_script.synthetic_cells import LOOKS, draw_cell

    labels = sorted(LOOKS)
    return np.asarray(draw_cell(labels[rng.integers(len(labels))], int(rng.integers(2**31))))


def text(rng: np.random.Generator, cells: Sequence[np.ndarray]) -> np.ndarray:
    """Lines of random words, dark on light or light on dark."""
    paper = int(rng.integers(200, 256))
    ink = tuple(rng.integers(0, 110, 3).tolist())
    image = Image.new("RGB", (SIZE, SIZE), (paper, paper, paper))
    draw, size = ImageDraw.Draw(image), float(rng.uniform(10, 40))
    letters = list(string.ascii_letters + string.digits)
    for line in range(int(SIZE / size / 1.2) + 1):
        words = ("".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(12))
        draw.text((4, 1.2 * size * line), " ".join(words), fill=ink, font=ImageFont.load_default(size))
    values = np.asarray(image)
    return 255 - values if rng.random() < 0.3 else values.copy()


def disc(rng: np.random.Generator, cells: Sequence[np.ndarray]) -> np.ndarray:
    """A smooth purple disc on a pale field: colour and shape of a nucleus without its texture."""
    rows, columns = np.ogrid[:SIZE, :SIZE]
    y, x = SIZE / 2 + rng.normal(0, 8, 2)
    inside = np.hypot(rows - y, columns - x) < rng.uniform(30, 85)
    inside = gaussian_filter(inside.astype(float), rng.uniform(0.1, 2.5))[..., None]
    purple, field = rng.uniform((80, 30, 120), (150, 90, 190)), rng.uniform((215, 200, 205), (250, 240, 240))
    return to_bytes((field * (1 - inside) + purple * inside) / 255)


def mosaic(rng: np.random.Generator, cells: Sequence[np.ndarray], across: int = 2) -> np.ndarray:
    """A grid of `across` × `across` cells in one frame."""
    side = -(-SIZE // across)
    frame = Image.new("RGB", (SIZE, SIZE))
    for index, chosen in enumerate(rng.choice(len(cells), across**2)):
        tile = Image.fromarray(cells[chosen]).resize((side, side))
        frame.paste(tile, (side * (index % across), side * (index // across)))
    return np.asarray(frame)


def cut(rng: np.random.Generator, cells: Sequence[np.ndarray]) -> np.ndarray:
    """A cell shifted about halfway or more out of the frame, the gap filled by reflection."""
    image = pick(rng, cells)
    shift = int(rng.uniform(0.45, 0.75) * min(image.shape[:2]))
    shifted = np.pad(image, [(shift, 0), (0, 0), (0, 0)], mode="reflect")[: image.shape[0]]
    return np.ascontiguousarray(np.rot90(shifted, rng.integers(4)))


def smear(rng: np.random.Generator, cells: Sequence[np.ndarray]) -> np.ndarray:
    """A cell with motion blur over 10 to 28 % of the width in a random direction."""
    image, angle = pick(rng, cells) / 255, rng.uniform(0, 180)
    length = int(rng.uniform(0.1, 0.28) * image.shape[1])
    rotated = rotate(image, angle, mode="reflect", order=1)
    return to_bytes(rotate(uniform_filter1d(rotated, length, axis=1), -angle, mode="reflect", order=1))


def bordered(rng: np.random.Generator, cells: Sequence[np.ndarray]) -> np.ndarray:
    """A cell covered to 30 to 55 % by a black or white bar."""
    image = pick(rng, cells).copy()
    image[: int(rng.uniform(0.3, 0.55) * len(image))] = rng.choice([0, 255])
    return np.ascontiguousarray(np.rot90(image, rng.integers(4)))


MAKERS: dict[str, Callable[[np.random.Generator, Sequence[np.ndarray]], np.ndarray]] = {
    "photographs": lambda rng, cells: random_crop(PHOTOGRAPHS, rng),
    "other scientific pictures": lambda rng, cells: random_crop(MICROSCOPY, rng),
    "noise": noise,
    "blank fields": blank,
    "drawn cells": drawing,
    "rendered text": text,
    "purple discs": disc,
    "several cells": mosaic,
    "whole fields": lambda rng, cells: mosaic(rng, cells, across=3),
    "cells cut by the frame": cut,
    "smears": smear,
    "inverted cells": lambda rng, cells: 255 - pick(rng, cells),
    "cells under a bar": bordered,
    "cells out of focus": lambda rng, cells: blur(pick(rng, cells), rng.uniform(0.03, 0.08)),
    "grey cells": lambda rng, cells: np.repeat(to_bytes(rgb2gray(pick(rng, cells)))[..., None], 3, axis=2),
    "single colours": lambda rng, cells: np.full((SIZE, SIZE, 3), rng.integers(0, 256, 3), np.uint8),
}


def make_inputs(kind: str, images: int, cells: Sequence[np.ndarray], seed: int = 0) -> list[np.ndarray]:
    """`images` inputs of a kind of `MAKERS`, uint8 RGB [H, W, 3]; some kinds are made from the crops `cells`."""
    number = list(MAKERS).index(kind)
    return [MAKERS[kind](np.random.default_rng((seed, number, index)), cells) for index in range(images)]


def background_patches(crops: Crops, images: int) -> list[np.ndarray]:
    """Fields without a nucleated cell from real crops: the quadrant with the least stained area, if that is below 1 %.

    The quadrant is extended to the full frame by reflection, at the original scale. Returns fewer than `images` if fewer crops
    have such a quadrant.
    """
    patches: list[np.ndarray] = []
    for image in crops:
        height, width = image.shape[0] // 2, image.shape[1] // 2
        stained = image[..., 1] < STAINED * background_colour(image)[1]
        quadrants = [np.s_[y : y + height, x : x + width] for y in (0, height) for x in (0, width)]
        emptiest = min(quadrants, key=lambda quadrant: stained[quadrant].mean())
        if stained[emptiest].mean() < 0.01:
            padding = [(0, height - 1), (0, width - 1), (0, 0)]
            patches.append(np.pad(image[emptiest], padding, mode="reflect"))
        if len(patches) == images:
            break
    return patches
