"""Images for the trainer: checked rows of a dataset in, uint8 batches out.

A `Split` hands out batches of decoded images, to each process its own share. Small splits are decoded once and kept in memory
(`MemorySplit`), large ones are read and decoded again every epoch (`StreamSplit`). Both cut an epoch into near-equal shares, one
for each update of the weights, and each share into as many near-equal batches as processes times accumulation steps ask for. So
no image is seen twice or left out, and the same images, in the same batches, make the same update, however the batches are
divided among processes and accumulation steps.
"""

from __future__ import annotations

import bisect
import io
import itertools
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from timm.data import create_transform
from torchvision.transforms import Compose
from torchvision.transforms.functional import pil_to_tensor
from tqdm.auto import tqdm

from training import TrainingError
from training.source import Row, Source, first_line

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM")  # others Pillow may hand to Ghostscript
MAX_PIXELS = 24_000_000  # of an image as stored, what `dataset_script` takes at most
LONGEST = 40  # long side to short one: the transform brings the short one to size, and a thread of pixels would fill memory
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
            if max(image.size) > LONGEST * min(image.size):
                raise ValueError(f"{image.width}x{image.height} pixels are a line, not a picture")
            with _one_large_image_at_a_time if pixels > LARGE else nullcontext():
                image.load()
                return pil_to_tensor(transform(to_rgb(image)))
    except Exception as error:  # Pillow's parsers raise whatever they stumble over
        raise TrainingError(f"image {row.name} cannot be read: {first_line(error)}") from error


def normalise(images: torch.Tensor, data_config: dict) -> torch.Tensor:
    """Return uint8 [N, 3, H, W] or float 0..1 as the network's input; the arithmetic is timm's, bit for bit."""
    if images.dtype == torch.uint8:
        images = images.float().div_(255)
    mean, std = (torch.tensor(data_config[k], device=images.device).view(1, 3, 1, 1) for k in ("mean", "std"))
    return (images - mean).div_(std).contiguous(memory_format=torch.channels_last)


def near_equal(total: int, parts: int) -> list[int]:
    """Return `parts` sizes that differ by one at most and add up to `total`."""
    return [total * (i + 1) // parts - total * i // parts for i in range(parts)]


def updates_in(images: int, batch_size: int, parts: int) -> int:
    """Return the updates of an epoch whose updates are of `parts` batches each; no batch has fewer than two images."""
    return max(1, min(math.ceil(images / (batch_size * parts)), images // (2 * parts)))


@dataclass
class Split:
    """One split as one of `processes` processes sees it; `batch_size` is that of one process and step."""

    source: Source
    name: str
    batch_size: int
    process: int
    processes: int
    transform: Callable[[Image.Image], Image.Image]
    seed: int
    accumulation: int = 1

    def __len__(self) -> int:
        return self.source.sizes[self.name]

    @property
    def parts(self) -> int:
        """Batches an update, those of all processes together."""
        return self.processes * self.accumulation

    @property
    def updates(self) -> int:
        """Updates an epoch."""
        return updates_in(len(self), self.batch_size, self.parts)

    @property
    def steps(self) -> int:
        """Batches an epoch, the same for every process."""
        return self.updates * self.accumulation

    @property
    def own_parts(self) -> range:
        """Which of an update's batches are this process's."""
        return range(self.process, self.parts, self.processes)

    def place(self, step: int) -> tuple[int, int]:
        """Return which update of the epoch this process's batch of that step is for, and which of its parts it is."""
        update, turn = divmod(step, self.accumulation)
        return update, turn * self.processes + self.process

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
        shares = order.split(near_equal(len(self), self.updates))
        for step in range(start, self.steps):
            update, part = self.place(step)
            mine = shares[update][part :: self.parts].to(self.device)
            yield Batch(self.images[mine], self.labels[mine])

    def _in_order(self) -> Iterator[int]:
        return iter(range(len(self)))

    def _ready(self, chunk: list[int]) -> Iterator[tuple[str, torch.Tensor, int]]:
        return ((self.names[i], self.images[i], int(self.labels[i])) for i in chunk)


@dataclass
class StreamSplit(Split):
    """Read and decoded anew every epoch, by worker threads; only the shuffle buffer and a few batches are in memory.

    With `dealt`, each process reads files of its own, which hold so many images; else all read every row, and decode their own.
    """

    workers: int = 2  # threads
    buffer: int = 2000
    dealt: list[int] | None = None

    @property
    def updates(self) -> int:
        if self.dealt:
            return updates_in(max(self.dealt), self.batch_size, self.accumulation)
        return super().updates

    def training(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        rows, shares = self._own_files(epoch) if self.dealt else self._own_rows(epoch)
        done = start // self.accumulation
        rows = itertools.islice(rows, sum(shares[:done]), None)
        with ThreadPoolExecutor(self.workers) as pool:
            examples = ahead(pool, self._example, rows, depth=4 * self.batch_size)
            for update, share in enumerate(shares[done:], start=done):
                chunk = list(itertools.islice(examples, share))
                if len(chunk) < share:
                    raise TrainingError(
                        f"{self.source.id} announces {len(self)} images in {self.name}, but holds fewer"
                    )
                for turn in range(max(0, start - update * self.accumulation), self.accumulation):
                    _, images, labels = zip(*chunk[turn :: self.accumulation], strict=True)
                    yield Batch(torch.stack(images), torch.tensor(labels))

    def _own_files(self, epoch: int) -> tuple[Iterator[Row], list[int]]:
        """Return the shuffled rows of this process's files, and how many of them each update takes."""
        files = (self.process, self.processes)
        rows = self.source.rows(self.name, epoch, shuffle=(self.seed, self.buffer), files=files)
        return rows, near_equal(self.dealt[self.process], self.updates)

    def _own_rows(self, epoch: int) -> tuple[Iterator[Row], list[int]]:
        """Return this process's part of all shuffled rows, and how many of them each update takes."""
        firsts = list(itertools.accumulate(near_equal(len(self), self.updates), initial=0))

        def mine(position: int) -> bool:
            first = firsts[bisect.bisect(firsts, position) - 1]
            return (position - first) % self.parts % self.processes == self.process

        sizes = (last - first for first, last in itertools.pairwise(firsts))
        shares = [sum(len(range(part, size, self.parts)) for part in self.own_parts) for size in sizes]
        return self.source.rows(self.name, epoch, mine, (self.seed, self.buffer)), shares

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
