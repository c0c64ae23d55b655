"""Images for the trainer: checked rows of a data set in, uint8 batches out.

A `Split` hands out batches of decoded images, to each process its own share. Small splits are decoded once and kept in memory
(`MemorySplit`), large ones are read and decoded again every epoch (`StreamSplit`). Both cut an epoch into the same number of
near-equal batches for every process, so that no image is seen twice or left out.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from PIL import ExifTags, Image, ImageOps
from timm.data import create_transform
from torchvision.transforms import Compose
from torchvision.transforms.functional import pil_to_tensor
from tqdm.auto import tqdm

from training import TrainingError
from training.source import Row, Source, first_line, open_source

MARGIN = 1.25  # training images are kept this much larger than the network's input, so that views can be cut sharply
MEMORY_SHARE = 0.25  # of the machine's free memory, that decoded images may take before they are streamed
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM")  # others Pillow may hand to Ghostscript
MAX_PIXELS = 24_000_000  # of an image as stored, what `dataset_script` takes at most
LARGE = 4_000_000  # pixels from which on one image is decoded at a time
_one_large_image_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Batch:
    """images: uint8 [N, 3, S, S]; labels: int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an upright 8-bit RGB image, whatever the mode: palette, grey, CMYK, alpha, 16 bits a channel."""
    if turned(image):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        image = to_8_bits(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def to_8_bits(image: Image.Image) -> Image.Image:
    """Return an image of 16 bits, or of 32 that hold 16, as 8-bit grey; a strip at a time, as float64 is eight times as large."""
    width, height, rows = *image.size, max(1, 2**20 // image.width)
    grey = np.empty((height, width), dtype=np.uint8)
    for top in range(0, height, rows):
        values = np.asarray(image.crop((0, top, width, min(top + rows, height))))
        grey[top : top + rows] = (values.clip(0, 65535) / 257).round()
    return Image.fromarray(grey)


def turned(image: Image.Image) -> bool:
    """Return whether the EXIF data says that the image lies on its side or is mirrored; data that is damaged says nothing."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # Pillow's parsers raise whatever they stumble over
        return False


def geometry(data_config: dict, size: int) -> Callable[[Image.Image], Image.Image]:
    """Return timm's own evaluation transform for that size, up to but without tensor conversion and normalisation."""
    config = {**data_config, "input_size": (3, size, size)}
    return Compose(create_transform(**config, is_training=False).transforms[:-2])


