"""Checkpoints that survive a kill at any moment: `RUN/checkpoints/step-EPOCH-BATCH/`, whole or not there at all.

Each is what `accelerator.save_state` writes, with a manifest of SHA-256 sums. It is written under another name, synced to disk,
and renamed. A checkpoint that does not agree with its manifest is passed over for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from training import TrainingError
from training.source import first_line

MANIFEST = "manifest.json"
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

    def state_dict(self) -> dict:
        return dict(vars(self))

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: Progress, keep: int) -> None:
    """Write the checkpoint of this moment, then delete all but the newest `keep`.

    Raises:
        TrainingError: it cannot be written; the earlier ones are untouched.
    """
    try:
        _save(accelerator, folder, f"step-{progress.epoch:05d}-{progress.step:08d}", keep)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        raise TrainingError(
            f"no checkpoint can be written to {folder}: {first_line(error)}; the earlier ones are untouched"
        ) from error


def _save(accelerator: Accelerator, folder: Path, name: str, keep: int) -> None:
    accelerator.wait_for_everyone()
    unfinished = folder / UNFINISHED
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        manifest = {f.name: sha256(f) for f in sorted(unfinished.iterdir())}
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2))
        for file in unfinished.iterdir():
            sync(file)
        final = folder / name
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
        sync(folder)
        for old in newest_first(folder)[keep:]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, folder: Path) -> Path | None:
    """Load the newest sound checkpoint, and return its folder; None when there is none.

    Raises:
        TrainingError: there are checkpoints, but all of them are damaged.
    """
    candidates = newest_first(folder)
    for candidate in candidates:
        if damage := find_damage(candidate):
            accelerator.print(
                f"checkpoint {candidate.name} is damaged ({damage}): going back to the one before it"
            )
            continue
        accelerator.load_state(str(candidate))
        return candidate
    if candidates:
        raise TrainingError(f"every checkpoint in {folder} is damaged: start again with --overwrite")
    return None


def find_damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        return next(
            (
                f"{name} has changed"
                for name, digest in manifest.items()
                if sha256(checkpoint / name) != digest
            ),
            None,
        )
    except (OSError, ValueError) as error:
        return str(error)


def newest_first(folder: Path) -> list[Path]:
    """Return the finished checkpoints, the newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


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
