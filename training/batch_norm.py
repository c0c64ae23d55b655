"""Batch norm's statistics, recomputed from views without mixup: mixed images vary less than those that will be predicted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from accelerate import Accelerator
from torch import nn

from training.augment import CellAugmentation
from training.data import Split, normalise
from training.schedule import seed_of


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[torch.Tensor], accelerator: Accelerator) -> int:
    """Set running means and variances to their mean over normalised images [N, 3, S, S]; return how many layers have them.

    Each process gives its own batches. All weights stay, and the model is left in evaluation mode; dropout and stochastic depth
    are off meanwhile (unlike in `torch.optim.swa_utils.update_bn`). Doing it again changes nothing ("precise" statistics, Wu &
    Johnson 2021, arXiv:2105.07576).
    """
    layers = [m for m in model.eval().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    layers = [layer for layer in layers if layer.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean of the batches
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
    """Yield normalised random views [N, 3, S, S] of this process's training images, each once."""
    for step, batch in enumerate(split.training(epoch)):
        torch.manual_seed(seed_of(split.seed, epoch, *split.index(step)))
        images = batch.images.to(accelerator.device).float().div_(255)
        yield normalise(augment(images, data_config["input_size"][-1]), data_config)
