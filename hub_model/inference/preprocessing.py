"""timm's evaluation transform with Pillow and NumPy alone: images in, normalised float32 pixels out, the same to the last bit."""

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

DEFAULTS = {  # of timm.data.resolve_data_config
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875,
    "crop_mode": "center",
}


class Preprocessing:
    """The evaluation transform of a repo's `pretrained_cfg`, the pictures of a batch shared among threads.

    The steps are those of `timm.data.create_transform`, which takes the import of torch. Raises RepoError for a config that
    timm would not accept.
    """

    def __init__(self, pretrained_cfg: dict[str, Any], threads: int | None = None) -> None:
        self.config = {key: pretrained_cfg.get(key) or default for key, default in DEFAULTS.items()}
        try:
            _, height, width = self.config["input_size"]
            self.size, self._resampling = (
                (height, width),
                Image.Resampling[self.config["interpolation"].upper()],
            )
            self._scaled = tuple(math.floor(side / self.config["crop_pct"]) for side in self.size)
            self._mean, self._std = (
                np.array(self.config[key], dtype=np.float32).reshape(3, 1, 1) for key in ("mean", "std")
            )
            if not (self._std > 0).all():
                raise ValueError("every std must be above 0")
            self._ground = (0, 0, 0)
            if self.config["crop_mode"] == "border":
                self._ground = tuple(round(255 * value) for value in self.config["mean"])
        except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise RepoError(f"config.json: pretrained_cfg cannot be used ({error!r})") from None
        self.threads = threads or cores()

    def __call__(self, images: Sequence[ImageLike], threads: int | None = None) -> np.ndarray:
        """float32 [N, 3, H, W], normalised, by as many threads (default: all). Raises ImageError for what cannot be decoded."""
        out = np.empty((len(images), 3, *self.size), dtype=np.float32)
        if min(threads or self.threads, len(images)) < 2:
            for image, pixels in zip(images, out, strict=True):
                self._write(image, pixels)
        else:  # Pillow decodes and resizes, NumPy computes, without the interpreter's lock
            list(self._pool.map(self._write, images, out))
        return out

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, "preprocessing")

    def _write(self, image: ImageLike, pixels: np.ndarray) -> None:
        """Normalise one picture into `pixels`, float32 [3, H, W]."""
        pixels[...] = np.asarray(self.seen(image)).transpose(2, 0, 1)
        pixels /= 255
        pixels -= self._mean
        pixels /= self._std

    def unnormalised(self, pixels: np.ndarray) -> np.ndarray:
        """Normalised pixels [N, 3, H, W] back in 0…1."""
        return pixels * self._std + self._mean

    def seen(self, image: ImageLike) -> Image.Image:
        """The picture that the model looks at: resized and cropped, not yet normalised."""
        picture = to_rgb(image)
        picture = picture.resize(self._resized(*picture.size), self._resampling)
        height, width = self.size
        left, top = _margin(picture.width, width), _margin(picture.height, height)
        if picture.width >= width and picture.height >= height:
            return picture.crop((left, top, left + width, top + height))
        seen = Image.new("RGB", (width, height), self._ground)
        seen.paste(picture, (-left, -top))
        return seen

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that a picture is resized to before the crop."""
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


def _margin(side: int, wanted: int) -> int:
    """Where a centred crop of `wanted` pixels begins; negative where the picture is smaller."""
    return round((side - wanted) / 2) if side >= wanted else -((wanted - side) // 2)


def ahead(
    work: Callable[[Any], T],
    items: Iterable,
    threads: int,
    depth: int | None = None,
    initializer: Callable[[], object] | None = None,
) -> Iterator[T]:
    """`work(item)` for each item, in order, by threads that each begin with `initializer`.

    Up to `depth` items (default: 3 a thread) are under way; `Executor.map(buffersize=)` of Python 3.14 does the same.
    """
    items, depth = iter(items), depth or 3 * threads
    with ThreadPoolExecutor(threads, initializer=initializer) as pool:
        try:
            pending = deque(pool.submit(work, item) for item in itertools.islice(items, depth))
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(work, item) for item in itertools.islice(items, 1))
                yield result
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0))
