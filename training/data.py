"""Batches of decoded images: the rows of a dataset in, uint8 tensors out.

Each process gets its own batches from a `Split`. Small splits are decoded once and kept in memory (`MemorySplit`), large ones are
read and decoded again every epoch (`StreamSplit`). Both divide an epoch into near-equal chunks, one per optimizer update, and
each chunk into as many near-equal batches as there are processes times accumulation steps. So every image is used exactly once
an epoch, and the batches of an update are the same however they are divided among processes and accumulation steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import Compose
from torchvision.transforms.functional import pil_to_tensor
from tqdm.auto import tqdm

from hub_model.inference.errors import ImageError
from hub_model.inference.images import read_image
from hub_model.inference.preprocessing import cores, map_ahead
from training import TrainingError
from training.source import Row, Source


@dataclass(frozen=True)
class Batch:
    """images: uint8 [N, 3, S, S]; labels: int64 [N]; names and sources of the images, in evaluation only."""

    images: torch.Tensor
    labels: torch.Tensor
    names: list[str] = field(default_factory=list)
    sources: list[str | None] = field(default_factory=list)


Example = tuple[str, str | None, int, torch.Tensor]  # name, source, label, image


def evaluation_transform(data_config: dict, size: int) -> Callable[[Image.Image], Image.Image]:
    """Return timm's evaluation transform for that input size, without tensor conversion and normalisation."""
    config = {**data_config, "input_size": (3, size, size)}
    return Compose(create_transform(**config, is_training=False).transforms[:-2])


def decode(row: Row, transform: Callable[[Image.Image], Image.Image]) -> torch.Tensor:
    """Return the image as uint8 [3, S, S], decoded as in inference.

    Raises:
        TrainingError: it cannot be decoded.
    """
    try:
        return pil_to_tensor(transform(read_image(row.data)))
    except ImageError as error:
        raise TrainingError(f"image {row.name} cannot be read: {error}") from error


