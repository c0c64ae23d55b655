"""Pad the channels of a ReXNet to whole blocks: the same outputs, in convolutions that stay in ONNX Runtime's fast layout.

ONNX Runtime computes convolutions in blocks of 8 or 16 channels (its NCHWc layout) and reorders to NCHW where the channels of a
depthwise convolution or a slice are not a multiple of that. A ReXNet has 41, 58, 75, … channels, so this happens in every block
of the network. Here every tensor between convolutions is padded to a multiple of 16. The added channels have weights of zero,
and the activations map zero to zero.
"""

from __future__ import annotations

import copy

import torch
from timm.layers import ConvNormAct
from timm.models.rexnet import LinearBottleneck, RexNet
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

BLOCK = 16  # channels; ONNX Runtime's blocks are 8 (AVX2) or 16 (AVX-512, NEON)


def pad_channels(model: nn.Module) -> nn.Module:
    """A copy of a ReXNet with its batch norms folded and its channels padded; any other model unchanged."""
    if not isinstance(model, RexNet):
        return model
    model = copy.deepcopy(model).double()  # folds in double precision
    *blocks, last = model.features
    model.stem = convolution(model.stem, model.stem.conv.in_channels)
    last = convolution(last, round_up(last.conv.in_channels), last.conv.out_channels)
    model.features = nn.Sequential(*map(Bottleneck, blocks), last)
    return model.float().eval()


def round_up(channels: int) -> int:
    """The next multiple of BLOCK."""
    return -(-channels // BLOCK) * BLOCK


def pad(conv: nn.Conv2d, inputs: int, outputs: int, rows: slice = slice(None)) -> nn.Conv2d:
    """A convolution that computes `rows` of the outputs of `conv`, zero-padded to `inputs` and `outputs` channels."""
    depthwise = conv.groups > 1
    wide = nn.Conv2d(
        inputs, outputs, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
        groups=outputs if depthwise else 1, dtype=conv.weight.dtype,
    )  # fmt: skip
    with torch.no_grad():
        for new, old in ((wide.weight, conv.weight[rows]), (wide.bias, conv.bias[rows])):
            new.zero_()[tuple(slice(size) for size in old.shape)] = old
    return wide


def convolution(layer: ConvNormAct, inputs: int, outputs: int | None = None) -> nn.Sequential:
    """timm's convolution, batch norm and activation, with the batch norm folded."""
    conv = fuse_conv_bn_eval(layer.conv, layer.bn)
    return nn.Sequential(pad(conv, inputs, outputs or round_up(conv.out_channels)), layer.bn.act)


class Bottleneck(nn.Module):
    """timm's LinearBottleneck; its partial shortcut becomes two convolutions, and the first one's output adds the shortcut."""

    def __init__(self, block: LinearBottleneck) -> None:
        super().__init__()
        inputs, inner = round_up(block.in_channels), round_up(block.conv_dw.conv.in_channels)
        self.expand = convolution(block.conv_exp, inputs) if block.conv_exp else nn.Identity()
        self.depthwise = convolution(block.conv_dw, inner)
        self.squeeze = SqueezeExcite(block.se) if block.se else nn.Identity()
        self.activation = block.act_dw
        project, total = fuse_conv_bn_eval(block.conv_pwl.conv, block.conv_pwl.bn), block.out_channels
        self.shortcut = block.use_shortcut
        first = inputs if self.shortcut else round_up(total)
        self.first = pad(project, inner, first, slice(first))
        rest = slice(first, None)
        self.rest = pad(project, inner, round_up(total) - first, rest) if total > first else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, round_up(in), H, W] → [N, round_up(out), H, W]."""
        inner = self.activation(self.squeeze(self.depthwise(self.expand(x))))
        first = self.first(inner) + x if self.shortcut else self.first(inner)
        return first if self.rest is None else torch.cat([first, self.rest(inner)], dim=1)


class SqueezeExcite(nn.Module):
    """timm's squeeze and excitation."""

    def __init__(self, se: nn.Module) -> None:
        super().__init__()
        squeeze = fuse_conv_bn_eval(se.fc1, se.bn)
        inputs, inner = round_up(squeeze.in_channels), round_up(squeeze.out_channels)
        self.gate = nn.Sequential(pad(squeeze, inputs, inner), se.act, pad(se.fc2, inner, inputs), se.gate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, C, H, W] times the gate of each channel."""
        return x * self.gate(nn.functional.adaptive_avg_pool2d(x, 1))  # mean() has no blocked kernel
