"""Batch augmentation for images of blood cells, on the device of the batch.

In: a float tensor [N, 3, H, W] in 0..1 (H = W), the decoded images. Out: the same at the network's input size.

Blood cells have no orientation, so images are rotated by any angle and mirrored. Laboratories differ in magnification, staining,
white balance, sharpness, resolution and noise, all of which are varied as well: the stains in optical density, where they are
additive (Ruifrok & Johnston 2001; as augmentation: Tellez et al. 2018, arXiv:1808.05896).
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

BLURRED = 0.35  # fraction that is blurred, of the images whose sharpness is changed
BORDER = 0.4  # width of the border that is reflected beyond an edge, as a fraction of half the image width


@dataclass(frozen=True)
class CellAugmentation:
    """Random view of each image of a batch, from torch's default generators; all but the noise is sampled on the CPU.

    Attributes:
        scale: minimum and maximum magnification (1 = unchanged), sampled log-uniformly.
        shift: maximum displacement of the centre, as a fraction of half the width.
        stain: standard deviation of the relative change of each stain's concentration.
        light: standard deviation of the change in optical density of each colour channel (white balance and exposure).
        isolate: fraction of images in which everything around the cell is replaced by the background colour.
        sharpness: fraction of images that are blurred or sharpened.
        resample: fraction of batches in which every other image is downsampled.
        grain: fraction of images with noise, of a standard deviation of up to 0.05.
        gamma: maximum absolute value of the logarithm of gamma.
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
        images = self.warp(self.remove_surroundings(images), size)
        images = self.downsample(self.jitter_stain(images))
        return self.add_noise_and_gamma(self.sharpen(images))

    def remove_surroundings(self, images: torch.Tensor) -> torch.Tensor:
        """Fade everything around the central cell of some images into the background."""
        draw, radius = torch.rand(2, len(images), 1, 1, 1)
        chosen = torch.nonzero(draw.flatten() < self.isolate).flatten()  # on the CPU, to avoid a GPU sync
        if not len(chosen):
            return images
        radius = to_device(0.6 + 0.25 * radius[chosen], images)
        chosen = to_device(chosen, images)
        crops = images[chosen]
        span = torch.linspace(-1, 1, images.shape[-1], device=images.device)
        distance = (span[:, None] ** 2 + span[None, :] ** 2).sqrt()
        mask = ((radius - distance) / 0.1 + 0.5).clamp(0, 1)
        background = F.adaptive_avg_pool2d(crops, 16).flatten(2).quantile(0.9, dim=2)[:, :, None, None]
        return images.index_copy(0, chosen, mask * crops + (1 - mask) * background)

    def warp(self, images: torch.Tensor, size: int) -> torch.Tensor:
        """Rotate by any angle, mirror, magnify and shift; pixels beyond an edge are reflected from the border."""
        n = len(images)
        angle, flip, zoom, dx, dy = to_device(torch.rand(5, n), images)
        angle, flip = angle * 2 * math.pi, torch.where(flip < 0.5, -1.0, 1.0)
        low, high = self.scale
        zoom = low * (high / low) ** zoom
        # change of (x, y) along a row and along a column, and the centre: [N, 2] each
        by_column = torch.stack([angle.cos() * flip / zoom, angle.sin() * flip / zoom], dim=1)
        by_row = torch.stack([-angle.sin() / zoom, angle.cos() / zoom], dim=1)
        centre = (2 * torch.stack([dx, dy], dim=1) - 1) * self.shift
        span = (2 * torch.arange(size, device=images.device) + 1) / size - 1  # pixel centres in -1..1
        down = by_row[:, :, None] * span + centre[:, :, None]
        grid = down[:, :, :, None] + (by_column[:, :, None] * span)[:, :, None, :]  # [N, 2, size, size]
        grid = reflect_into_border(grid).permute(0, 2, 3, 1)  # planar layout is the fastest to sample from
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def jitter_stain(self, images: torch.Tensor) -> torch.Tensor:
        """Change the concentration of each stain, and the light, in optical density."""
        n = len(images)
        to_hed, to_rgb = (torch.tensor(m, dtype=images.dtype) for m in (hed_from_rgb, rgb_from_hed))
        concentrations = 1 + self.stain * torch.randn(n, 3)
        light = to_device(self.light * torch.randn(n, 3, 1, 1), images)
        matrix = to_device(to_hed @ torch.diag_embed(concentrations) @ to_rgb, images)  # [N, 3, 3]
        negative_density = images.clamp_min(1 / 255).log_()
        negative_density = torch.einsum("nchw,ncd->ndhw", negative_density, matrix).sub_(light)
        return negative_density.exp_().clamp_max_(1.0)

    def sharpen(self, images: torch.Tensor) -> torch.Tensor:
        """Blur or sharpen some images with an unsharp mask of random radius and a strength from -1 (blurred) to 4."""
        if not self.sharpness:
            return images
        draw, amount = torch.rand(2, len(images), 1, 1, 1)
        width = 0.0025 * 4.8 ** torch.rand(()).item()  # 0.25% to 1.2% of the image width
        strength = torch.where(
            amount < BLURRED, -amount / BLURRED, 4 * ((amount - BLURRED) / (1 - BLURRED)).abs() ** 1.5
        )
        strength = to_device(torch.where(draw < self.sharpness, strength, 0.0), images)
        sigma = width * images.shape[-1]
        blurred = gaussian_blur(images, kernel_size=2 * math.ceil(2 * sigma) + 1, sigma=sigma)
        return (images + strength * (images - blurred)).clamp_(0, 1)

    def downsample(self, images: torch.Tensor) -> torch.Tensor:
        """Downsample every other image of some batches to 0.35 to 0.85 times its size, and upsample it again."""
        draw, amount = torch.rand(2).tolist()
        if draw >= self.resample:
            return images
        size = images.shape[-1]
        smaller = max(24, int(size * (0.35 + 0.5 * amount)))
        low = F.interpolate(images[::2], size=(smaller, smaller), mode="bilinear", antialias=True)
        images = images.clone()
        images[::2] = F.interpolate(low, size=(size, size), mode="bicubic").clamp_(0, 1)
        return images

    def add_noise_and_gamma(self, images: torch.Tensor) -> torch.Tensor:
        """Add fine or coarse camera noise to some images, and change the gamma of all."""
        draw, amount, exponent = torch.rand(3, len(images), 1, 1, 1)
        coarse = torch.rand(()).item() < 0.5
        if self.grain:
            noise = torch.randn_like(images)
            if coarse:
                noise = 2 * F.avg_pool2d(noise, kernel_size=3, stride=1, padding=1)
            level = to_device(torch.where(draw < self.grain, 0.05 * amount**2, 0.0), images)
            images = (images + level * noise).clamp_(0, 1)
        if self.gamma:
            exponent = to_device((self.gamma * (2 * exponent - 1)).exp(), images)
            images = images.clamp_min(1 / 255) ** exponent
        return images


