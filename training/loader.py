"""Which splits a process trains on and scores: decoded into memory or streamed, and its own part of them.

In: the dataset as published, the options, and this process's place among all. Out: the splits of `training.data`.
"""

from __future__ import annotations

import math
import os
import sys

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from training import TrainingError
from training.data import MemorySplit, Split, StreamSplit, geometry, updates_in
from training.source import Source, open_source

MARGIN = 1.25  # training images are kept this much larger than the network's input, so that views can be cut sharply
MEMORY_SHARE = 0.25  # of the machine's free memory, that decoded images may take before they are streamed
UNEVEN = 1.25  # how many times as many images one process may be dealt as another


class Loader:
    """The splits of a dataset, decoded to the sizes that are asked for: in memory, or streamed."""

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
        if automatic:  # where one process has to stream, all do: an epoch is divided in another way then
            self.in_memory = all(gather_object([fits_in_memory(images, size * MARGIN)]))
        else:
            self.in_memory = options.data == "memory"
        if automatic and not self.in_memory:
            self.source = open_source(options, streaming=True)
        self.size, self.loaded = None, None
        self.check_share()
        self.dealt = None if self.in_memory else deal_files(self.source, options.train_split, accelerator)
        kept = "decoded once into memory" if self.in_memory else "streamed"
        kept += ", files of its own to each process" if self.dealt else ""
        why = "chosen by size; --data forces it" if automatic else "as asked"
        accelerator.print(f"data: {images} images, {kept} ({why})", flush=True)
        if self.dealt:
            self.updates = updates_in(max(self.dealt), options.batch_size, self.accumulation)
        else:
            self.updates = updates_in(
                source.sizes[options.train_split],
                options.batch_size,
                self.accumulation * accelerator.num_processes,
            )

    def check_share(self) -> None:
        """Refuse more processes than there are images for.

        Raises:
            TrainingError: some batch would have fewer than two images, which batch normalisation cannot do with.
        """
        split, processes = self.options.train_split, self.accelerator.num_processes
        images, least = self.source.sizes[split], 2 * processes * self.accumulation
        if images < least:
            raise TrainingError(
                f"{images} images in {split!r} are too few to share among {processes} processes and {self.accumulation} "
                f"accumulation steps: at least {least} are needed"
            )

    @property
    def accumulation(self) -> int:
        """Batches of each process that make an update."""
        return self.accelerator.gradient_accumulation_steps

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
        shared += (self.accumulation,)
        if self.in_memory:
            return MemorySplit(*shared, device=self.accelerator.device, progress=self.visible)
        dealt = self.dealt if name == options.train_split else None
        workers = max(1, options.workers)
        return StreamSplit(*shared, workers=workers, buffer=options.shuffle_buffer, dealt=dealt)

    def class_weights(self) -> torch.Tensor:
        """Return a weight for each class [C]: all 1, or in inverse proportion to its images.

        Raises:
            TrainingError: there are images of one class only.
        """
        classes, balanced = len(self.source.label_names), self.options.class_weights == "balanced"
        if not (self.in_memory or balanced):
            return torch.ones(classes)  # counting would mean reading all of a streamed dataset
        split = self.options.train_split
        counts = torch.tensor(self.source.class_counts(split), dtype=torch.float)
        if (counts > 0).sum() < 2:
            raise TrainingError(f"{self.source.id} has images of one class only in {split!r}")
        return counts.sum() / (classes * counts.clamp_min(1)) if balanced else torch.ones(classes)


def fits_in_memory(images: int, size: int) -> bool:
    """Return whether that many decoded images of that size may be kept by each process of this machine."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return images * 3 * size**2 * int(os.environ.get("LOCAL_WORLD_SIZE", "1")) < MEMORY_SHARE * free


def deal_files(source: Source, split: str, accelerator: Accelerator) -> list[int] | None:
    """Return how many images the files of a streamed split hold that each process is dealt; None where it is dealt none.

    Files are dealt where their number is a multiple of the processes' and each gets about as many images: every image of a
    batch then counts about the same in the mean over the processes.
    """
    process, processes = accelerator.process_index, accelerator.num_processes
    if processes == 1 or source.files(split) % processes:
        return None
    images = gather_object([source.count(split, (process, processes))])
    even = min(images) * UNEVEN >= max(images) and min(images) >= 2 * accelerator.gradient_accumulation_steps
    return images if even else None
