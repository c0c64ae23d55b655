"""Whole blocks of channels: the exported graph's answers are timm's, and its joints and depthwise convolutions stay in blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from onnx import TensorProto, helper, numpy_helper

from hub_model.onnx_export import export_onnx
from hub_model.onnx_layout import BLOCK, align_channels


def conv(name: str, source: str, out: int, channels: int, kernel: int = 1, group: int = 1) -> tuple:
    """A convolution node and its initializers, weights random, bias from it on."""
    random = np.random.default_rng(out * 31 + channels)
    weight = random.normal(size=(out, channels // group, kernel, kernel)).astype(np.float32)
    bias = random.normal(size=out).astype(np.float32)
    node = helper.make_node(
        "Conv", [source, f"{name}.w", f"{name}.b"], [name], group=group, pads=[kernel // 2] * 4
    )
    return node, [numpy_helper.from_array(weight, f"{name}.w"), numpy_helper.from_array(bias, f"{name}.b")]


def partial_sum(whole: str, shortcut: str, channels: int, out: str) -> tuple:
    """The nodes of out = concat(whole[:, :channels] + shortcut, whole[:, channels:])."""
    values = {"zero": 0, "one": 1, "split": channels, "end": 2**63 - 1}
    constants = [numpy_helper.from_array(np.array([v]), f"{out}.{k}") for k, v in values.items()]
    nodes = [
        helper.make_node(
            "Slice", [whole, *(f"{out}.{k}" for k in ("zero", "split", "one"))], [f"{out}.head"]
        ),
        helper.make_node("Slice", [whole, *(f"{out}.{k}" for k in ("split", "end", "one"))], [f"{out}.rest"]),
        helper.make_node("Add", [f"{out}.head", shortcut], [f"{out}.sum"]),
        helper.make_node("Concat", [f"{out}.sum", f"{out}.rest"], [out], axis=1),
    ]
    return nodes, constants


def model(parts: list[tuple], outputs: list[str]) -> onnx.ModelProto:
    """A model of (nodes, initializers) with the input `pixels` [N, 3, 8, 8]."""
    nodes = [node for found, _ in parts for node in (found if isinstance(found, list) else [found])]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in outputs],
        [tensor for _, tensors in parts for tensor in tensors],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def answers(graph: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    return session.run(None, {"pixels": pixels})


def widths(graph: onnx.ModelProto) -> list[int]:
    """Output channels of every convolution."""
    shapes = {tensor.name: tensor.dims for tensor in graph.graph.initializer}
    return [shapes[node.input[1]][0] for node in graph.graph.node if node.op_type == "Conv"]


def operators(graph: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in graph.graph.node}


def check_same(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for expected, found in zip(answers(before), answers(after), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("first", "second"), [(13, 16), (13, 21), (16, 40), (13, 35)], ids=lambda width: str(width)
)
def test_a_partial_shortcut_becomes_convolutions_of_whole_blocks(first: int, second: int) -> None:
    graph = model(
        [
            conv("a", "pixels", first, 3),
            conv("b", "a", 3 * first, first),
            conv("depthwise", "b", 3 * first, 3 * first, kernel=3, group=3 * first),
            (helper.make_node("Relu", ["depthwise"], ["r"]), []),
            conv("c", "r", second, 3 * first),
            partial_sum("c", "a", first, "joint"),
            conv("out", "joint", 5, second),
        ],
        ["out"],
    )
    aligned = align_channels(graph)
    assert "Slice" in operators(graph) and "Slice" not in operators(aligned)
    assert all(width % BLOCK == 0 for width in widths(aligned)[:-1]) and widths(aligned)[-1] == 5
    check_same(graph, aligned)


def test_a_shortcut_whose_added_channels_are_not_zero_is_added_as_it_was() -> None:
    graph = model(
        [
            conv("a", "pixels", 13, 3),
            (helper.make_node("Sigmoid", ["a"], ["half"]), []),  # 0.5 where a is 0
            conv("c", "half", 21, 13),
            partial_sum("c", "half", 13, "joint"),
            conv("out", "joint", 5, 21),
        ],
        ["out"],
    )
    aligned = align_channels(graph)
    assert "Slice" in operators(aligned)
    check_same(graph, aligned)


def test_what_someone_else_reads_keeps_its_channels() -> None:
    graph = model(
        [
            conv("a", "pixels", 13, 3),
            (helper.make_node("Softmax", ["a"], ["softmax"], axis=1), []),  # over the channels: 13, not 16
            (helper.make_node("GlobalAveragePool", ["a"], ["pooled"]), []),
            (helper.make_node("Mul", ["a", "pooled"], ["gated"]), []),
            conv("c", "gated", 21, 13),
            partial_sum("c", "a", 13, "joint"),
        ],
        ["softmax", "pooled", "joint", "c"],
    )
    check_same(graph, align_channels(graph))


def test_an_exported_rexnet_has_whole_blocks_and_no_slices(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("rexnet_100", num_classes=7, width_mult=0.7)
    assert export_onnx(network, (3, 32, 32), tmp_path / "model.onnx") < 1e-5
    graph = onnx.load(tmp_path / "model.onnx")
    assert "Slice" not in operators(graph) and "ReduceMean" not in operators(graph)
    *inner, _ = widths(graph)
    assert all(width % BLOCK == 0 for width in inner)


@pytest.mark.parametrize("architecture", ["test_byobnet", "test_convnext", "test_vit"])
def test_other_architectures_keep_their_answers(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model(architecture, num_classes=7)
    assert export_onnx(network, network.pretrained_cfg["input_size"], tmp_path / "model.onnx") < 1e-5
