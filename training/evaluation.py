"""Figures of a run: batches and logits in, loss, accuracy and F1 out, the same for any number of processes."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from scipy.special import log_softmax
from timm.utils import distribute_bn
from torch import nn

from training.checkpoint import Progress
from training.data import Split, normalise


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
        # unlike bincount, which looks for the largest, this does not wait for a GPU
        self.confusion.view(-1).index_add_(0, cells, torch.ones_like(cells))
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


@dataclass(frozen=True)
class Predictions:
    """A whole split: names and sources of the images, labels int64 [N], logits float32 [N, C]."""

    names: list[str]
    sources: list[str | None]
    labels: np.ndarray
    logits: np.ndarray

    def figures(self, source: str | None = None) -> dict[str, float]:
        """Return loss, accuracy, macro-F1 and number of images of all, or of those from one source."""
        rows = [source in (None, own) for own in self.sources]
        return score(self.logits[rows], self.labels[rows])

    def by_source(self) -> dict[str, dict[str, float]]:
        """Return the figures of each source, where there are several."""
        known = sorted({source for source in self.sources if source})
        return {source: self.figures(source) for source in known} if len(known) > 1 else {}


def evaluate_split(
    accelerator: Accelerator, model: nn.Module, split: Split, data_config: dict
) -> tuple[dict[str, float], Predictions]:
    """Return loss, accuracy and macro-F1 of a whole split, and its predictions, on every process."""
    predictions = predict(accelerator, model, split, data_config)
    found = predictions.figures() if accelerator.is_main_process else None
    (found,) = broadcast_object_list([found])
    return found, predictions


def predict(accelerator: Accelerator, model: nn.Module, split: Split, data_config: dict) -> Predictions:
    """Return the predictions for a whole split, on every process, computed in float32.

    Batch statistics are the main process's, as in training, where it gives them to the others before every step. Those that
    the others gathered since then are in no checkpoint, so a resumed run could not repeat what comes of them.
    """
    if accelerator.num_processes > 1:
        distribute_bn(model, accelerator.num_processes, reduce=False)
    model.eval()
    rows = []
    with torch.inference_mode():
        for position, batch in split.evaluation():
            logits = model(normalise(batch.images.to(accelerator.device), data_config)).cpu().numpy()
            known = (batch.names, batch.sources, batch.labels.tolist(), logits)
            rows += zip(itertools.count(position), *known)
    rows = sorted(gather_object(rows), key=lambda row: row[0])
    _, names, sources, labels, logits = map(list, zip(*rows, strict=True))
    return Predictions(names, sources, np.array(labels), np.stack(logits))


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the figures that a run needs of logits [N, C] and labels [N], equal to those of the `evaluate` metric.

    Sums are exact, so that the order in which processes deliver the images changes no digit.
    """
    logarithms = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    predicted = logits.argmax(axis=1)
    classes = logits.shape[1]
    confusion = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    return {
        "loss": -math.fsum(logarithms) / len(labels),
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": macro_f1(torch.from_numpy(confusion)),
        "images": len(labels),
    }


def macro_f1(confusion: torch.Tensor) -> float:
    """Return the mean F1, of a confusion matrix [C, C] (rows: true class), over the classes that occur or are predicted."""
    hits, named = confusion.diagonal().double(), confusion.sum(0) + confusion.sum(1)
    return float((2 * hits / named)[named > 0].mean())
