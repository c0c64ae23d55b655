"""Figures of a run: batches and logits in, loss, accuracy and F1 out, the same for any number of processes."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import evaluate
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.utils import distribute_bn
from torch import nn

from training.checkpoint import Progress
from training.data import Split, normalise

METRIC = Path(__file__).parent.parent / "hub_model" / "metrics" / "cell_classification"


class Totals:
    """What one epoch adds up to, in this process, until it is gathered.

    Attributes:
        losses: float64 [steps], the loss of each batch.
        confusion: int64 [C, C], true against predicted class.
    """

    def __init__(self, accelerator: Accelerator, steps: int, classes: int, progress: Progress):
        self.accelerator, device = accelerator, accelerator.device
        self.losses = torch.zeros(steps, dtype=torch.float64, device=device)
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
        if progress.losses is not None:  # resumed in the middle of the epoch
            self.losses += progress.losses[accelerator.process_index].to(device)
            if accelerator.is_main_process:
                self.confusion += progress.confusion.to(device)
        self.started, self.images = time.monotonic(), 0

    def add(self, step: int, loss: torch.Tensor, images: int) -> None:
        """Note a batch's loss and number of images."""
        self.losses[step] = loss.detach()
        self.images += images

    def count(self, true: torch.Tensor, predicted: torch.Tensor) -> None:
        """Note true and predicted classes [N]."""
        classes = len(self.confusion)
        self.confusion += torch.bincount(true * classes + predicted, minlength=classes**2).view(
            classes, classes
        )

    def store(self, progress: Progress) -> None:
        """Put every process's totals into `progress`."""
        progress.losses = self.accelerator.gather(self.losses[None]).cpu()
        progress.confusion = self.accelerator.reduce(self.confusion.clone(), "sum").cpu()

    def figures(self, progress: Progress) -> dict[str, float]:
        """Return the training figures over every process's batches."""
        self.store(progress)
        confusion = progress.confusion
        return {
            "train_loss": progress.losses[:, : progress.step].mean().item(),
            "train_accuracy": (confusion.diagonal().sum() / confusion.sum()).item(),
            "train_macro_f1": macro_f1(confusion),
        }

    def speed(self) -> float:
        """Return images a second, all processes together."""
        return self.images * self.accelerator.num_processes / (time.monotonic() - self.started)


def predict(
    accelerator: Accelerator, model: nn.Module, split: Split, data_config: dict
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return file names, labels [N] and logits [N, C] of a whole split, on every process, computed in float32.

    Batch statistics are the main process's, as in training, where it gives them to the others before every step. Those that
    the others gathered since then are in no checkpoint, so a resumed run could not repeat what comes of them.
    """
    if accelerator.num_processes > 1:
        distribute_bn(model, accelerator.num_processes, reduce=False)
    model.eval()
    parts = []
    with torch.inference_mode():
        for position, names, batch in split.evaluation():
            logits = model(normalise(batch.images.to(accelerator.device), data_config)).cpu().numpy()
            parts += zip(itertools.count(position), names, batch.labels.tolist(), logits)
    parts = sorted(gather_object(parts), key=lambda part: part[0])
    _, names, labels, logits = zip(*parts, strict=True)
    return list(names), np.array(labels), np.stack(logits)


def score(logits: np.ndarray, labels: np.ndarray) -> dict:
    """Return what the `evaluate` metric says of logits [N, C] and labels [N]."""
    return evaluate.load(str(METRIC)).compute(prediction_scores=logits, references=labels)


def macro_f1(confusion: torch.Tensor) -> float:
    """Return the unweighted mean F1 of a confusion matrix [C, C] (rows: true class)."""
    hits = confusion.diagonal().double()
    return float((2 * hits / (confusion.sum(0) + confusion.sum(1)).clamp_min(1)).mean())
