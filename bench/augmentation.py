"""Augmentation: `training/augment.py` on a whole batch against transforms that take one image at a time. One core."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage.color import hed_from_rgb, rgb_from_hed
from timm.data import create_transform
from torchvision.transforms import v2

from bench.side_by_side import Row, in_turns, rows, seconds
from training.augment import CellAugmentation
from training.data import normalise

BATCH, KEPT, SIZE = 32, 160, 128  # images; pixels they are kept at, and pixels of a view
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Stain:
    """The amount of each dye and the light varied in optical density, as `CellAugmentation.colour` does, for one PIL image."""

    def __call__(self, image: Image.Image) -> Image.Image:
        pixels = np.asarray(image, dtype=np.float32) / 255
        dyes = 1 + 0.2 * np.random.standard_normal(3).astype(np.float32)
        light = 0.1 * np.random.standard_normal(3).astype(np.float32)
        mix = (hed_from_rgb * dyes @ rgb_from_hed).astype(np.float32)
        density = -np.log(np.maximum(pixels, 1 / 255)) @ mix + light
        return Image.fromarray((255 * np.minimum(np.exp(-density), 1)).astype(np.uint8))


def one_at_a_time(transform: Callable, images: list) -> Callable[[], torch.Tensor]:
    """Views [N, 3, SIZE, SIZE] of a list of images, stacked as a data loader does."""
    return lambda: torch.stack([transform(image) for image in images])


def contestants(images: list[Image.Image]) -> dict[str, Callable[[], torch.Tensor]]:
    """What makes a batch of normalised views of these decoded images [KEPT × KEPT]."""
    batch = torch.stack([v2.functional.pil_to_tensor(image) for image in images])
    augment, config = CellAugmentation(), {"mean": MEAN, "std": STD}

    def whole(images: torch.Tensor) -> torch.Tensor:
        return normalise(augment(images.float().div_(255), SIZE), config)

    bilinear = v2.InterpolationMode.BILINEAR
    moved = [
        v2.RandomAffine(180, (0.05, 0.05), (0.5, 1.25), interpolation=bilinear),
        v2.RandomHorizontalFlip(),
    ]
    blurred = v2.RandomApply([v2.GaussianBlur(5, (0.3, 1.3))], 0.1)
    ready = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    same_kinds = v2.Compose([*moved, v2.Resize(SIZE), Stain(), blurred, v2.PILToTensor(), *ready])
    tensors = v2.Compose([*moved, v2.Resize(SIZE), v2.ColorJitter(0.1, 0.1, 0.2, 0.05), blurred, *ready])
    timms = create_transform((3, SIZE, SIZE), is_training=True, mean=MEAN, std=STD, color_jitter=0.4)
    return {
        "training/augment.py, the whole batch": lambda: whole(batch),
        "training/augment.py, one image at a time": lambda: torch.cat([whole(one[None]) for one in batch]),
        "torchvision on PIL images, the same kinds": one_at_a_time(same_kinds, images),
        "torchvision v2 on tensors, colour jitter for stain": one_at_a_time(tensors, list(batch)),
        "timm's default (crop, mirror, colour jitter)": one_at_a_time(timms, images),
    }


def measure(data: Path, repeats: int) -> list[Row]:
    """Images/s on one core, decoding not counted."""
    files = sorted(data.glob("*/*.jpg"))
    images = []
    for path in files[:: len(files) // BATCH][:BATCH]:
        with Image.open(path) as image:
            images.append(image.convert("RGB").resize((KEPT, KEPT), Image.Resampling.BICUBIC))
    makers = contestants(images)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for make in makers.values():
            assert make().shape == (BATCH, 3, SIZE, SIZE)
        turns = {name: lambda make=make: BATCH / seconds(make, at_least=0.7) for name, make in makers.items()}
        values = in_turns(turns, repeats)
    finally:
        torch.set_num_threads(threads)
    comparison = f"Augmentation of decoded crops to {SIZE} px, one core"
    reference = "torchvision on PIL images, the same kinds"
    notes = {reference: "but for the isolated cells, which it lacks"}
    return rows(comparison, values, "images/s", reference, more_is_better=True, notes=notes)