def to_device(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return values on the device of the images, without synchronizing with it."""
    return values.to(images.device, non_blocking=True)


def reflect_into_border(grid: torch.Tensor) -> torch.Tensor:
    """Reflect sampling coordinates beyond -1..1 into the border of the image, back and forth.

    `padding_mode="reflection"` of `grid_sample` would repeat the cell in the centre of an image that is scaled down.
    """
    magnitude = grid.abs()
    depth = (magnitude - 1).clamp_min_(0)
    # triangle wave: the distance to the nearest multiple of twice the border
    depth.sub_((depth / (2 * BORDER)).round_(), alpha=2 * BORDER).abs_()
    return magnitude.clamp_max_(1).sub_(depth).copysign_(grid)


def build_mixup(
    mixup: float, cutmix: float, num_classes: int
) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Return a function from images [N, 3, H, W] and labels [N] to mixed images and soft targets [N, num_classes].

    Args:
        mixup, cutmix: alpha of MixUp (Zhang et al. 2018) and CutMix (Yun et al. 2019); 0 disables it. With both enabled, one is
            chosen at random for each batch.
    """
    kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
    transforms = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha]
    if transforms:
        return v2.RandomChoice(transforms)
    return lambda images, labels: (images, F.one_hot(labels, num_classes).float())
