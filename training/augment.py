"""Augmentation true to cells, for a whole batch at once on the device that holds it.

In: a float tensor [N, 3, H, W] in 0..1 (H = W), the decoded crops. Out: the same at the network's input size.

A blood cell has no up or down, so any rotation and mirror image is as good as the first. What differs from laboratory to
laboratory is the magnification, the amount of each dye, the white balance, and what optics and camera make of detail: sharper or
blurred, finer or coarser, with or without noise. Each is varied here, the dyes in optical density, where they add up (Ruifrok &
Johnston 2001; as augmentation: Tellez et al. 2018, arXiv:1808.05896).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from skimage.color import hed_from_rgb, rgb_from_hed
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import gaussian_blur

BLURRED = 0.35  # of the images whose sharpness is changed, the fraction that is blurred
BORDER = 0.4  # the strip at an image's edge, as a fraction of half its width, that continues it outwards


@dataclass(frozen=True)
class CellAugmentation:
    """Random view of each crop of a batch; draws are from torch's default generators, all but the noise on the CPU.

    Attributes:
        scale: smallest and largest magnification (1 = as photographed), drawn log-uniformly.
        shift: largest displacement of the centre, as a fraction of half the width.
        stain: standard deviation of the relative change of each dye's amount.
        light: standard deviation of the change of each colour channel's optical density (white balance and exposure).
        isolate: fraction of the images whose surroundings are replaced by the colour of their field.
        sharpness: fraction of the images that are blurred or sharpened.
        resample: fraction of the batches in which half of the images lose resolution.
        grain: fraction of the images with noise, of a standard deviation of up to 0.05.
        gamma: largest change of the logarithm of gamma.
    """

    scale: tuple[float, float] = (0.5, 1.25)
    shift: float = 0.1
    stain: float = 0.2
    light: float = 0.1
    isolate: float = 0.2
    sharpness: float = 0.65
    resample: float = 0.3
    grain: float = 0.4
    gamma: float = 0.25

    def __call__(self, images: torch.Tensor, size: int) -> torch.Tensor:
        """Return a random view [N, 3, size, size] of each image [N, 3, H, W] in 0..1."""
        images = self.place(self.alone(images), size)
        images = self.coarsen(self.colour(images))
        return self.expose(self.sharpen(images))

    def alone(self, images: torch.Tensor) -> torch.Tensor:
        """Fade what surrounds the cell of some images into an empty field, as in a thinner smear."""
        happens, radius = torch.rand(2, len(images), 1, 1, 1)
        some = torch.nonzero(happens.flatten() < self.isolate).flatten()  # on the CPU: no GPU has to wait
        if not len(some):
            return images
        radius = send(0.6 + 0.25 * radius[some], images)
        some = send(some, images)
        crops = images[some]
        span = torch.linspace(-1, 1, images.shape[-1], device=images.device)
        distance = (span[:, None] ** 2 + span[None, :] ** 2).sqrt()
        kept = ((radius - distance) / 0.1 + 0.5).clamp(0, 1)
        field = F.adaptive_avg_pool2d(crops, 16).flatten(2).quantile(0.9, dim=2)[:, :, None, None]
        return images.index_copy(0, some, kept * crops + (1 - kept) * field)

    def place(self, images: torch.Tensor, size: int) -> torch.Tensor:
        """Rotate by any angle, mirror, magnify and shift; what lies beyond an edge repeats the strip along it."""
        n = len(images)
        angle, flip, zoom, dx, dy = send(torch.rand(5, n), images)
        angle, flip = angle * 2 * math.pi, torch.where(flip < 0.5, -1.0, 1.0)
        low, high = self.scale
        zoom = low * (high / low) ** zoom
        # how x and y change along a row and down a column, and where they start: [N, 2]
        by_column = torch.stack([angle.cos() * flip / zoom, angle.sin() * flip / zoom], dim=1)
        by_row = torch.stack([-angle.sin() / zoom, angle.cos() / zoom], dim=1)
        centre = (2 * torch.stack([dx, dy], dim=1) - 1) * self.shift
        span = (2 * torch.arange(size, device=images.device) + 1) / size - 1  # pixel centres in -1..1
        down = by_row[:, :, None] * span + centre[:, :, None]
        grid = down[:, :, :, None] + (by_column[:, :, None] * span)[:, :, None, :]  # [N, 2, size, size]
        grid = continue_outwards(grid).permute(0, 2, 3, 1)  # one plane a coordinate: read fastest
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def colour(self, images: torch.Tensor) -> torch.Tensor:
        """Change the amount of each dye, and the light, in optical density."""
        n = len(images)
        to_dyes, to_rgb = (torch.tensor(m, dtype=images.dtype) for m in (hed_from_rgb, rgb_from_hed))
        dyes = 1 + self.stain * torch.randn(n, 3)
        light = send(self.light * torch.randn(n, 3, 1, 1), images)
        mix = send(to_dyes @ torch.diag_embed(dyes) @ to_rgb, images)  # [N, 3, 3]
        logarithm = images.clamp_min(1 / 255).log_()  # minus the density; a row of densities times `mix`
        logarithm = torch.einsum("nchw,ncd->ndhw", logarithm, mix).sub_(light)
        return logarithm.exp_().clamp_max_(1.0)

    def sharpen(self, images: torch.Tensor) -> torch.Tensor:
        """Blur or sharpen some images: an unsharp mask of random radius, its strength from -1 (blurred) to 4."""
        if not self.sharpness:
            return images
        happens, amount = torch.rand(2, len(images), 1, 1, 1)
        width = 0.0025 * 4.8 ** torch.rand(()).item()  # 0.25 to 1.2 % of the image
        strength = torch.where(
            amount < BLURRED, -amount / BLURRED, 4 * ((amount - BLURRED) / (1 - BLURRED)).abs() ** 1.5
        )
        strength = send(torch.where(happens < self.sharpness, strength, 0.0), images)
        sigma = width * images.shape[-1]
        blurred = gaussian_blur(images, kernel_size=2 * math.ceil(2 * sigma) + 1, sigma=sigma)
        return (images + strength * (images - blurred)).clamp_(0, 1)

    def coarsen(self, images: torch.Tensor) -> torch.Tensor:
        """Take every other image of some batches through a raster of 0.35 to 0.85 times as many pixels a side."""
        happens, amount = torch.rand(2).tolist()
        if happens >= self.resample:
            return images
        size = images.shape[-1]
        smaller = max(24, int(size * (0.35 + 0.5 * amount)))
        low = F.interpolate(images[::2], size=(smaller, smaller), mode="bilinear", antialias=True)
        images = images.clone()
        images[::2] = F.interpolate(low, size=(size, size), mode="bicubic").clamp_(0, 1)
        return images

    def expose(self, images: torch.Tensor) -> torch.Tensor:
        """Add a camera's noise to some images, fine or coarse, and change the gamma of all."""
        happens, amount, exponent = torch.rand(3, len(images), 1, 1, 1)
        coarse = torch.rand(()).item() < 0.5
        if self.grain:
            noise = torch.randn_like(images)
            if coarse:
                noise = 2 * F.avg_pool2d(noise, kernel_size=3, stride=1, padding=1)
            level = send(torch.where(happens < self.grain, 0.05 * amount**2, 0.0), images)
            images = (images + level * noise).clamp_(0, 1)
        if self.gamma:
            exponent = send((self.gamma * (2 * exponent - 1)).exp(), images)
            images = images.clamp_min(1 / 255) ** exponent
        return images


def send(draws: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return draws on the device of the images, without waiting for what that is still at."""
    return draws.to(images.device, non_blocking=True)


def continue_outwards(grid: torch.Tensor) -> torch.Tensor:
    """Fold sampling coordinates beyond -1..1 back into the strip along the edge, to and fro.

    A plain reflection would show the cell in the middle a second time as soon as an image is shrunk.
    """
    size = grid.abs()
    depth = (size - 1).clamp_min_(0)
    # to and fro: how far it is to the nearest multiple of twice the strip
    depth.sub_((depth / (2 * BORDER)).round_(), alpha=2 * BORDER).abs_()
    return size.clamp_max_(1).sub_(depth).copysign_(grid)


def mixing(
    mixup: float, cutmix: float, classes: int
) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Return what mixes images [N, 3, H, W] and labels [N]; its targets are [N, classes], soft where images were mixed.

    Args:
        mixup, cutmix: the alpha of each (Zhang et al. 2018, Yun et al. 2019); 0 leaves it out, and of two one is drawn.
    """
    kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
    choices = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]
    if choices:
        return v2.RandomChoice(choices)
    return lambda images, labels: (images, F.one_hot(labels, classes).float())
