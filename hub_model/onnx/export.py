"""Export a timm model to `onnx/model.onnx`: normalised pixels in, logits and pooled features out, any batch size.

Input `pixel_values` float32 [N, 3, H, W] (H, W as in `config.json`); outputs `logits` [N, C] and `features` [N, D].
The channels of a ReXNet are padded for speed (`hub_model/onnx/layout.py`). The graph is compared with timm before it is kept,
and holds no paths of the machine that exported it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from hub_model.inference.errors import RepoError
from hub_model.onnx.layout import pad_channels

TOLERANCE = 1e-4  # largest difference of an output, relative to its largest absolute value


class LogitsAndFeatures(torch.nn.Module):
    """A timm model that returns its logits and its pooled features (`pre_logits`)."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [N, C] and features [N, D] of pixel_values [N, 3, H, W]."""
        maps = self.model.forward_features(pixel_values)
        return self.model.forward_head(maps), self.model.forward_head(maps, pre_logits=True)


def export_onnx(
    model: torch.nn.Module, input_size: tuple[int, int, int], path: Path, whole_blocks: bool = True
) -> float:
    """Write the graph and return its largest relative difference from timm; `RepoError` above 1e-4.

    whole_blocks: pad the channels of a ReXNet, which is faster with ONNX Runtime on a CPU, but not in WebAssembly.
    """
    network = LogitsAndFeatures(model.eval())
    no_output = contextlib.redirect_stdout(io.StringIO())
    with warnings.catch_warnings(action="ignore"), no_output, errors_only("torch.onnx", "onnxscript"):
        program = torch.onnx.export(
            LogitsAndFeatures(pad_channels(model) if whole_blocks else model),
            (torch.zeros(2, *input_size),),
            dynamo=True,
            input_names=["pixel_values"],
            output_names=["logits", "features"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(strip_metadata(program.model_proto), path)
    difference = largest_difference(network, input_size, path)
    if not difference <= TOLERANCE:
        path.unlink()
        raise RepoError(f"the ONNX graph differs from timm by {difference:.1e} of its range: not written")
    return difference


@contextlib.contextmanager
def errors_only(*names: str):
    """Set loggers to the level ERROR within a `with` block."""
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def strip_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the exporter's metadata, which holds stack traces with paths of the machine."""
    graph, function_nodes = model.graph, (node for function in model.functions for node in function.node)
    documented = [*graph.node, *function_nodes, *graph.initializer, *graph.input, *graph.output]
    for proto in (model, graph, *graph.value_info, *model.functions, *documented):
        del proto.metadata_props[:]
    for proto in documented:
        proto.doc_string = ""
    return model


def largest_difference(network: torch.nn.Module, input_size: tuple[int, int, int], path: Path) -> float:
    """Largest difference between timm and ONNX Runtime over batches of 1, 2 and 7, relative to each output's range."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch_size in (1, 2, 7):
        pixels = torch.randn(batch_size, *input_size, generator=generator)
        with torch.inference_mode():
            expected = [output.numpy() for output in network(pixels)]
        outputs = session.run(["logits", "features"], {"pixel_values": pixels.numpy()})
        for ours, theirs in zip(outputs, expected, strict=True):
            if ours.shape != theirs.shape:
                return float("inf")
            difference = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-6)
            largest = float(np.maximum(largest, difference))  # propagates NaN
    return largest
