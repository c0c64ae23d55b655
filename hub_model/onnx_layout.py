"""The same function with channels in whole blocks: an ONNX graph in, an ONNX graph out, `align_channels(model)`.

ONNX Runtime convolves in blocks of 8 or 16 channels (its NCHWc layout) and leaves that layout where a depthwise convolution or
a slice does not end on a block. A ReXNet has 41, 58, 75, … channels, so it leaves it in every block. Here each tensor between
convolutions gets a width of a multiple of 16; the weights of the added channels are zero, so the answers stay what they were.

A partial shortcut, `concat(h[:, :k] + shortcut, h[:, k:])` with `h` from a convolution, becomes two convolutions, each of whole
blocks: the first adds the shortcut, the second does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

BLOCK = 16  # channels; ONNX Runtime's blocks are 8 (AVX2) or 16 (AVX-512, NEON)
ELEMENTWISE = {"Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Clip"}
KEEPS_ZERO = {"Relu", "HardSwish"}
SUMS = {"Add", "Mul"}


def whole_blocks(channels: int) -> int:
    """The next multiple of BLOCK."""
    return -(-channels // BLOCK) * BLOCK


@dataclass(frozen=True)
class Width:
    """A tensor's channels: `real` ones first, then added ones up to `padded`; `zeros` if those are zero for sure."""

    real: int
    padded: int
    zeros: bool


@dataclass(frozen=True)
class Joint:
    """`concat(conv[:, :channels] + shortcut, conv[:, channels:])`; `nodes` in the graph's order, the Concat last."""

    conv: NodeProto
    channels: int
    shortcut: str
    nodes: tuple[NodeProto, ...]


