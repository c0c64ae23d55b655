"""Where the model looked: Grad-CAM (Selvaraju et al. 2017) on the last feature map, laid over what the model
saw.

In: a timm model and preprocessed pixels. Out: a heat map in 0…1, and a picture for people.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

HEAT = np.array([255, 214, 10])  # yellow: the one hue that a Giemsa stain does not have


def grad_cam(model: Any, pixels: np.ndarray, label_index: int) -> np.ndarray | None:
    """Heat [h, w] in 0…1 for one image [1, 3, H, W]; None for networks without a feature map (plain ViTs)."""
    import torch

    with torch.no_grad():
        spatial = model.forward_features(torch.from_numpy(pixels))
    if spatial.ndim != 4:
        return None
    spatial.requires_grad_()
    with torch.enable_grad():
        logit = model.forward_head(spatial)[0, label_index]
    (gradient,) = torch.autograd.grad(logit, spatial)
    heat = (gradient.mean(dim=(2, 3), keepdim=True) * spatial.detach()).sum(dim=1)[0].clamp(min=0).numpy()
    return heat / heat.max() if heat.max() > 0 else heat


def overlay(seen: Image.Image, heat: np.ndarray, side: int = 384) -> Image.Image:
    """The picture `side` pixels wide: what did not matter dimmed to grey, what mattered in colour and
    warm."""
    seen = seen.resize((side, side), Image.Resampling.BICUBIC)
    smooth = Image.fromarray(np.uint8(255 * heat)).resize((side, side), Image.Resampling.BICUBIC)
    share = np.asarray(smooth, dtype=np.float32)[..., None] / 255
    pixels = np.asarray(seen, dtype=np.float32)
    dimmed = 0.4 * np.asarray(seen.convert("L"), dtype=np.float32)[..., None] + 30
    warm = pixels + 0.28 * share * (HEAT - pixels)
    return Image.fromarray(np.uint8(np.clip(share * warm + (1 - share) * dimmed, 0, 255)))
