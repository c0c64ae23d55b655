"""Atomic checkpoints in `RUN/checkpoints/step-EPOCH-BATCH/`, which a kill at any moment leaves complete or absent.

A checkpoint holds what `accelerator.save_state` writes, the averaged weights and the progress (which accelerate would pickle),
and a manifest of SHA-256 sums. It is written under a temporary name, synced to disk and renamed. accelerate's own naming and
pruning (`automatic_checkpoint_naming`, `total_limit`) deletes the old checkpoint first and writes in place, so a kill could
leave none. A checkpoint that does not match its manifest is skipped.

Only the main process writes checkpoints and chooses the one to resume from. The other processes read that one, or receive a copy
if they do not share its disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from hub_model.inference.errors import first_line
from training import TrainingError
from training.process import broadcast_folder

MANIFEST, PROGRESS, AVERAGE = "manifest.json", "progress.json", "average.safetensors"
UNFINISHED = "unfinished"


@dataclass
class Progress:
    """The state of a run besides model, optimizer and random states.

    Attributes:
        epoch, step: the next batch to train on, counted from 0.
        update: optimizer updates so far.
        seconds: training time so far, including the time before a resumption.
        best_epoch, best: the epoch whose weights are kept, and its [image size is the final one, validation macro-F1].
        history, timing: one dictionary per finished epoch.
        losses: float64 [processes, steps], the loss of each batch of the current epoch.
        confusion: int64 [C, C], true against predicted class over the current epoch.
        sharded: whether each process reads its own shards.
    """

    epoch: int = 0
    step: int = 0
    update: int = 0
    seconds: float = 0.0
    best_epoch: int = 0
    best: list = field(default_factory=lambda: [False, -1.0])
    history: list[dict] = field(default_factory=list)
    timing: list[dict] = field(default_factory=list)
    losses: torch.Tensor | None = None
    confusion: torch.Tensor | None = None
    sharded: bool = False

    def to_json(self) -> str:
        """Return the state as JSON, without loss of precision."""
        return json.dumps(vars(self), default=torch.Tensor.tolist)

    def read_json(self, text: str) -> None:
        """Restore the state from what `to_json` returned."""
        vars(self).update(json.loads(text))
        if self.losses is not None:
            self.losses = torch.tensor(self.losses, dtype=torch.float64)
            self.confusion = torch.tensor(self.confusion, dtype=torch.int64)

    def next_epoch(self) -> None:
        """Move on to the first batch of the next epoch."""
        self.epoch, self.step, self.losses, self.confusion = self.epoch + 1, 0, None, None

    def reshard(self, processes: int, sharded: bool, updates: int) -> None:
        """Convert the position in the current epoch after a change in the number of processes.

        Batches keep their order, `processes` of them per step: one step of two processes is two steps of one. If processes read
        (or will read) their own shards, the order cannot be kept, and the epoch is restarted.

        Args:
            sharded: whether each process reads its own shards from now on.
            updates: updates per epoch from now on.
        """
        if self.losses is not None and len(self.losses) != processes:
            if sharded or self.sharded:
                self.step, self.losses, self.confusion = 0, None, None
            else:
                self.step = self.step * len(self.losses) // processes
                self.losses = self.losses.T.reshape(-1, processes).T
        if self.step == 0:
            self.update = self.epoch * updates
        self.sharded = sharded


class Checkpoints:
    """Writes, prunes, pushes and loads the checkpoints of a run."""

    def __init__(
        self,
        options: Namespace,
        accelerator: Accelerator,
        progress: Progress,
        ema: nn.Module | None = None,
        push: Callable[[Path], None] | None = None,
    ):
        self.folder = options.output_dir / "checkpoints"
        self.accelerator, self.progress, self.ema = accelerator, progress, ema
        self.keep, self.seconds = options.keep_checkpoints, 60 * options.checkpoint_minutes
        self.push, self.saved, self.pushed = push, time.monotonic(), time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time for another checkpoint; always False on other processes than the main one."""
        return self.accelerator.is_main_process and time.monotonic() - self.saved > self.seconds

    def save(self, last: bool = False) -> None:
        """Write a checkpoint and delete all but the newest `keep`; push it if the last push is long enough ago, or if `last`.

        Raises:
            TrainingError: it cannot be written; earlier checkpoints are kept.
        """
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            try:
                self._save(f"step-{self.progress.epoch:05d}-{self.progress.step:08d}")
            except (OSError, RuntimeError, SafetensorError) as error:
                reason = write_error(error, self.folder / UNFINISHED)
                shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)
                raise TrainingError(
                    f"cannot write a checkpoint to {self.folder}: {reason}; earlier checkpoints are kept"
                ) from error
            if self.push and (last or time.monotonic() - self.pushed > self.seconds):
                self.push(self.newest_first()[0])
                self.pushed = time.monotonic()
        self.accelerator.wait_for_everyone()
        self.saved = time.monotonic()

    def _save(self, name: str) -> None:
        unfinished, final = self.folder / UNFINISHED, self.folder / name
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        self.accelerator.save_state(str(unfinished))
        (unfinished / PROGRESS).write_text(self.progress.to_json())
        if self.ema:
            save_model(self.ema, str(unfinished / AVERAGE))
        manifest = {file.name: sha256(file) for file in sorted(unfinished.iterdir())}
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2))
        for file in unfinished.iterdir():
            sync(file)
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
        sync(self.folder)
        for old in self.newest_first()[self.keep :]:
            shutil.rmtree(old)

    def load(self) -> str | None:
        """Load the newest intact checkpoint and return its name; None if there is none.

        Raises:
            TrainingError: there are checkpoints, but all of them are damaged.
        """
        chosen = self.newest_intact() if self.accelerator.is_main_process else None
        with broadcast_folder(self.accelerator, chosen, MANIFEST) as checkpoint:
            if checkpoint:
                self.accelerator.load_state(str(checkpoint))
                self.progress.read_json((checkpoint / PROGRESS).read_text())
                if self.ema:
                    load_model(self.ema, str(checkpoint / AVERAGE))
            (name,) = broadcast_object_list([chosen and chosen.name])
        return name

    def newest_intact(self) -> Path | None:
        """Return the newest checkpoint that matches its manifest, and print which ones do not; None if there is none.

        Raises:
            TrainingError: all of them are damaged.
        """
        candidates = self.newest_first()
        for candidate in candidates:
            if not (damage := find_damage(candidate)):
                return candidate
            print(f"checkpoint {candidate.name} is damaged ({damage}): trying the one before it")
        if candidates:
            raise TrainingError(f"every checkpoint in {self.folder} is damaged: start again with --overwrite")
        return None

    def newest_first(self) -> list[Path]:
        """Return the finished checkpoints, newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)


def find_damage(checkpoint: Path) -> str | None:
    """Return how a checkpoint differs from its manifest, or None if it matches."""
    try:
        manifest = dict(json.loads((checkpoint / MANIFEST).read_text()))
        if PROGRESS not in manifest:
            return f"{MANIFEST} does not list {PROGRESS}"
        changed = [name for name, digest in manifest.items() if sha256(checkpoint / name) != digest]
    except (OSError, TypeError, ValueError) as error:
        return str(error)
    return f"{changed[0]} has changed" if changed else None


def write_error(error: Exception, folder: Path) -> str:
    """Return why a file could not be written to a folder.

    torch reports a full disk as "unexpected pos 593216 vs 593108" or "iostream error", so a test file is written as well.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
    except OSError as cause:
        return cause.strerror
    return first_line(error)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file, replacing an existing one atomically."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text)
    sync(unfinished)
    unfinished.replace(path)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
