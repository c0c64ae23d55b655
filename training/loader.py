"""Which splits a process trains on and evaluates: decoded into memory or streamed, all rows or shards of its own."""

from __future__ import annotations

import math
import os
import sys
from argparse import Namespace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from training import TrainingError
from training.data import MemorySplit, Split, StreamSplit, geometry, updates_in
from training.source import Source, open_source

MARGIN = 1.5  # training images are kept this much larger than the network's input, so that views can be cut sharply
MEMORY_FRACTION = 0.25  # of the machine's free memory, that decoded images may take before they are streamed
UNEVEN = 1.25  # how many times as many images the shards of one process may hold as those of another


class Loader:
    """The splits of a dataset, decoded to the sizes that are asked for: in memory, or streamed."""

    def __init__(self, options: Namespace, accelerator: Accelerator, source: Source, data_config: dict):
        self.options, self.accelerator, self.data_config = options, accelerator, data_config
        self.accumulation, processes = accelerator.gradient_accumulation_steps, accelerator.num_processes
        self.visible = accelerator.is_main_process and sys.stderr.isatty()  # shows progress bars
        images, size = sum(source.sizes.values()), data_config["input_size"][-1]
        automatic = options.data == "auto"
        if automatic:  # where one process has to stream, all do: an epoch is divided in another way then
            self.in_memory = all(gather_object([fits_in_memory(images, size * MARGIN)]))
        else:
            self.in_memory = options.data == "memory"
        self.source = open_source(options, streaming=True) if automatic and not self.in_memory else source
        self.counts = torch.tensor(source.class_counts(options.train_split), dtype=torch.float)
        self.check_images()
        self.shard_sizes = None if self.in_memory else shard_sizes(self.source, options, accelerator)
        kept = "decoded once into memory" if self.in_memory else "streamed"
        kept += ", each process reads shards of its own" if self.shard_sizes else ""
        why = "chosen by size; --data forces it" if automatic else "as asked"
        accelerator.print(f"data: {images} images, {kept} ({why})", flush=True)
        images, batches = source.sizes[options.train_split], self.accumulation * processes
        if self.shard_sizes:
            images, batches = max(self.shard_sizes), self.accumulation
        self.updates = updates_in(images, options.batch_size, batches)  # of an epoch
        self.size, self.loaded = None, None

    def check_images(self) -> None:
        """Refuse more processes than there are images for, and images of one class.

        Raises:
            TrainingError: some batch would have fewer than two images, which batch normalisation cannot do with.
        """
        split, processes = self.options.train_split, self.accelerator.num_processes
        images, least = self.source.sizes[split], 2 * processes * self.accumulation
        if images < least:
            raise TrainingError(
                f"{images} images in {split!r} are too few for {processes} processes and {self.accumulation} "
                f"accumulation steps: at least {least} are needed"
            )
        if (self.counts > 0).sum() < 2:
            raise TrainingError(f"{self.source.id} has images of one class only in {split!r}")

    def splits(self, size: int) -> tuple[Split, Split]:
        """Return training and validation for images of that size; decoded again only when the size changes."""
        if size != self.size:
            options, larger = self.options, math.ceil(size * MARGIN)
            self.loaded = None  # makes room
            self.loaded = self.split(options.train_split, larger), self.split(options.validation_split, size)
            self.size = size
        return self.loaded

    def split(self, name: str, size: int) -> Split:
        """Return one split, decoded to that size."""
        options, accelerator = self.options, self.accelerator
        ranks = (accelerator.process_index, accelerator.num_processes)
        shared = (self.source, name, options.batch_size, *ranks, geometry(self.data_config, size))
        shared += (options.seed, self.accumulation)
        if self.in_memory:
            return MemorySplit(*shared, device=accelerator.device, progress=self.visible)
        sizes = self.shard_sizes if name == options.train_split else None
        return StreamSplit(*shared, max(1, options.workers), options.shuffle_buffer, sizes)

    def class_weights(self) -> torch.Tensor:
        """Return a weight for each class [C]: all 1, or in inverse proportion to its images."""
        if self.options.class_weights == "none":
            return torch.ones(len(self.counts))
        return self.counts.sum() / (len(self.counts) * self.counts.clamp_min(1))


def fits_in_memory(images: int, size: int) -> bool:
    """Return whether that many decoded images of that size may be kept by each process of this machine."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return images * 3 * size**2 * int(os.environ.get("LOCAL_WORLD_SIZE", "1")) < MEMORY_FRACTION * free


def shard_sizes(source: Source, options: Namespace, accelerator: Accelerator) -> list[int] | None:
    """Return how many images of the streamed training split each process reads from shards of its own; None without those.

    Shards are divided where their number is a multiple of the processes' and each gets about as many images: every image of a
    batch then counts about the same in the mean over the processes.
    """
    split, processes = options.train_split, accelerator.num_processes
    if processes == 1 or source.num_shards(split) % processes:
        return None
    sizes = gather_object([source.shard_size(split, accelerator.process_index, processes)])
    even = min(sizes) * UNEVEN >= max(sizes) and min(sizes) >= 2 * accelerator.gradient_accumulation_steps
    return sizes if even else None
