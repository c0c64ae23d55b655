"""Build the splits that a process trains and evaluates on: in memory or streamed, from all rows or from its own shards."""

from __future__ import annotations

import math
import os
import sys
from argparse import Namespace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from training import TrainingError
from training.data import MemorySplit, Split, StreamSplit, evaluation_transform, updates_per_epoch
from training.source import Source, open_source

MARGIN = (
    1.5  # training images are decoded to this multiple of the input size, so that zoomed views stay sharp
)
MEMORY_FRACTION = 0.25  # of the free memory that decoded images may take before they are streamed instead
MAX_IMBALANCE = 1.25  # largest ratio between the image counts of two processes that read their own shards


class Loader:
    """Creates the splits of a dataset at the requested image size, in memory or streamed."""

    def __init__(self, options: Namespace, accelerator: Accelerator, source: Source, data_config: dict):
        self.options, self.accelerator, self.data_config = options, accelerator, data_config
        self.accumulation, processes = accelerator.gradient_accumulation_steps, accelerator.num_processes
        self.show_progress = accelerator.is_main_process and sys.stderr.isatty()
        images, size = sum(source.sizes.values()), data_config["input_size"][-1]
        automatic = options.data == "auto"
        if automatic:  # all processes must agree: a streamed epoch is shuffled differently
            self.in_memory = all(gather_object([fits_in_memory(images, size * MARGIN)]))
        else:
            self.in_memory = options.data == "memory"
        self.source = open_source(options, streaming=True) if automatic and not self.in_memory else source
        self.counts = torch.tensor(source.class_counts(options.train_split), dtype=torch.float)
        self.check_images()
        self.shard_sizes = None if self.in_memory else shard_sizes(self.source, options, accelerator)
        mode = "decoded once into memory" if self.in_memory else "streamed"
        mode += ", each process reads its own shards" if self.shard_sizes else ""
        reason = "chosen by size; --data overrides it" if automatic else f"--data {options.data}"
        accelerator.print(f"data: {images} images, {mode} ({reason})", flush=True)
        images, batches = source.sizes[options.train_split], self.accumulation * processes
        if self.shard_sizes:
            images, batches = max(self.shard_sizes), self.accumulation
        self.updates = updates_per_epoch(images, options.batch_size, batches)
        self.size, self.loaded = None, None

    def check_images(self) -> None:
        """Check that there are enough training images for the processes, and more than one class.

        Raises:
            TrainingError: there are not; batch norm needs at least two images in every batch.
        """
        split, processes = self.options.train_split, self.accelerator.num_processes
        images, minimum = self.source.sizes[split], 2 * processes * self.accumulation
        if images < minimum:
            raise TrainingError(
                f"split {split!r} has {images} images, too few for {processes} processes and {self.accumulation} "
                f"accumulation steps: at least {minimum} are needed"
            )
        if (self.counts > 0).sum() < 2:
            raise TrainingError(f"split {split!r} of {self.source.id} has images of one class only")

    def splits(self, size: int) -> tuple[Split, Split]:
        """Return the training and validation splits for an input size; they are decoded again only when it changes."""
        if size != self.size:
            options, larger = self.options, math.ceil(size * MARGIN)
            self.loaded = None  # free the memory first
            self.loaded = self.split(options.train_split, larger), self.split(options.validation_split, size)
            self.size = size
        return self.loaded

    def split(self, name: str, size: int) -> Split:
        """Return one split, decoded to images of that size."""
        options, accelerator = self.options, self.accelerator
        ranks = (accelerator.process_index, accelerator.num_processes)
        shared = (self.source, name, options.batch_size, *ranks, evaluation_transform(self.data_config, size))
        shared += (options.seed, self.accumulation)
        if self.in_memory:
            return MemorySplit(*shared, device=accelerator.device, progress=self.show_progress)
        sizes = self.shard_sizes if name == options.train_split else None
        return StreamSplit(*shared, max(1, options.workers), options.shuffle_buffer, sizes)

    def class_weights(self) -> torch.Tensor:
        """Return the class weights [C]: ones, or inversely proportional to the number of images of a class."""
        if self.options.class_weights == "none":
            return torch.ones(len(self.counts))
        return self.counts.sum() / (len(self.counts) * self.counts.clamp_min(1))


def fits_in_memory(images: int, size: float) -> bool:
    """Return whether every process on this machine can keep that many decoded images of that size in memory."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return images * 3 * size**2 * int(os.environ.get("LOCAL_WORLD_SIZE", "1")) < MEMORY_FRACTION * free


def shard_sizes(source: Source, options: Namespace, accelerator: Accelerator) -> list[int] | None:
    """Return how many images of the streamed training split each process's own shards hold; None if all processes read all rows.

    Processes read their own shards if the number of shards is a multiple of the number of processes and their image counts are
    similar: then every image has about the same weight in the gradient averaged over processes.
    """
    split, processes = options.train_split, accelerator.num_processes
    if processes == 1 or source.num_shards(split) % processes:
        return None
    sizes = gather_object([source.shard_size(split, accelerator.process_index, processes)])
    balanced = max(sizes) <= min(sizes) * MAX_IMBALANCE
    return sizes if balanced and min(sizes) >= 2 * accelerator.gradient_accumulation_steps else None
