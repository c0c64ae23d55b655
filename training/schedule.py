"""Learning rate, image size and end of a run, from the number of updates and the elapsed time."""

from __future__ import annotations

import time
from argparse import Namespace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from timm.scheduler import CosineLRScheduler

from training.checkpoint import Progress

TICKS = 1_000_000  # length of a run in updates of timm's scheduler


class Schedule:
    """Linear warm-up and cosine decay over the whole run, which ends after its last update or `--max_minutes`.

    All processes use the main process's clock.
    """

    def __init__(
        self,
        options: Namespace,
        accelerator: Accelerator,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        updates_per_epoch: int,
    ):
        self.options, self.accelerator, self.optimizer = options, accelerator, optimizer
        self.progress, self.total_updates = progress, options.epochs * updates_per_epoch
        self.cosine = CosineLRScheduler(optimizer, TICKS, warmup_t=options.warmup * TICKS, t_in_epochs=False)
        self.started = time.monotonic()

    def start_clock(self) -> None:
        """Start the clock at the time the run has already taken."""
        self.started = time.monotonic() - self.progress.seconds

    def update_clock(self) -> None:
        """Update `progress.seconds`."""
        seconds = time.monotonic() - self.started
        if self.options.max_minutes and self.accelerator.num_processes > 1:
            seconds = torch.tensor([seconds], dtype=torch.float64, device=self.accelerator.device)
            seconds = broadcast(seconds).item()
        self.progress.seconds = seconds

    @property
    def fraction(self) -> float:
        """Fraction of the run that is done, in 0..1."""
        minutes = self.options.max_minutes
        elapsed = self.progress.seconds / (60 * minutes) if minutes else 0
        return min(1.0, max(self.progress.update / max(self.total_updates, 1), elapsed))

    @property
    def finished(self) -> bool:
        """Whether no epoch is left; an interrupted one, even after its last update, has yet to be evaluated."""
        interrupted = self.progress.step > 0
        return self.progress.epoch >= self.options.epochs or (self.fraction >= 1 and not interrupted)

    @property
    def image_size(self) -> int | None:
        """The current image size of `--size_schedule`; None without one."""
        sizes = [size for start, size in self.options.size_schedule if self.fraction >= start]
        return sizes[-1] if sizes else None

    def count_update(self) -> None:
        """Count an optimizer update and set the next learning rate."""
        self.progress.update += 1
        self.cosine.step_update(self.fraction * TICKS)

    @property
    def learning_rate(self) -> float:
        """The current learning rate, with --layer_decay that of the last layer."""
        return self.optimizer.param_groups[-1]["lr"]


def derive_seed(*numbers: int) -> int:
    """Return a seed derived from a sequence of numbers, practically unique to it."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
