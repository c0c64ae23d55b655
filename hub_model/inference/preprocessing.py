"""timm's evaluation transform for batches: images in, normalised float32 pixels out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from hub_model.inference.images import ImageLike, to_rgb


class Preprocessing:
    """timm's evaluation transform for a repo's `pretrained_cfg`, the pictures of a batch shared among threads.

    The steps are those of `timm.data.create_transform`, each in float32, so the tensors are bit-identical to its.
    """

    def __init__(self, pretrained_cfg: dict[str, Any], threads: int | None = None) -> None:
        from timm.data import create_transform, resolve_data_config

        self.config = resolve_data_config(pretrained_cfg={"input_size": (3, 224, 224), **pretrained_cfg})
        *self._resize_and_crop, _ = create_transform(
            **self.config, is_training=False, use_prefetcher=True
        ).transforms  # the last makes a tensor, and leaves the normalisation to the prefetcher
        self._mean, self._std = (
            np.array(self.config[key], dtype=np.float32)[:, None, None] for key in ("mean", "std")
        )
        self.threads = threads or cores()

    def __call__(self, images: Sequence[ImageLike]) -> np.ndarray:
        """float32 [N, 3, H, W], normalised. Raises OSError for what cannot be decoded."""
        out = np.empty((len(images), *self.config["input_size"]), dtype=np.float32)
        if min(self.threads, len(images)) < 2:
            for image, pixels in zip(images, out, strict=True):
                self._write(image, pixels)
        else:  # Pillow decodes and resizes, NumPy computes, without the interpreter's lock
            with ThreadPoolExecutor(min(self.threads, len(images))) as pool:
                list(pool.map(self._write, images, out))
        return out

    def _write(self, image: ImageLike, pixels: np.ndarray) -> None:
        """Normalise one picture into `pixels`, float32 [3, H, W]."""
        pixels[...] = np.asarray(self.seen(image)).transpose(2, 0, 1)
        pixels /= 255
        pixels -= self._mean
        pixels /= self._std

    def seen(self, image: ImageLike) -> Image.Image:
        """The picture that the model looks at: resized and cropped, not yet normalised."""
        picture = to_rgb(image)
        for step in self._resize_and_crop:
            picture = step(picture)
        return picture


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0))
