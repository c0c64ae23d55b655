"""Images for the trainer: checked rows of a dataset in, uint8 batches out.

A `Split` hands out batches of decoded images, to each process its own. Small splits are decoded once and kept in memory
(`MemorySplit`), large ones are read and decoded again every epoch (`StreamSplit`). Both cut an epoch into near-equal chunks, one
for each update of the weights, and each chunk into as many near-equal batches as processes times accumulation steps ask for. So
no image is seen twice or left out, and the same images, in the same batches, make the same update, however the batches are
divided among processes and accumulation steps.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import Compose
from torchvision.transforms.functional import pil_to_tensor
from tqdm.auto import tqdm

from hub_model.inference.errors import ImageError
from hub_model.inference.images import read_picture
from hub_model.inference.preprocessing import ahead, cores
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


def geometry(data_config: dict, size: int) -> Callable[[Image.Image], Image.Image]:
    """Return timm's own evaluation transform for that size, up to but without tensor conversion and normalisation."""
    config = {**data_config, "input_size": (3, size, size)}
    return Compose(create_transform(**config, is_training=False).transforms[:-2])


def decode(row: Row, transform: Callable[[Image.Image], Image.Image]) -> torch.Tensor:
    """Return the image as uint8 [3, S, S], from the same pixels that serving sees.

    Raises:
        TrainingError: it cannot be decoded.
    """
    try:
        return pil_to_tensor(transform(read_picture(row.data)))
    except ImageError as error:
        raise TrainingError(f"image {row.name} cannot be read: {error}") from error


