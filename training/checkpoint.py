"""Checkpoints that survive a kill at any moment: `RUN/checkpoints/step-EPOCH-BATCH/`, whole or not there at all.

Each is what `accelerator.save_state` writes, the weight average and the progress, which it would pickle, and a manifest of
SHA-256 sums. It is written under another name, synced to disk, and renamed: accelerate's own naming and pruning
(`automatic_checkpoint_naming`, `total_limit`) deletes the old one first and writes in place, so a kill could leave none. A
checkpoint that does not agree with its manifest is passed over.

The main process alone writes and chooses. The others read its choice, or are sent it where they do not see its disk.
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
from training.process import seen_by_all

MANIFEST, PROGRESS, AVERAGE = "manifest.json", "progress.json", "average.safetensors"
UNFINISHED = "unfinished"


@dataclass
class Progress:
    """Where a run stands; everything that the weights and the optimizer do not say.

    Attributes:
        epoch, step: the next batch to be trained on, counted from 0.
        update: optimizer updates so far.
        seconds: time spent so far, over all resumptions.
        best_epoch, best: the epoch whose weights are kept, and [image size was the final one, validation macro-F1].
        history, timing: a dictionary for each finished epoch.
        losses: float64 [processes, steps], the loss of each batch of the current epoch.
        confusion: int64 [C, C], true against predicted class over the current epoch.
        sharded: whether each process reads shards of its own.
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
        """Return all of it as JSON, to the last bit."""
        return json.dumps(vars(self), default=torch.Tensor.tolist)

    def read_json(self, text: str) -> None:
        """Become what `to_json` returned."""
        vars(self).update(json.loads(text))
        if self.losses is not None:
            self.losses = torch.tensor(self.losses, dtype=torch.float64)
            self.confusion = torch.tensor(self.confusion, dtype=torch.int64)

    def next_epoch(self) -> None:
        """Go to the first batch of the next epoch."""
        self.epoch, self.step, self.losses, self.confusion = self.epoch + 1, 0, None, None

    def divide_among(self, processes: int, sharded: bool, updates: int) -> None:
        """Express the position in the current epoch as that many processes count it, when there were more or fewer before.

        Batches keep their order, a row of `processes` a step: what two processes do in one step is what one does in two.
        Shards are divided again, which cannot keep it, so the epoch begins again.

        Args:
            sharded: whether each process reads shards of its own from now on.
            updates: those of an epoch from now on.
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
    """The checkpoints of a run: when the next one is due, how it is written, which one to resume from."""

    def __init__(
        self,
        options: Namespace,
        accelerator: Accelerator,
        progress: Progress,
        average: nn.Module | None = None,
        push: Callable[[Path], None] | None = None,
    ):
        self.folder = options.output_dir / "checkpoints"
        self.accelerator, self.progress, self.average = accelerator, progress, average
        self.keep, self.seconds = options.keep_checkpoints, 60 * options.checkpoint_minutes
        self.push, self.saved, self.pushed = push, time.monotonic(), time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time for another one, by the main process's clock."""
        return self.accelerator.is_main_process and time.monotonic() - self.saved > self.seconds

    def save(self, last: bool = False) -> None:
        """Write the checkpoint of this moment, then delete all but the newest `keep`; push it from time to time, and the last.

        Raises:
            TrainingError: it cannot be written; the earlier ones are untouched.
        """
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            try:
                self._save(f"step-{self.progress.epoch:05d}-{self.progress.step:08d}")
            except (OSError, RuntimeError, SafetensorError) as error:
                reason = why_not_written(error, self.folder / UNFINISHED)
                shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)
                raise TrainingError(
                    f"no checkpoint can be written to {self.folder}: {reason}; the earlier ones are untouched"
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
        if self.average:
            save_model(self.average, str(unfinished / AVERAGE))
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
        """Load the newest sound checkpoint, and return its name; None when there is none.

        Raises:
            TrainingError: there are checkpoints, but all of them are damaged.
        """
        chosen = self.newest_sound() if self.accelerator.is_main_process else None
        with seen_by_all(self.accelerator, chosen, MANIFEST) as checkpoint:
            if checkpoint:
                self.accelerator.load_state(str(checkpoint))
                self.progress.read_json((checkpoint / PROGRESS).read_text())
                if self.average:
                    load_model(self.average, str(checkpoint / AVERAGE))
            (name,) = broadcast_object_list([chosen and chosen.name])
        return name

    def newest_sound(self) -> Path | None:
        """Return the newest checkpoint that agrees with its manifest, and say which ones did not; None when there is none.

        Raises:
            TrainingError: all of them are damaged.
        """
        candidates = self.newest_first()
        for candidate in candidates:
            if not (damage := find_damage(candidate)):
                return candidate
            print(f"checkpoint {candidate.name} is damaged ({damage}): going back to the one before it")
        if candidates:
            raise TrainingError(f"every checkpoint in {self.folder} is damaged: start again with --overwrite")
        return None

    def newest_first(self) -> list[Path]:
        """Return the finished checkpoints, the newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)


def find_damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        changed = [name for name, digest in manifest.items() if sha256(checkpoint / name) != digest]
    except (OSError, ValueError) as error:
        return str(error)
    return f"{changed[0]} has changed" if changed else None


def why_not_written(error: Exception, folder: Path) -> str:
    """Return why a file could not be written to a folder.

    torch says of a full disk "unexpected pos 593216 vs 593108" or "iostream error", so another file is tried there.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
    except OSError as refusal:
        return refusal.strerror
    return first_line(error)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's text in one step."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text)
    sync(unfinished)
    unfinished.replace(path)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have the file or folder written to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
