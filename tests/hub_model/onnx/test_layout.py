"""Whole blocks of channels: the exported graph's answers are timm's, and a ReXNet's convolutions stay in blocks."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import timm
import torch

from hub_model.onnx.export import export_onnx
from hub_model.onnx.layout import BLOCK, pad_channels


def network(name: str, **arguments: object) -> torch.nn.Module:
    """A network whose batch norms do something."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **arguments).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.normal_(module.bias, std=0.1)
    return model


@pytest.mark.parametrize("width", [0.7, 1.0, 1.5])
@torch.inference_mode()
def test_a_rexnet_with_padded_channels_gives_the_same_answers(width: float) -> None:
    model = network("rexnet_100", width_mult=width)
    wide = pad_channels(model)
    convolutions = [module for module in wide.modules() if isinstance(module, torch.nn.Conv2d)]
    assert all(conv.out_channels % BLOCK == 0 for conv in convolutions)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in wide.modules())
    images = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(wide(images), model(images), rtol=1e-4, atol=1e-5)


def test_an_exported_rexnet_has_whole_blocks_and_no_slices(tmp_path: Path) -> None:
    assert export_onnx(network("rexnet_100", width_mult=0.7), (3, 32, 32), tmp_path / "model.onnx") < 1e-5
    graph = onnx.load(tmp_path / "model.onnx").graph
    shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
    assert all(shapes[node.input[1]][0] % BLOCK == 0 for node in graph.node if node.op_type == "Conv")
    assert "Slice" not in {node.op_type for node in graph.node}


@pytest.mark.parametrize("architecture", ["test_byobnet", "test_convnext", "test_vit"])
def test_other_architectures_keep_their_answers(architecture: str, tmp_path: Path) -> None:
    model = network(architecture)
    assert pad_channels(model) is model
    assert export_onnx(model, model.pretrained_cfg["input_size"], tmp_path / "model.onnx") < 1e-5
