"""A teacher's answer to a batch, as a student's training step on a CPU asks for it: ONNX Runtime against PyTorch. All cores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import timm
import torch

from bench.side_by_side import Row, in_turns, rows, seconds
from hub_model.onnx_export import LogitsAndFeatures
from training.onnx_network import OnnxNetwork

BATCH, SIZE, CLASSES = 32, 160, 7
ARCHITECTURES = ("efficientnet_lite0", "efficientnet_lite2", "rexnet_150")


def contestants(architecture: str) -> dict[str, Callable[[], object]]:
    """What turns a batch of normalised views into logits and pooled features, with untrained weights."""
    views = torch.randn(BATCH, 3, SIZE, SIZE)
    model = timm.create_model(architecture, num_classes=CLASSES).eval()
    through_onnx = OnnxNetwork(model, SIZE)
    through_pytorch = torch.inference_mode()(LogitsAndFeatures(model))
    twin = timm.create_model(architecture, num_classes=CLASSES).eval().to(memory_format=torch.channels_last)
    channels_last = torch.inference_mode()(LogitsAndFeatures(twin))
    return {
        "ONNX Runtime (training/onnx_network.py)": lambda: through_onnx(views),
        "PyTorch": lambda: through_pytorch(views),
        "PyTorch, channels last": lambda: channels_last(views.contiguous(memory_format=torch.channels_last)),
    }


def measure(_data: Path, repeats: int) -> list[Row]:
    """Images/s, the views ready."""
    table = []
    for architecture in ARCHITECTURES:
        turns = {
            name: lambda answer=answer: BATCH / seconds(answer, at_least=0.7)
            for name, answer in contestants(architecture).items()
        }
        comparison = f"A teacher's answer: {architecture}, {BATCH} views of {SIZE} px, all cores"
        table += rows(comparison, in_turns(turns, repeats), "images/s", "PyTorch", more_is_better=True)
    return table
