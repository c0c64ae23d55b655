"""Batch norm's statistics, taken anew from views without mixup: mixed images vary less than those that will be asked about."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import nn


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[torch.Tensor], accelerator: Accelerator) -> int:
    """Set running means and variances to their mean over normalised images [N, 3, S, S]; return how many layers have them.

    Each process gives its own batches; all weights stay, and so does the model's mode, evaluation. What the statistics were
    before has no influence: doing it again changes nothing (Wu & Johnson 2021, arXiv:2105.07576, "precise" statistics).
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
