"""`onnx/model.onnx` from a timm model: normalised pixels in, logits and pooled features out, any batch size.

Input `pixel_values` float32 [N, 3, H, W] (H, W as in `config.json`); outputs `logits` [N, C] and `features` [N, D].
Its channels come in whole blocks, for speed (`hub_model/onnx/layout.py`). It is compared with timm before it is kept, and has
no trace of the machine that exported it.
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
from hub_model.onnx.layout import in_whole_blocks

TOLERANCE = 1e-4  # largest difference of a logit or feature, relative to the largest value of that output


class LogitsAndFeatures(torch.nn.Module):
    """A timm model that answers with its logits and with what its classifier sees."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [N, C] and features [N, D] of pixel_values [N, 3, H, W]."""
        maps = self.model.forward_features(pixel_values)
        return self.model.forward_head(maps), self.model.forward_head(maps, pre_logits=True)


def export_onnx(
    model: torch.nn.Module, input_size: tuple[int, int, int], path: Path, whole_blocks: bool = True
) -> float:
    """Write the graph and return its largest relative difference from timm; `RepoError` above 1e-4.

    whole_blocks: fill up its channels, as is faster with ONNX Runtime on a CPU, but not in WebAssembly.
    """
    network = LogitsAndFeatures(model.eval())
    example = torch.zeros(2, *input_size)
    quiet = contextlib.redirect_stdout(io.StringIO())
    with warnings.catch_warnings(), quiet, only_errors("torch.onnx", "onnxscript"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            LogitsAndFeatures(in_whole_blocks(model) if whole_blocks else model),
            (example,),
            dynamo=True,
            input_names=["pixel_values"],
            output_names=["logits", "features"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = without_traces(program.model_proto)
    onnx.save(graph, path)
    difference = largest_difference(network, input_size, path)
    if not difference <= TOLERANCE:
        path.unlink()
        raise RepoError(
            f"the ONNX graph differs from timm by {difference:.1e} of its range; it was not written"
        )
    return difference


@contextlib.contextmanager
def only_errors(*names: str):
    """Keep loggers quiet about anything less than an error."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the exporter's notes: they hold stack traces with paths of the machine."""
    for holder in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.functions):
        del holder.metadata_props[:]
    for holder in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        holder.doc_string = ""
        if hasattr(holder, "metadata_props"):
            del holder.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]
    return model


def largest_difference(network: torch.nn.Module, input_size: tuple[int, int, int], path: Path) -> float:
    """Largest difference between timm and ONNX Runtime over batches of 1, 2 and 7, relative to each output's range."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for images in (1, 2, 7):
        pixels = torch.randn(images, *input_size, generator=generator)
        with torch.inference_mode():
            expected = [output.numpy() for output in network(pixels)]
        found = session.run(["logits", "features"], {"pixel_values": pixels.numpy()})
        for ours, theirs in zip(found, expected, strict=True):
            if ours.shape != theirs.shape:
                return float("inf")
            found_here = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-6)
            worst = float(np.maximum(worst, found_here))  # stays NaN
    return worst
