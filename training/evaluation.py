"""Figures of a run: batches and logits in, loss, accuracy and F1 out, the same for any number of processes."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import evaluate
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
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

    def __init__(self, accelerator: Accelerator, progress: Progress, steps: int, classes: int):
        self.accelerator, self.progress, device = accelerator, progress, accelerator.device
        self.losses = torch.zeros(steps, dtype=torch.float64, device=device)
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
        if progress.losses is not None:  # resumed in the middle of the epoch
            self.losses += progress.losses[accelerator.process_index].to(device)
            if accelerator.is_main_process:
                self.confusion += progress.confusion.to(device)
        self.started, self.images = time.monotonic(), 0

    def add(self, loss: torch.Tensor, targets: torch.Tensor, logits: torch.Tensor) -> None:
        """Add the batch of `progress.step`: its loss, targets [N, C] and logits [N, C]."""
        classes = len(self.confusion)
        cells = targets.argmax(dim=1) * classes + logits.argmax(dim=1)
        self.confusion += torch.bincount(cells, minlength=classes**2).view(classes, classes)
        self.losses[self.progress.step] = loss.detach()
        self.images += len(targets)

    def store(self) -> None:
        """Put every process's totals into `progress`."""
        self.progress.losses = self.accelerator.gather(self.losses[None]).cpu()
        self.progress.confusion = self.accelerator.reduce(self.confusion.clone(), "sum").cpu()

    def figures(self) -> dict[str, float]:
        """Return the training figures over every process's batches."""
        self.store()
        losses, confusion = self.progress.losses[:, : self.progress.step], self.progress.confusion
        return {
            "train_loss": losses.mean().item(),
            "train_accuracy": (confusion.diagonal().sum() / confusion.sum()).item(),
            "train_macro_f1": macro_f1(confusion),
        }

    def speed(self) -> float:
        """Return images a second, all processes together."""
        return self.images * self.accelerator.num_processes / (time.monotonic() - self.started)


Predictions = tuple[list[str], np.ndarray, np.ndarray]  # file names, labels [N], logits [N, C]


def evaluate_split(
    accelerator: Accelerator, model: nn.Module, split: Split, data_config: dict
) -> tuple[dict[str, float], Predictions]:
    """Return loss, accuracy and macro-F1 of a whole split, and its predictions, on every process."""
    predictions = predict(accelerator, model, split, data_config)
    found = None
    if accelerator.is_main_process:
        _, labels, logits = predictions
        scores = score(logits, labels)
        found = {"loss": scores["log_loss"], "accuracy": scores["accuracy"], "macro_f1": scores["macro_f1"]}
    (found,) = broadcast_object_list([found])
    return found, predictions


def predict(accelerator: Accelerator, model: nn.Module, split: Split, data_config: dict) -> Predictions:
    """Return file names, labels [N] and logits [N, C] of a whole split, on every process, computed in float32.

    Batch statistics are the main process's, as in training, where it gives them to the others before every step. Those that
    the others gathered since then are in no checkpoint, so a resumed run could not repeat what comes of them.
    """
    if accelerator.num_processes > 1:
        distribute_bn(model, accelerator.num_processes, reduce=False)
    model.eval()
    rows = []
    with torch.inference_mode():
        for position, names, batch in split.evaluation():
            logits = model(normalise(batch.images.to(accelerator.device), data_config)).cpu().numpy()
            rows += zip(itertools.count(position), names, batch.labels.tolist(), logits)
    rows = sorted(gather_object(rows), key=lambda row: row[0])
    _, names, labels, logits = zip(*rows, strict=True)
    return list(names), np.array(labels), np.stack(logits)


def score(logits: np.ndarray, labels: np.ndarray) -> dict:
    """Return what the `evaluate` metric says of logits [N, C] and labels [N]."""
    return evaluate.load(str(METRIC)).compute(prediction_scores=logits, references=labels)


def macro_f1(confusion: torch.Tensor) -> float:
    """Return the unweighted mean F1 of a confusion matrix [C, C] (rows: true class)."""
    hits = confusion.diagonal().double()
    return float((2 * hits / (confusion.sum(0) + confusion.sum(1)).clamp_min(1)).mean())