def decode(row: Row, transform: Callable[[Image.Image], Image.Image]) -> torch.Tensor:
    """Return the image as uint8 [3, S, S].

    Raises:
        TrainingError: it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(row.data), formats=FORMATS) as image:
            copies = 2 if image.format == "WEBP" else 1  # its decoder keeps as much again
            pixels = copies * image.width * image.height
            if pixels > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS:,}")
            with _one_large_image_at_a_time if pixels > LARGE else nullcontext():
                image.load()
                return pil_to_tensor(transform(to_rgb(image)))
    except Exception as error:  # Pillow's parsers raise whatever they stumble over
        text = first_line(error)
        text = type(error).__name__ if "bytes>" in text else text  # Pillow names a buffer by its address
        raise TrainingError(f"image {row.name} cannot be read: {text}") from error


def normalise(images: torch.Tensor, data_config: dict) -> torch.Tensor:
    """Return uint8 [N, 3, H, W] or float 0..1 as the network's input; the arithmetic is timm's, bit for bit."""
    if images.dtype == torch.uint8:
        images = images.float().div_(255)
    mean, std = (torch.tensor(data_config[k], device=images.device).view(1, 3, 1, 1) for k in ("mean", "std"))
    return (images - mean).div_(std).contiguous(memory_format=torch.channels_last)


def near_equal(total: int, parts: int) -> list[int]:
    """Return `parts` sizes that differ by one at most and add up to `total`."""
    return [total * (i + 1) // parts - total * i // parts for i in range(parts)]


@dataclass
class Split:
    """One split as one of `processes` processes sees it; `batch_size` is that of one process."""

    source: Source
    name: str
    batch_size: int
    process: int
    processes: int
    transform: Callable[[Image.Image], Image.Image]
    seed: int

    def __len__(self) -> int:
        return self.source.sizes[self.name]

    @property
    def steps(self) -> int:
        """Batches an epoch, the same for every process."""
        return math.ceil(len(self) / (self.batch_size * self.processes))

    def training(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this process's batches of a shuffled epoch, from batch `start` on."""
        raise NotImplementedError

    def evaluation(self) -> Iterator[tuple[int, list[str], Batch]]:
        """Yield (position of the first, names, batch) in stored order: every `processes`-th batch, the last one padded.

        The same images sit in the same batch whatever the number of processes, so that their logits are the same bits.
        """
        rows = self._in_order()
        for number in itertools.count():
            chunk = list(itertools.islice(rows, self.batch_size))
            if not chunk:
                return
            if number % self.processes == self.process:
                names, images, labels = zip(*self._ready(chunk), strict=True)
                padded = images + images[-1:] * (self.batch_size - len(images))
                yield number * self.batch_size, list(names), Batch(torch.stack(padded), torch.tensor(labels))

    def _in_order(self) -> Iterator:
        raise NotImplementedError

    def _ready(self, chunk: list) -> Iterator[tuple[str, torch.Tensor, int]]:
        """Yield (name, image, label) for each of the things that `_in_order` yields."""
        raise NotImplementedError