def normalise(images: torch.Tensor, data_config: dict) -> torch.Tensor:
    """Return the network's input for images [N, 3, H, W], uint8 or float in 0..1; bit-identical to timm's transform."""
    if images.dtype == torch.uint8:
        images = images.float().div_(255)
    mean, std = (torch.tensor(data_config[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    mean, std = (constant.to(images.device, non_blocking=True) for constant in (mean, std))
    return (images - mean).div_(std).contiguous(memory_format=torch.channels_last)


def split_evenly(total: int, chunks: int) -> list[int]:
    """Return `chunks` sizes that add up to `total` and differ by at most one."""
    return [total * (i + 1) // chunks - total * i // chunks for i in range(chunks)]


def updates_per_epoch(images: int, batch_size: int, batches: int) -> int:
    """Return the number of updates, of `batches` batches each; every batch has at least two images."""
    return max(1, min(math.ceil(images / (batch_size * batches)), images // (2 * batches)))


@dataclass
class Split:
    """One split as seen by one process; `batch_size` is per process and step."""

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
    def batches(self) -> int:
        """Batches per update over all processes."""
        return self.processes * self.accumulation

    @property
    def updates(self) -> int:
        """Updates per epoch."""
        return updates_per_epoch(len(self), self.batch_size, self.batches)

    @property
    def steps(self) -> int:
        """Batches per epoch and process."""
        return self.updates * self.accumulation

    def index(self, step: int) -> tuple[int, int]:
        """Return the update that this process's batch of that step belongs to, and the batch's index within the update."""
        update, turn = divmod(step, self.accumulation)
        return update, turn * self.processes + self.process

    def training(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this process's batches of a shuffled epoch, from batch `start` on."""
        raise NotImplementedError

    def evaluation(self) -> Iterator[tuple[int, Batch]]:
        """Yield (index of the first image, batch) in stored order: every `processes`-th batch, the images of the last padded.

        A batch holds the same images for any number of processes, which makes their logits bit-identical.
        """
        stride = self.batch_size * self.processes
        offset = self.batch_size * self.process
        examples = self._examples(offset <= i % stride < offset + self.batch_size for i in range(len(self)))
        for start in range(offset, len(self), stride):
            chunk = list(itertools.islice(examples, self.batch_size))
            if not chunk:
                raise TrainingError(
                    f"split {self.name!r} has fewer rows than were counted: the dataset has changed"
                )
            names, sources, labels, images = map(list, zip(*chunk, strict=True))
            padded = torch.stack(images + images[-1:] * (self.batch_size - len(images)))
            yield start, Batch(padded, torch.tensor(labels), names, sources)

    def _examples(self, selected: Iterable[bool]) -> Iterator[Example]:
        """Yield the selected examples in stored order."""
        raise NotImplementedError

    def _example(self, row: Row) -> Example:
        return row.name, row.source, row.label, decode(row, self.transform)


@dataclass
class MemorySplit(Split):
    """Decoded once and kept on `device`."""

    device: torch.device | str = "cpu"
    progress: bool = False

    def __post_init__(self):
        title, hidden = f"decoding {self.name}", not self.progress
        bar = tqdm(self.source.rows(self.name), title, len(self), unit="image", leave=False, disable=hidden)
        self.names, self.sources, images = [], [], None
        for name, source, _, image in map_ahead(self._example, bar, cores(), depth=256):
            if images is None:
                images = torch.empty(len(self), *image.shape, dtype=torch.uint8)
            images[len(self.names)] = image
            self.names.append(name)
            self.sources.append(source)
        self.images = images.to(self.device)
        self.labels = torch.from_numpy(self.source.labels[self.name]).to(self.device)

    def training(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self), generator=generator)
        chunks = order.split(split_evenly(len(self), self.updates))
        for step in range(start, self.steps):
            update, batch = self.index(step)
            indices = chunks[update][batch :: self.batches].to(self.device, non_blocking=True)
            yield Batch(self.images[indices], self.labels[indices])

    def _examples(self, selected: Iterable[bool]) -> Iterator[Example]:
        for i in itertools.compress(range(len(self)), selected):
            yield self.names[i], self.sources[i], int(self.labels[i]), self.images[i]


@dataclass
class StreamSplit(Split):
    """Read and decoded every epoch by worker threads; only the shuffle buffer and a few batches are in memory.

    With `shard_sizes`, the number of images in each process's shards, each process reads its own shards. Otherwise every process
    reads all rows and decodes its own.
    """

    workers: int = 2  # threads
    buffer: int = 2000
    shard_sizes: list[int] | None = None

    @property
    def updates(self) -> int:
        if self.shard_sizes:
            return updates_per_epoch(max(self.shard_sizes), self.batch_size, self.accumulation)
        return super().updates

    def training(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        shuffle = (self.seed, self.buffer)
        if self.shard_sizes:
            sizes = split_evenly(self.shard_sizes[self.process], self.updates)
            shard = (self.process, self.processes)
            rows = self.source.rows(self.name, epoch, shuffle=shuffle, shard=shard)
        else:
            chunks = split_evenly(len(self), self.updates)
            sizes = [len(range(self.process, chunk, self.processes)) for chunk in chunks]
            selected = (i % self.processes == self.process for chunk in chunks for i in range(chunk))
            rows = self.source.rows(self.name, epoch, selected, shuffle)
        done = start // self.accumulation
        rows = itertools.islice(rows, sum(sizes[:done]), None)
        examples = map_ahead(self._example, rows, self.workers, depth=4 * self.batch_size)
        for update, size in enumerate(sizes[done:], start=done):
            _, _, labels, images = zip(*itertools.islice(examples, size), strict=True)
            for turn in range(max(0, start - update * self.accumulation), self.accumulation):
                batch = slice(turn, None, self.accumulation)
                yield Batch(torch.stack(images[batch]), torch.tensor(labels[batch]))

    def _examples(self, selected: Iterable[bool]) -> Iterator[Example]:
        return map_ahead(self._example, self.source.rows(self.name, selected=selected), self.workers)
