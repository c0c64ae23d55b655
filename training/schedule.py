"""How far a run is, and what follows from it: learning rate, image size, the end. Updates and the clock in, a fraction out."""

from __future__ import annotations

import time
from argparse import Namespace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from timm.scheduler import CosineLRScheduler

from training.checkpoint import Progress

TICKS = 1_000_000  # the length of a run as timm's scheduler counts it


class Schedule:
    """Warm-up and cosine over the whole run, which ends by updates or by the clock, whatever is first.

    All processes agree: the clock is the main process's.
    """

    def __init__(
        self,
        options: Namespace,
        accelerator: Accelerator,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        updates_an_epoch: int,
    ):
        self.options, self.accelerator, self.optimizer = options, accelerator, optimizer
        self.progress, self.updates = progress, options.epochs * updates_an_epoch
        self.cosine = CosineLRScheduler(optimizer, TICKS, warmup_t=options.warmup * TICKS, t_in_epochs=False)
        self.started = time.monotonic()

    def start(self) -> None:
        """Start the clock where the run stands."""
        self.started = time.monotonic() - self.progress.seconds

    def tell_time(self) -> None:
        """Bring `progress.seconds` up to now."""
        seconds = time.monotonic() - self.started
        if self.options.max_minutes and self.accelerator.num_processes > 1:
            told = torch.tensor([seconds], dtype=torch.float64, device=self.accelerator.device)
            seconds = broadcast(told).item()
        self.progress.seconds = seconds

    @property
    def fraction(self) -> float:
        """How much of the run is done; the run ends at 1."""
        minutes = self.options.max_minutes
        clock = self.progress.seconds / (60 * minutes) if minutes else 0
        return min(1.0, max(self.progress.update / max(self.updates, 1), clock))

    @property
    def finished(self) -> bool:
        """Whether no epoch is left; one that was broken off, even after its last update, is still to be evaluated."""
        broken_off = self.progress.step > 0
        return self.progress.epoch >= self.options.epochs or (self.fraction >= 1 and not broken_off)

    @property
    def image_size(self) -> int | None:
        """The size that the size schedule gives now; None without one."""
        stages = reversed(self.options.size_schedule)
        return next((size for start, size in stages if self.fraction >= start), None)

    def count_update(self) -> None:
        """Count an update and give the optimizer its learning rate."""
        self.progress.update += 1
        self.cosine.step_update(self.fraction * TICKS)

    @property
    def learning_rate(self) -> float:
        """The rate that the optimizer has now, of the last layers where there are several."""
        return self.optimizer.param_groups[-1]["lr"]


def seed_of(*numbers: int) -> int:
    """Return a seed that no other combination of these numbers shares in practice."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
