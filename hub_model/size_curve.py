"""Accuracy against cost: the same weights at several input sizes, on `validation`.

In: a model and crops. Out: `size_curve` of `metrics.json`, a row a size: accuracy and balanced accuracy, multiply-adds,
and milliseconds an image on one thread of this machine. It is what the input size is chosen by, so it never sees `test`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from hub_model.crops import Crops
from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import RepoError
from hub_model.inference.preprocessing import Preprocessing
from hub_model.robustness import recalls, uncured

SIZES = (96, 112, 128, 144, 160, 192, 224)
TIMINGS = 9  # the median of so many


class Resized:
    """A classifier that looks at another number of pixels; the interface of `Classifier` that scoring needs."""

    def __init__(self, classifier: Classifier, size: int) -> None:
        shape = (3, size, size)
        self.model, self.label_names = classifier.model, classifier.label_names
        self.preprocess = Preprocessing({**classifier.preprocess.config, "input_size": shape})

    def forward(self, pixels: np.ndarray) -> tuple[np.ndarray, None]:
        """Logits [N, C] of normalised pixels [N, 3, H, W]."""
        with torch.inference_mode():
            return self.model(torch.from_numpy(pixels)).numpy(), None


def _cost(model: torch.nn.Module, size: int) -> tuple[float, float]:
    """Multiply-adds of one image in units of 1e9, and milliseconds it takes on one thread."""
    image, threads = torch.zeros(1, 3, size, size), torch.get_num_threads()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    torch.set_num_threads(1)
    seconds = []
    try:
        with torch.inference_mode():
            for _ in range(TIMINGS):
                start = time.perf_counter()
                model(image)
                seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return counter.get_total_flops() / 2e9, 1000 * float(np.median(seconds))


def measure_size_curve(classifier: Classifier, crops: Crops, sizes: Sequence[int] = SIZES) -> list[dict]:
    """One row a size: {"size", "accuracy", "balanced_accuracy", "gmacs", "milliseconds"}, smallest first.

    Raises RepoError for a size that no network takes.
    """
    if wrong := [size for size in sizes if size < 32]:
        raise RepoError(f"an input of {wrong[0]} pixels is too small: 32 or more")
    rows, labels = [], crops.labels
    for size in sorted(set(sizes)):
        predicted = uncured(Resized(classifier, size), crops).argmax(axis=1)
        gmacs, milliseconds = _cost(classifier.model, size)
        rows.append(
            {
                "size": size,
                "accuracy": float((predicted == labels).mean()),
                "balanced_accuracy": float(
                    np.nanmean(recalls(predicted, labels, len(classifier.label_names)))
                ),
                "gmacs": round(gmacs, 4),
                "milliseconds": round(milliseconds, 2),
            }
        )
    return rows
