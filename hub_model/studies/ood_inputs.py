"""Out-of-distribution inputs, seeded: kind and seed in, uint8 RGB [250, 250, 3] out.

The photographs and microscope pictures are those that the scikit-image and scikit-learn wheels carry; they are read from
there, none is copied here. Nothing is fitted to these inputs: they only measure.
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

SIZE = 250  # pixels a side, the frame of the real crops
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


def cutting(names: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """A random square of a random picture, a third of it to all of it."""
    picture = _picture(names[rng.integers(len(names))])
    side = int(min(picture.size) * rng.uniform(1 / 3, 1))
    left, top = (int(rng.integers(0, length - side + 1)) for length in picture.size)
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))


def noise(rng: np.random.Generator, cells: Sequence[np.ndarray]) -> np.ndarray:
    """Uniform, normal or cloudy noise, grey or coloured."""
    channels = 3 if rng.random() < 0.5 else 1
    style = rng.integers(3)
    values = rng.random((SIZE, SIZE, channels)) if style == 0 else rng.standard_normal((SIZE, SIZE, channels))
    if style == 2:
        grain = rng.uniform(1, 25)
        values = gaussian_filter(values, (grain, grain, 0))
    if style:
        values = rng.uniform(0.3, 0.7) + rng.uniform(0.1, 0.3) * values / values.std()
    return np.broadcast_to(to_bytes(values), (SIZE, SIZE, 3)).copy()


def blank(rng: np.random.Generator, cells: Sequence[np.ndarray]) -> np.ndarray:
    """An empty field: one colour with a slight slope of light and grain of the camera."""
    colour = rng.uniform(0, 1) if rng.random() < 0.3 else rng.uniform(0.65, 1)
    tint = colour * rng.uniform(0.85, 1, 3)
    across = np.linspace(-1, 1, SIZE)
    slope = across[:, None] * rng.uniform(-0.05, 0.05) + across * rng.uniform(-0.05, 0.05)
    grain = rng.uniform(0, 0.02) * rng.standard_normal((SIZE, SIZE, 3))
    return to_bytes(tint + slope[..., None] + grain)


def drawing(rng: np.random.Generator, cells: Sequence[np.ndarray]) -> np.ndarray:
    """A drawn cell of the embedded sample: looks like a cell, is none."""
    from dataset_script.synthetic_cells import LOOKS, draw_cell

    labels = sorted(LOOKS)
    return np.asarray(draw_cell(labels[rng.integers(len(labels))], int(rng.integers(2**31))))


def text(rng: np.random.Generator, cells: Sequence[np.ndarray]) -> np.ndarray:
    """Lines of random words, dark on light or light on dark."""
    paper = int(rng.integers(200, 256))
    ink = tuple(int(v) for v in rng.integers(0, 110, 3))
    image = Image.new("RGB", (SIZE, SIZE), (paper, paper, paper))
    draw, size = ImageDraw.Draw(image), float(rng.uniform(10, 40))
    letters = string.ascii_letters + string.digits
    for line in range(int(SIZE / size / 1.2) + 1):
        words = ("".join(rng.choice(list(letters), rng.integers(2, 10))) for _ in range(12))
        draw.text((4, 1.2 * size * line), " ".join(words), fill=ink, font=ImageFont.load_default(size))
    values = np.asarray(image)
    return 255 - values if rng.random() < 0.3 else values.copy()


def disc(rng: np.random.Generator, cells: Sequence[np.ndarray]) -> np.ndarray:
    """A smooth purple disc on a pale field: a nucleus' colour and shape, nothing of a cell inside."""
    rows, columns = np.ogrid[:SIZE, :SIZE]
    middle = SIZE / 2 + rng.normal(0, 8, 2)
    inside = np.hypot(rows - middle[0], columns - middle[1]) < rng.uniform(30, 85)
    inside = gaussian_filter(inside.astype(float), rng.uniform(0.1, 2.5))[..., None]
    purple, field = rng.uniform((80, 30, 120), (150, 90, 190)), rng.uniform((215, 200, 205), (250, 240, 240))
    return to_bytes((field * (1 - inside) + purple * inside) / 255)


