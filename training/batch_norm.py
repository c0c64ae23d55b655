"""Batch norm statistics recomputed without mixup: mixed images have a lower variance than those seen in inference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.augment import CellAugmentation
from training.data import Split, normalise
from training.schedule import derive_seed


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[torch.Tensor], accelerator: Accelerator) -> int:
    """Set running means and variances to their averages over normalised images [N, 3, S, S]; return the number of layers.

    "Precise" statistics (Wu & Johnson 2021, arXiv:2105.07576). Each process passes its own batches. Dropout and stochastic depth
    are disabled (unlike in `torch.optim.swa_utils.update_bn`), weights do not change, and the model is left in evaluation mode.
    Idempotent.
    """
    layers = [m for m in model.eval().modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
        layer.train()
    for images in batches if layers else ():
        model(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
        for statistic in (layer.running_mean, layer.running_var):
            statistic.copy_(accelerator.reduce(statistic, reduction="mean"))
    return len(layers)


def views_without_mixup(
    split: Split, epoch: int, augment: CellAugmentation, data_config: dict, accelerator: Accelerator
) -> Iterator[torch.Tensor]:
    """Yield batches of normalised random views [N, 3, S, S], one of each training image of this process."""
    for step, batch in enumerate(split.training(epoch)):
        torch.manual_seed(derive_seed(split.seed, epoch, *split.index(step)))
        images = batch.images.to(accelerator.device).float().div_(255)
        yield normalise(augment(images, data_config["input_size"][-1]), data_config)