@dataclass
class MemorySplit(Split):
    """Decoded once; on the accelerator when it is given as `device`."""

    device: torch.device | str = "cpu"
    progress: bool = False

    def __post_init__(self):
        rows = self.source.rows(self.name)
        bar = tqdm(
            total=len(self),
            desc=f"decoding {self.name}",
            unit="image",
            disable=not self.progress,
            leave=False,
        )
        names, labels, images = [], [], None
        with ThreadPoolExecutor(os.cpu_count()) as pool, bar:
            while chunk := list(itertools.islice(rows, 256)):
                decoded = list(pool.map(lambda row: decode(row, self.transform), chunk))
                if images is None:
                    images = torch.empty(len(self), *decoded[0].shape, dtype=torch.uint8)
                images[len(names) : len(names) + len(chunk)] = torch.stack(decoded)
                names += [row.name for row in chunk]
                labels += [row.label for row in chunk]
                bar.update(len(chunk))
        self.names, self.labels, self.images = names, torch.tensor(labels), images
        self.images, self.labels = self.images.to(self.device), self.labels.to(self.device)

    def training(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = torch.randperm(
            len(self), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        )
        for chunk in order.split(near_equal(len(self), self.steps))[start:]:
            mine = chunk[self.process :: self.processes].to(self.device)
            yield Batch(self.images[mine], self.labels[mine])

    def _in_order(self) -> Iterator[int]:
        return iter(range(len(self)))

    def _ready(self, chunk: list[int]) -> Iterator[tuple[str, torch.Tensor, int]]:
        return ((self.names[i], self.images[i], int(self.labels[i])) for i in chunk)


@dataclass
class StreamSplit(Split):
    """Read and decoded anew every epoch, by worker threads; only the shuffle buffer and a few batches are in memory."""

    workers: int = 2  # threads
    buffer: int = 2000

    def training(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        mine = len(range(self.process, len(self), self.processes))
        sizes = near_equal(mine, self.steps)
        shard, shuffle = (self.process, self.processes), (self.seed, self.buffer)
        rows = self.source.rows(self.name, epoch, shard, shuffle)
        rows = itertools.islice(rows, sum(sizes[:start]), None)
        with ThreadPoolExecutor(self.workers) as pool:
            examples = ahead(pool, self._example, rows, depth=4 * self.batch_size)
            for size in sizes[start:]:
                chunk = list(itertools.islice(examples, size))
                if len(chunk) < size:
                    raise TrainingError(
                        f"{self.source.id} announces {len(self)} images in {self.name}, but holds fewer"
                    )
                _, images, labels = zip(*chunk, strict=True)
                yield Batch(torch.stack(images), torch.tensor(labels))

    def _in_order(self) -> Iterator[Row]:
        return self.source.rows(self.name)

    def _ready(self, chunk: list[Row]) -> Iterator[tuple[str, torch.Tensor, int]]:
        with ThreadPoolExecutor(self.workers) as pool:
            yield from pool.map(self._example, chunk)

    def _example(self, row: Row) -> tuple[str, torch.Tensor, int]:
        return row.name, decode(row, self.transform), row.label


def ahead(pool: Executor, work: Callable, items: Iterator, depth: int) -> Iterator:
    """Yield `work(item)` in order, with up to `depth` items under way."""
    pending = deque(pool.submit(work, item) for item in itertools.islice(items, depth))
    while pending:
        result = pending.popleft().result()
        pending.extend(pool.submit(work, item) for item in itertools.islice(items, 1))
        yield result


class Loader:
    """The splits of a data set, decoded to the sizes that are asked for: in memory, or streamed."""

    def __init__(self, options, accelerator: Accelerator, source: Source, data_config: dict):
        self.options, self.accelerator, self.source, self.data_config = (
            options,
            accelerator,
            source,
            data_config,
        )
        images = sum(source.sizes.values())
        size = data_config["input_size"][-1]
        automatic = options.data == "auto"
        self.in_memory = fits_in_memory(images, size * MARGIN) if automatic else options.data == "memory"
        if automatic and not self.in_memory:
            self.source = open_source(options, streaming=True)
        kept = "decoded once into memory" if self.in_memory else "streamed"
        why = "chosen by size; --data forces it" if automatic else "as asked"
        accelerator.print(f"data: {images} images, {kept} ({why})", flush=True)
        self.size, self.loaded = None, None

    @property
    def visible(self) -> bool:
        """Whether this process shows progress bars."""
        return self.accelerator.is_main_process and sys.stderr.isatty()

    def splits(self, size: int) -> tuple[Split, Split]:
        """Return training and validation for images of that size; decoded anew only when the size changes."""
        if size != self.size:
            options, larger = self.options, math.ceil(size * MARGIN)
            self.loaded = None  # makes room
            self.loaded = self.split(options.train_split, larger), self.split(options.validation_split, size)
            self.size = size
        return self.loaded

    def split(self, name: str, size: int) -> Split:
        """Return one split, decoded to that size."""
        options, process, processes = (
            self.options,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        transform = geometry(self.data_config, size)
        shared = (self.source, name, options.batch_size, process, processes, transform, options.seed)
        if self.in_memory:
            return MemorySplit(*shared, device=self.accelerator.device, progress=self.visible)
        return StreamSplit(*shared, workers=max(1, options.workers), buffer=options.shuffle_buffer)

    def class_weights(self) -> torch.Tensor:
        """Return a weight for each class [C]: all 1, or in inverse proportion to its images.

        Raises:
            TrainingError: there are images of one class only.
        """
        classes, balanced = len(self.source.label_names), self.options.class_weights == "balanced"
        if not (self.in_memory or balanced):
            return torch.ones(classes)  # counting would mean reading all of a streamed data set
        split = self.options.train_split
        counts = torch.tensor(self.source.class_counts(split), dtype=torch.float)
        if (counts > 0).sum() < 2:
            raise TrainingError(f"{self.source.id} has images of one class only in {split!r}")
        return counts.sum() / (classes * counts.clamp_min(1)) if balanced else torch.ones(classes)


def fits_in_memory(images: int, size: int) -> bool:
    """Return whether that many decoded images of that size may be kept."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return images * 3 * size**2 < MEMORY_SHARE * free