def mosaic(rng: np.random.Generator, cells: Sequence[np.ndarray], across: int = 2) -> np.ndarray:
    """Several cells in one frame, `across` a side."""
    side = -(-SIZE // across)
    frame = Image.new("RGB", (SIZE, SIZE))
    for index, chosen in enumerate(rng.choice(len(cells), across**2)):
        tile = Image.fromarray(cells[chosen]).resize((side, side))
        frame.paste(tile, (side * (index % across), side * (index // across)))
    return np.asarray(frame)


def cut(rng: np.random.Generator, cells: Sequence[np.ndarray]) -> np.ndarray:
    """The cell pushed half or more out of the frame, the rest continued by reflection."""
    image = cells[rng.integers(len(cells))]
    shift = int(rng.uniform(0.45, 0.75) * min(image.shape[:2]))
    shifted = np.pad(image, [(shift, 0), (0, 0), (0, 0)], mode="reflect")[: image.shape[0]]
    return np.ascontiguousarray(np.rot90(shifted, rng.integers(4)))


def smear(rng: np.random.Generator, cells: Sequence[np.ndarray]) -> np.ndarray:
    """A cell smeared across: averaged along a line of 10 to 28 % of the width."""
    image, angle = cells[rng.integers(len(cells))] / 255, rng.uniform(0, 180)
    length = int(rng.uniform(0.1, 0.28) * image.shape[1])
    turned = rotate(image, angle, mode="reflect", order=1)
    return to_bytes(rotate(uniform_filter1d(turned, length, axis=1), -angle, mode="reflect", order=1))


def bordered(rng: np.random.Generator, cells: Sequence[np.ndarray]) -> np.ndarray:
    """A cell of which 30 to 55 % are covered by a black or white bar."""
    image = cells[rng.integers(len(cells))].copy()
    image[: int(rng.uniform(0.3, 0.55) * len(image))] = rng.choice([0, 255])
    return np.ascontiguousarray(np.rot90(image, rng.integers(4)))


def _any(rng: np.random.Generator, cells: Sequence[np.ndarray]) -> np.ndarray:
    return cells[rng.integers(len(cells))]


MAKERS: dict[str, Callable[[np.random.Generator, Sequence[np.ndarray]], np.ndarray]] = {
    "photographs": lambda rng, cells: cutting(PHOTOGRAPHS, rng),
    "other scientific pictures": lambda rng, cells: cutting(MICROSCOPY, rng),
    "noise": noise,
    "blank fields": blank,
    "drawn cells": drawing,
    "rendered text": text,
    "purple discs": disc,
    "several cells": mosaic,
    "whole fields": lambda rng, cells: mosaic(rng, cells, across=3),
    "cells cut by the frame": cut,
    "smears": smear,
    "inverted cells": lambda rng, cells: 255 - _any(rng, cells),
    "cells under a bar": bordered,
    "cells out of focus": lambda rng, cells: blur(_any(rng, cells), rng.uniform(0.03, 0.08)),
    "grey cells": lambda rng, cells: np.repeat(to_bytes(rgb2gray(_any(rng, cells)))[..., None], 3, axis=2),
    "single colours": lambda rng, cells: np.full((SIZE, SIZE, 3), rng.integers(0, 256, 3), np.uint8),
}


def make_inputs(kind: str, images: int, cells: Sequence[np.ndarray], seed: int = 0) -> list[np.ndarray]:
    """So many inputs of a kind of `MAKERS`, uint8 RGB [H, W, 3]; `cells` are crops that some are made of."""
    number = list(MAKERS).index(kind)
    return [MAKERS[kind](np.random.default_rng((seed, number, index)), cells) for index in range(images)]


def background_patches(crops: Crops, images: int) -> list[np.ndarray]:
    """Fields without a nucleated cell, from real crops: the corner with the least stained matter, if it has nearly none.

    The corner, a quarter of the crop, is continued by reflection to the whole frame, its scale unchanged. Fewer than
    `images` come back when fewer crops have an empty corner.
    """
    found: list[np.ndarray] = []
    for image in crops:
        height, width = image.shape[0] // 2, image.shape[1] // 2
        stained = image[..., 1] < STAINED * background_colour(image)[1]
        corners = [(rows, columns) for rows in (0, height) for columns in (0, width)]
        share = [stained[r : r + height, c : c + width].mean() for r, c in corners]
        if min(share) < 0.01:
            r, c = corners[int(np.argmin(share))]
            patch = image[r : r + height, c : c + width]
            found.append(np.pad(patch, [(0, height - 1), (0, width - 1), (0, 0)], mode="reflect"))
        if len(found) == images:
            break
    return found
