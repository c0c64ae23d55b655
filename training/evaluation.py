"""Metrics of training epochs and evaluated splits, the same for any number of processes."""

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


class EpochMetrics:
    """Losses and confusion matrix of this process over the current training epoch.

    Attributes:
        losses: float64 [steps], the loss of each batch.
        confusion: int64 [C, C], true against predicted class.
    """

    def __init__(self, accelerator: Accelerator, progress: Progress, steps: int, num_classes: int):
        self.accelerator, self.progress, device = accelerator, progress, accelerator.device
        self.losses = torch.zeros(steps, dtype=torch.float64, device=device)
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        if progress.losses is not None:  # resumed in the middle of the epoch
            self.losses += progress.losses[accelerator.process_index].to(device)
            if accelerator.is_main_process:
                self.confusion += progress.confusion.to(device)
        self.started, self.images = time.monotonic(), 0

    def update(self, loss: torch.Tensor, targets: torch.Tensor, logits: torch.Tensor) -> None:
        """Add the batch of `progress.step`: its loss, targets [N, C] and logits [N, C]."""
        cells = targets.argmax(dim=1) * len(self.confusion) + logits.argmax(dim=1)
        # bincount would synchronize with the GPU to find the largest value
        self.confusion.view(-1).index_add_(0, cells, torch.ones_like(cells))
        self.losses[self.progress.step] = loss.detach()
        self.images += len(targets)

    def gather(self) -> None:
        """Store the losses and the confusion matrix of all processes in `progress`."""
        self.progress.losses = self.accelerator.gather(self.losses[None]).cpu()
        self.progress.confusion = self.accelerator.reduce(self.confusion.clone(), "sum").cpu()

    def compute(self) -> dict[str, float]:
        """Return the training metrics over the batches of all processes."""
        self.gather()
        losses, confusion = self.progress.losses[:, : self.progress.step], self.progress.confusion
        return {
            "train_loss": losses.mean().item(),
            "train_accuracy": (confusion.diagonal().sum() / confusion.sum()).item(),
            "train_macro_f1": macro_f1(confusion),
        }

    def images_per_second(self) -> float:
        """Return the training throughput of all processes together."""
        return self.images * self.accelerator.num_processes / (time.monotonic() - self.started)


@dataclass(frozen=True)
class Predictions:
    """Predictions for a split: names and sources of the images, labels int64 [N], logits float32 [N, C]."""

    names: list[str]
    sources: list[str | None]
    labels: np.ndarray
    logits: np.ndarray

    def metrics_by_source(self) -> dict[str, dict[str, float]]:
        """Return the metrics of each source; {} unless the split has several."""
        sources = np.array(self.sources, dtype=object)
        names = sorted({source for source in self.sources if source})
        masks = {name: sources == name for name in names} if len(names) > 1 else {}
        return {name: score(self.logits[mask], self.labels[mask]) for name, mask in masks.items()}


def evaluate_split(
    accelerator: Accelerator, model: nn.Module, data_config: dict, split: Split
) -> tuple[dict[str, float], Predictions]:
    """Return the metrics (see `score`) and float32 predictions of a split, on every process.

    Batch norm statistics are broadcast from the main process, as DDP does before every training step. Those that the other
    processes have updated since are in no checkpoint, so a resumed run could not reproduce results that depend on them.
    """
    if accelerator.num_processes > 1:
        distribute_bn(model, accelerator.num_processes, reduce=False)
    model.eval()
    rows = []
    with torch.inference_mode():
        for start, batch in split.evaluation():
            logits = model(normalise(batch.images.to(accelerator.device), data_config)).cpu().numpy()
            rows += zip(itertools.count(start), batch.names, batch.sources, batch.labels.tolist(), logits)
    rows = sorted(gather_object(rows), key=lambda row: row[0])
    _, names, sources, labels, logits = map(list, zip(*rows, strict=True))
    predictions = Predictions(names, sources, np.array(labels), np.stack(logits))
    (metrics,) = broadcast_object_list([score(predictions.logits, predictions.labels)])
    return metrics, predictions


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return loss, accuracy, macro-F1 and number of images for logits [N, C] and labels [N].

    They equal those of the `evaluate` metric in `hub_model/metrics`. The loss is summed exactly (`math.fsum`), so it does not
    depend on the order of the images.
    """
    log_probabilities = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    predicted = logits.argmax(axis=1)
    classes = logits.shape[1]
    confusion = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    return {
        "loss": -math.fsum(log_probabilities) / len(labels),
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": macro_f1(torch.from_numpy(confusion)),
        "images": len(labels),
    }


def macro_f1(confusion: torch.Tensor) -> float:
    """Return the mean F1 over the classes that occur or are predicted, from a confusion matrix [C, C] (rows: true class)."""
    true_positives, occurrences = confusion.diagonal().double(), confusion.sum(0) + confusion.sum(1)
    return float((2 * true_positives / occurrences)[occurrences > 0].mean())
