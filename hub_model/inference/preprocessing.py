"""timm's evaluation transform in Pillow and NumPy: images in, normalised float32 pixels out, bit-identical to timm's."""

from __future__ import annotations

import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from hub_model.inference.errors import RepoError
from hub_model.inference.images import ImageLike, to_rgb

T = TypeVar("T")

DEFAULTS = {  # those of timm.data.resolve_data_config
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875,
    "crop_mode": "center",
}


class Preprocessing:
    """The evaluation transform of a repo's `pretrained_cfg`, with the images of a batch processed in parallel threads.

    The steps are those of `timm.data.create_transform`, without importing torch. Raises RepoError for a config that timm would
    not accept.
    """

    def __init__(self, pretrained_cfg: dict[str, Any], threads: int | None = None) -> None:
        self.config = {key: pretrained_cfg.get(key) or default for key, default in DEFAULTS.items()}
        try:
            _, height, width = self.config["input_size"]
            self.size = height, width
            self._resampling = Image.Resampling[self.config["interpolation"].upper()]
            self._scaled = tuple(math.floor(side / self.config["crop_pct"]) for side in self.size)
            self._mean, self._std = (
                np.array(self.config[key], dtype=np.float32).reshape(3, 1, 1) for key in ("mean", "std")
            )
            if not (self._std > 0).all():
                raise ValueError("every std must be above 0")
            fill = self.config["mean"] if self.config["crop_mode"] == "border" else (0, 0, 0)
            self._fill = tuple(round(255 * value) for value in fill)
        except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise RepoError(f"config.json: pretrained_cfg cannot be used ({error!r})") from None
        self.threads = threads or cores()

    def __call__(self, images: Sequence[ImageLike], threads: int | None = None) -> np.ndarray:
        """Normalised pixels, float32 [N, 3, H, W], in parallel unless `threads` is 1. Raises ImageError for a broken image."""
        out = np.empty((len(images), 3, *self.size), dtype=np.float32)
        if min(threads or self.threads, len(images)) < 2:
            for image, pixels in zip(images, out, strict=True):
                self._write(image, pixels)
        else:  # Pillow and NumPy release the GIL
            list(self._pool.map(self._write, images, out))
        return out

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, "preprocessing")

    def _write(self, image: ImageLike, pixels: np.ndarray) -> None:
        """Write one normalised image into `pixels`, float32 [3, H, W]."""
        pixels[...] = np.asarray(self.resize_and_crop(image)).transpose(2, 0, 1)
        pixels /= 255
        pixels -= self._mean
        pixels /= self._std

    def unnormalised(self, pixels: np.ndarray) -> np.ndarray:
        """Normalised pixels [N, 3, H, W] mapped back to [0, 1]."""
        return pixels * self._std + self._mean

    def resize_and_crop(self, image: ImageLike) -> Image.Image:
        """The image as the model sees it: resized and cropped, not yet normalised."""
        picture = to_rgb(image)
        picture = picture.resize(self._resized(*picture.size), self._resampling)
        height, width = self.size
        left, top = _crop_offset(picture.width, width), _crop_offset(picture.height, height)
        if picture.width >= width and picture.height >= height:
            return picture.crop((left, top, left + width, top + height))
        padded = Image.new("RGB", (width, height), self._fill)
        padded.paste(picture, (-left, -top))
        return padded

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) to which an image is resized before the crop."""
        scaled_height, scaled_width = self._scaled
        if self.config["crop_mode"] == "squash":
            return scaled_width, scaled_height
        ratios = height / scaled_height, width / scaled_width
        if self.config["crop_mode"] == "border":
            return round(width / max(ratios)), round(height / max(ratios))
        if scaled_height != scaled_width:
            return round(width / min(ratios)), round(height / min(ratios))
        if width <= height:
            return scaled_width, int(scaled_width * height / width)
        return int(scaled_height * width / height), scaled_height


def _crop_offset(side: int, crop: int) -> int:
    """Where a centre crop of `crop` pixels begins; negative where the image is smaller and is padded."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)


def map_ahead(
    function: Callable[[Any], T],
    items: Iterable,
    threads: int,
    depth: int | None = None,
    initializer: Callable[[], object] | None = None,
) -> Iterator[T]:
    """`function(item)` for each item, in order, computed ahead by threads that each call `initializer` first.

    Up to `depth` items (default: 3 per thread) are in flight, as with `Executor.map(buffersize=)` of Python 3.14.
    """
    items, depth = iter(items), depth or 3 * threads
    with ThreadPoolExecutor(threads, initializer=initializer) as pool:
        try:
            pending = deque(pool.submit(function, item) for item in itertools.islice(items, depth))
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
                yield result
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))