def align_channels(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with whole blocks of channels wherever that changes no output; the given one stays as it is."""
    nodes, constants = Aligner(model.graph).rewrite()
    aligned = onnx.ModelProto()
    aligned.CopyFrom(model)
    for field, values in (("node", nodes), ("initializer", constants), ("value_info", [])):
        aligned.graph.ClearField(field)
        getattr(aligned.graph, field).extend(values)
    onnx.checker.check_model(aligned, full_check=True)
    return aligned


class Aligner:
    """Walks a graph in its order and writes the nodes anew; `widths` knows the tensors that have added channels."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.outputs = {output.name for output in graph.output}
        self.widths: dict[str, Width] = {}
        self.maps: set[str] = set()  # outputs of convolutions and what follows: [N, C, H, W]
        self.nodes: list[NodeProto] = []

    def rewrite(self) -> tuple[list[NodeProto], list[onnx.TensorProto]]:
        """The new nodes, and the constants that they read."""
        joints = self.find_joints()
        last = {joint.nodes[-1].output[0]: joint for joint in joints}
        held = {node.output[0] for joint in joints for node in joint.nodes}
        for node in self.graph.node:
            if node.output[0] in last:
                self.join(last[node.output[0]])
            elif node.output[0] not in held:
                self.visit(node)
        used = {name for node in self.nodes for name in node.input}
        known = {name: value for name, value in self.constants.items() if name in used}
        return self.nodes, [numpy_helper.from_array(value, name) for name, value in known.items()]

    def visit(self, node: NodeProto) -> None:
        """Write one node with the widest tensors that it can take."""
        widths = [self.widths.get(name) for name in node.input]
        inner = not self.outputs & set(node.output)
        if node.op_type == "Conv" and self.constants.get(node.input[1], np.empty(0)).ndim == 4:
            self.convolve(node, inner)
        elif inner and any(widths[:1]) and (node.op_type in ELEMENTWISE or self.is_pooling(node)):
            zeros = widths[0].zeros and (
                node.op_type in KEEPS_ZERO or self.is_pooling(node) or self.clips_to_zero(node)
            )
            self.write(node, Width(widths[0].real, widths[0].padded, zeros))
        elif inner and node.op_type in SUMS and None not in widths and same_channels(widths):
            zeros = (all if node.op_type == "Add" else any)(width.zeros for width in widths)
            self.write(node, Width(widths[0].real, widths[0].padded, zeros))
        else:
            self.write(self.without_added(node))

    def write(self, node: NodeProto, width: Width | None = None) -> None:
        """Append a node; global means become the operator that knows blocks."""
        if node.input and node.input[0] in self.maps and self.is_pooling(node):
            node = helper.make_node("GlobalAveragePool", node.input[:1], node.output, node.name)
        if node.op_type == "Conv" or (
            node.input and node.input[0] in self.maps and node.op_type in {*ELEMENTWISE, *SUMS, "Concat"}
        ):
            self.maps.update(node.output)
        if width and width.padded > width.real:
            self.widths[node.output[0]] = width
        self.nodes.append(node)

    def convolve(self, node: NodeProto, inner: bool) -> None:
        """Write a convolution with its input, and if `inner` its output, in whole blocks."""
        weight = self.constants[node.input[1]]
        group = attribute(node, "group", 1)
        width = self.widths.get(node.input[0])
        if group == 1:
            self.write_part(node, slice(0, len(weight)), whole_blocks(len(weight)) if inner else len(weight))
        elif width and inner and group == len(weight) == width.real:  # depthwise
            self.write_part(node, slice(0, group), width.padded)
        else:
            self.write(self.without_added(node))

    def write_part(self, node: NodeProto, rows: slice, padded: int, name: str | None = None) -> str:
        """Write a convolution that computes `rows` of the output channels, filled up to `padded`; return its output."""
        weight = self.constants[node.input[1]][rows]
        real = len(weight)
        depthwise = attribute(node, "group", 1) > 1
        width = self.widths.get(node.input[0])
        inputs = weight.shape[1] if depthwise or width is None else width.padded
        output = name or node.output[0]
        names = [node.input[0], self.constant(f"{output}.weight", filled(weight, padded, inputs))]
        if len(node.input) > 2 and node.input[2]:
            bias = self.constants[node.input[2]][rows]
            names.append(self.constant(f"{output}.bias", filled(bias, padded)))
        part = helper.make_node("Conv", names, [output], output)
        part.attribute.extend(a for a in node.attribute if a.name != "group")
        part.attribute.append(helper.make_attribute("group", padded if depthwise else 1))
        self.write(part, Width(real, padded, zeros=True))
        return output

    def join(self, joint: Joint) -> None:
        """Write a partial shortcut as two convolutions of whole blocks; as it was, where the shortcut's are not."""
        shortcut = self.widths.get(joint.shortcut) or Width(joint.channels, joint.channels, zeros=True)
        total = len(self.constants[joint.conv.input[1]])
        output = joint.nodes[-1].output[0]
        split = min(whole_blocks(joint.channels), total)
        if output in self.outputs or not (
            shortcut.zeros
            and (shortcut.real, shortcut.padded) == (joint.channels, whole_blocks(joint.channels))
        ):
            for node in joint.nodes:
                self.visit(node)
            return
        first = self.write_part(joint.conv, slice(0, split), shortcut.padded, f"{output}.first")
        rest = split < total
        added = f"{output}.added" if rest else output
        width = Width(total, whole_blocks(total), zeros=True)
        self.write(helper.make_node("Add", [first, joint.shortcut], [added], added), None if rest else width)
        if rest:
            second = self.write_part(
                joint.conv, slice(split, total), width.padded - split, f"{output}.second"
            )
            self.write(helper.make_node("Concat", [added, second], [output], output, axis=1), width)

    def find_joints(self) -> list[Joint]:
        """The partial shortcuts of the graph."""
        made_by = {name: node for node in self.graph.node for name in node.output}
        found = (
            self.joint_at(node, made_by)
            for node in self.graph.node
            if node.op_type == "Concat" and len(node.input) == 2 and attribute(node, "axis", 0) == 1
        )
        return [joint for joint in found if joint]

    def joint_at(self, concat: NodeProto, made_by: dict[str, NodeProto]) -> Joint | None:
        """The partial shortcut that ends in this Concat, if one does."""
        add, rest = (made_by.get(name) for name in concat.input)
        if not (add and rest and add.op_type == "Add" and rest.op_type == "Slice"):
            return None
        whole = rest.input[0]
        head = next((made_by[n] for n in add.input if n in made_by and takes_from(made_by[n], whole)), None)
        conv = made_by.get(whole)
        if not (head and conv and self.is_dense(conv)):
            return None
        total = len(self.constants[conv.input[1]])
        begin, end = self.channels_of(head, total), self.channels_of(rest, total)
        if not (begin and end and begin[0] == 0 and begin[1] == end[0] and end[1] == total):
            return None
        nodes = (conv, head, add, rest, concat)
        inner = {node.output[0] for node in nodes[:-1]}
        uses = sum(name in inner for node in self.graph.node for name in node.input)
        if uses != 5 or inner & self.outputs:  # someone else reads what the rewriting would do away with
            return None
        shortcut = next(name for name in add.input if name != head.output[0])
        order = [node.output[0] for node in self.graph.node]
        return Joint(
            conv, begin[1], shortcut, tuple(sorted(nodes, key=lambda node: order.index(node.output[0])))
        )

    def is_dense(self, node: NodeProto) -> bool:
        """Whether a node is a convolution without groups, its weights known."""
        return node.op_type == "Conv" and node.input[1] in self.constants and attribute(node, "group", 1) == 1

    def channels_of(self, node: NodeProto, total: int) -> tuple[int, int] | None:
        """First and one-past-last channel that a Slice takes; None if it takes them otherwise."""
        values = [self.constants.get(name) for name in node.input[1:]]
        if len(values) < 3 or any(value is None or value.size != 1 for value in values):
            return None
        start, end, axis, step = *(int(value.item()) for value in values[:3]), 1
        if len(values) > 3:
            step = int(values[3].item())
        return (start, min(end, total)) if axis == 1 and step == 1 and 0 <= start < end else None

    def without_added(self, node: NodeProto) -> NodeProto:
        """A copy of a node that reads only the channels that were there before."""
        copy = NodeProto()
        copy.CopyFrom(node)
        for i, name in enumerate(node.input):
            copy.input[i] = self.real(name)
        return copy

    def real(self, name: str) -> str:
        """The tensor without its added channels: the name of a slice, or the name itself if there are none."""
        width = self.widths.get(name)
        if width is None:
            return name
        cut = f"{name}.real"
        if not any(cut in node.output for node in self.nodes):
            bounds = [self.constant(f"{cut}.{i}", np.array([i])) for i in (0, width.real, 1)]
            self.write(helper.make_node("Slice", [name, *bounds], [cut], cut))
        return cut

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants[name] = np.ascontiguousarray(value)
        return name

    def is_pooling(self, node: NodeProto) -> bool:
        """Whether a node is the mean over height and width, kept as axes of 1."""
        if node.op_type == "GlobalAveragePool":
            return True
        if node.op_type != "ReduceMean" or not attribute(node, "keepdims", 1) or len(node.input) < 2:
            return False
        axes = self.constants.get(node.input[1])
        return (
            node.input[0] in self.maps and axes is not None and sorted(a % 4 for a in axes.tolist()) == [2, 3]
        )

    def clips_to_zero(self, node: NodeProto) -> bool:
        """Whether a Clip leaves a zero as it is."""
        low, high = (self.constants.get(name) for name in (*node.input, "", "")[1:3])
        return node.op_type == "Clip" and low is not None and high is not None and low <= 0 <= high


def takes_from(node: NodeProto, tensor: str) -> bool:
    return node.op_type == "Slice" and node.input[0] == tensor


def same_channels(widths: list[Width]) -> bool:
    return len({(width.real, width.padded) for width in widths}) == 1


def filled(values: np.ndarray, *shape: int) -> np.ndarray:
    """The array with zeros appended along its first axes, up to `shape`."""
    missing = [wanted - have for wanted, have in zip(shape, values.shape, strict=False)]
    return np.pad(values, [(0, m) for m in missing] + [(0, 0)] * (values.ndim - len(missing)))


def attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((a.i for a in node.attribute if a.name == name), default)