def normalise(images: torch.Tensor, data_config: dict) -> torch.Tensor:
    """Return uint8 [N, 3, H, W] or float 0..1 as the network's input; the arithmetic is timm's, bit for bit."""
    if images.dtype == torch.uint8:
        images = images.float().div_(255)
    mean, std = (torch.tensor(data_config[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    mean, std = (constant.to(images.device, non_blocking=True) for constant in (mean, std))
    return (images - mean).div_(std).contiguous(memory_format=torch.channels_last)


def near_equal(total: int, chunks: int) -> list[int]:
    """Return `chunks` sizes that differ by one at most and add up to `total`."""
    return [total * (i + 1) // chunks - total * i // chunks for i in range(chunks)]


def updates_in(images: int, batch_size: int, batches: int) -> int:
    """Return the updates of an epoch whose updates are of `batches` batches each; no batch has fewer than two images."""
    return max(1, min(math.ceil(images / (batch_size * batches)), images // (2 * batches)))


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
    def batches(self) -> int:
        """Batches an update, those of all processes together."""
        return self.processes * self.accumulation

    @property
    def updates(self) -> int:
        """Updates an epoch."""
        return updates_in(len(self), self.batch_size, self.batches)

    @property
    def steps(self) -> int:
        """Batches an epoch, the same for every process."""
        return self.updates * self.accumulation

    def index(self, step: int) -> tuple[int, int]:
        """Return which update of the epoch this process's batch of that step is for, and which of its batches it is."""
        update, turn = divmod(step, self.accumulation)
        return update, turn * self.processes + self.process

    def training(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this process's batches of a shuffled epoch, from batch `start` on."""
        raise NotImplementedError

    def evaluation(self) -> Iterator[tuple[int, Batch]]:
        """Yield (position of the first image, batch) in stored order: every `processes`-th batch, the images of the last padded.

        The same images sit in the same batch whatever the number of processes, so that their logits are the same bits.
        """
        rows = self._in_order()
        for number in itertools.count():
            chunk = list(itertools.islice(rows, self.batch_size))
            if not chunk:
                return
            if number % self.processes == self.process:
                names, sources, labels, images = map(list, zip(*self._decoded(chunk), strict=True))
                padded = torch.stack(images + images[-1:] * (self.batch_size - len(images)))
                yield number * self.batch_size, Batch(padded, torch.tensor(labels), names, sources)

    def _example(self, row: Row) -> Example:
        return row.name, row.source, row.label, decode(row, self.transform)

    def _in_order(self) -> Iterator:
        raise NotImplementedError

    def _decoded(self, chunk: list) -> Iterator[Example]:
        """Yield an example for each of the things that `_in_order` yields."""
        raise NotImplementedError


@dataclass
class MemorySplit(Split):
    """Decoded once; on the accelerator when it is given as `device`."""

    device: torch.device | str = "cpu"
    progress: bool = False

    def __post_init__(self):
        title, hidden = f"decoding {self.name}", not self.progress
        bar = tqdm(self.source.rows(self.name), title, len(self), unit="image", leave=False, disable=hidden)
        self.names, self.sources, images = [], [], None
        for name, source, _, image in ahead(self._example, bar, cores(), depth=256):
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
        chunks = order.split(near_equal(len(self), self.updates))
        for step in range(start, self.steps):
            update, batch = self.index(step)
            mine = chunks[update][batch :: self.batches].to(self.device, non_blocking=True)
            yield Batch(self.images[mine], self.labels[mine])

    def _in_order(self) -> Iterator[int]:
        return iter(range(len(self)))

    def _decoded(self, chunk: list[int]) -> Iterator[Example]:
        return ((self.names[i], self.sources[i], int(self.labels[i]), self.images[i]) for i in chunk)


@dataclass
class StreamSplit(Split):
    """Read and decoded every epoch, by worker threads; only the shuffle buffer and a few batches are in memory.

    With `shard_sizes`, each process reads shards of its own, which hold so many images; else all read every row, and decode
    their own.
    """

    workers: int = 2  # threads
    buffer: int = 2000
    shard_sizes: list[int] | None = None

    @property
    def updates(self) -> int:
        if self.shard_sizes:
            return updates_in(max(self.shard_sizes), self.batch_size, self.accumulation)
        return super().updates

    def training(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        rows, sizes = self._own_shards(epoch) if self.shard_sizes else self._own_rows(epoch)
        done = start // self.accumulation
        rows = itertools.islice(rows, sum(sizes[:done]), None)
        examples = ahead(self._example, rows, self.workers, depth=4 * self.batch_size)
        for update, size in enumerate(sizes[done:], start=done):
            _, _, labels, images = zip(*itertools.islice(examples, size), strict=True)
            for turn in range(max(0, start - update * self.accumulation), self.accumulation):
                mine = slice(turn, None, self.accumulation)
                yield Batch(torch.stack(images[mine]), torch.tensor(labels[mine]))

    def _own_shards(self, epoch: int) -> tuple[Iterator[Row], list[int]]:
        """Return the shuffled rows of this process's shards, and how many of them each update takes."""
        shard = (self.process, self.processes)
        rows = self.source.rows(self.name, epoch, shuffle=(self.seed, self.buffer), shard=shard)
        return rows, near_equal(self.shard_sizes[self.process], self.updates)

    def _own_rows(self, epoch: int) -> tuple[Iterator[Row], list[int]]:
        """Return this process's of all shuffled rows, and how many of them each update takes."""
        firsts = list(itertools.accumulate(near_equal(len(self), self.updates), initial=0))

        def mine(position: int) -> bool:
            first = firsts[bisect.bisect(firsts, position) - 1]
            return (position - first) % self.batches % self.processes == self.process

        own = range(self.process, self.batches, self.processes)
        sizes = [
            sum(len(range(batch, last - first, self.batches)) for batch in own)
            for first, last in itertools.pairwise(firsts)
        ]
        return self.source.rows(self.name, epoch, mine, (self.seed, self.buffer)), sizes

    def _in_order(self) -> Iterator[Row]:
        return self.source.rows(self.name)

    def _decoded(self, chunk: list[Row]) -> Iterator[Example]:
        return ahead(self._example, chunk, self.workers)
