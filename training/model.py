"""Create, initialise and save the network: a timm architecture with random, ImageNet or earlier weights."""

from __future__ import annotations

import copy
import difflib
import json
import tempfile
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import resolve_data_config
from timm.layers import resample_abs_pos_embed
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from hub_model.inference.errors import RepoError, first_line
from hub_model.inference.hub import HUB_ERRORS
from hub_model.inference.model_repo import ModelConfig, download, read_config, refuse_unsafe_files
from training import TrainingError
from training.source import Source

DEFAULT_ARCHITECTURE = "rexnet_150"
DEFAULT_IMAGE_SIZE = 160
MODEL_FILES = ["config.json", "model.safetensors"]
DATA_KEYS = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


@dataclass(frozen=True)
class Start:
    """The model to start from: the parsed `config.json` of its folder and the path of its safetensors file."""

    config: ModelConfig
    weights: Path

    @property
    def data_config(self) -> dict:
        """The `pretrained_cfg` in the config of the start model; {} if it has none."""
        return self.config.raw.get("pretrained_cfg") or {}


def resolve_start(location: str) -> Start:
    """Return config and weights of `hf-hub:OWNER/NAME[@REVISION]`, a run or model folder, or a .safetensors file.

    Raises:
        TrainingError: it does not exist, contains an unsafe file, or its config refers to custom code.
    """
    try:
        path = Path(location)
        if location.startswith("hf-hub:"):
            name, _, revision = location.removeprefix("hf-hub:").partition("@")
            path, _ = download(name, revision or None, MODEL_FILES)
        folder, weights = (path, path / "model.safetensors") if path.is_dir() else (path.parent, path)
        refuse_unsafe_files(location, [f.name for f in path.glob("*")] if path.is_dir() else [path.name])
        if not weights.is_file():
            missing = f"{location} has no {weights.name}" if path.is_dir() else f"{location} does not exist"
            raise TrainingError(f"{missing}: pass hf-hub:OWNER/NAME, a run folder or a .safetensors file")
        config = folder / "config.json"
        return Start(read_config(config if config.is_file() else {}, location), weights)
    except RepoError as error:
        raise TrainingError(str(error)) from error


def build_model(options: Namespace, label_names: list[str]) -> tuple[nn.Module, dict]:
    """Return the network with one output per class, and its timm data config (input_size, mean, std, crop_pct, …).

    Raises:
        TrainingError: the architecture does not exist, or the weights cannot be loaded.
    """
    start = resolve_start(options.init_from) if options.init_from else None
    start_architecture = start.config.architecture if start else ""
    architecture = options.model or start_architecture or DEFAULT_ARCHITECTURE
    if start_architecture and start_architecture != architecture:
        raise TrainingError(f"--init_from is a {start_architecture}, not a {architecture}: omit --model")
    inherited = start.data_config if start else {}
    size = options.image_size or inherited.get("input_size", [None])[-1] or default_size(architecture)
    model = create(architecture, options, len(label_names), size, options.pretrained and start is None)
    same_classes = bool(start) and list(start.config.label_names) == label_names
    if start:
        load_weights(model, start, keep_head=same_classes)
    if not same_classes:
        init_head(model)
    if options.freeze_backbone:
        model.requires_grad_(False)
        model.get_classifier().requires_grad_(True)
    config = inherited or model.pretrained_cfg
    data = resolve_data_config({k: config[k] for k in DATA_KEYS if k in config}, model=model)
    check_input_sizes(model, {size, *(size for _, size in options.size_schedule)})
    crop_pct = data["crop_pct"] if inherited else 1.0  # an image is a single cell and is not cropped
    return model, {**data, "input_size": (3, size, size), "crop_pct": crop_pct}


def default_size(architecture: str) -> int:
    """Return timm's input size for architectures with a fixed one (ViTs), else `DEFAULT_IMAGE_SIZE`, in pixels."""
    try:
        config = timm.get_pretrained_cfg(architecture)
    except RuntimeError:  # an unknown name, which `create` reports
        return DEFAULT_IMAGE_SIZE
    return config.input_size[-1] if config and config.fixed_input_size else DEFAULT_IMAGE_SIZE


def create(architecture: str, options: Namespace, classes: int, size: int, pretrained: bool) -> nn.Module:
    """Return `timm.create_model` for that input size.

    Raises:
        TrainingError: timm has no such model, cannot create it, or cannot load its ImageNet weights.
    """
    if architecture.split(".")[0] not in timm.list_models():
        raise unknown_name("model", architecture, timm.list_models())
    kwargs = {"pretrained": pretrained, "num_classes": classes, "drop_rate": options.drop_rate}
    kwargs["pretrained_cfg_overlay"] = {"input_size": (3, size, size)}  # a ViT is built for one size
    try:
        try:
            return timm.create_model(architecture, **kwargs, drop_path_rate=options.drop_path_rate)
        except TypeError:  # an architecture without stochastic depth
            return timm.create_model(architecture, **kwargs)
    except (*HUB_ERRORS, RuntimeError) as error:
        if not pretrained:
            raise TrainingError(f"timm cannot create {architecture}: {first_line(error)}") from error
        raise TrainingError(
            f"the ImageNet weights of {architecture} cannot be loaded ({first_line(error)}): "
            "pass --no-pretrained to train from scratch, or --init_from to start from your own weights"
        ) from error


def unknown_name(kind: str, name: str, names: list[str]) -> TrainingError:
    """Return the error for a name that timm does not have, with similar names."""
    similar = difflib.get_close_matches(name, names, n=3)
    hint = f"; did you mean {', '.join(similar)}?" if similar else ""
    return TrainingError(f"timm has no {kind} {name!r}{hint}")


@torch.no_grad()
def check_input_sizes(model: nn.Module, sizes: set[int]) -> None:
    """Run the network on a blank image of each size.

    Raises:
        TrainingError: it does not accept one of them.
    """
    for size in sorted(sizes):
        try:
            model.eval()(torch.zeros(1, 3, size, size))
        except (AssertionError, RuntimeError) as error:
            name = model.pretrained_cfg["architecture"]
            raise TrainingError(f"{name} does not accept {size}-pixel images: {first_line(error)}") from error


def load_weights(model: nn.Module, start: Start, keep_head: bool) -> None:
    """Load the weights of the start model, those of the classifier only if `keep_head`.

    Raises:
        TrainingError: the file is damaged or does not match the architecture.
    """
    try:
        state = load_file(start.weights)
    except (SafetensorError, OSError) as error:
        raise TrainingError(
            f"{start.weights} is not a readable safetensors file: {first_line(error)}"
        ) from error
    expected = model.state_dict()
    if "pos_embed" in state and state["pos_embed"].shape != expected.get("pos_embed", torch.empty(0)).shape:
        state["pos_embed"] = resample_abs_pos_embed(  # a ViT of another input size
            state["pos_embed"], list(model.patch_embed.grid_size), num_prefix_tokens=model.num_prefix_tokens
        )
    head = tuple(f"{name}." for name in head_names(model))
    if not keep_head:
        state = {k: v for k, v in state.items() if not k.startswith(head)}
    mismatched = [k for k in state if k not in expected or state[k].shape != expected[k].shape]
    mismatched += [k for k in expected if k not in state and not k.startswith(head)]
    if mismatched:
        raise TrainingError(
            f"{start.weights} does not match this architecture (first difference: {mismatched[0]})"
        )
    model.load_state_dict(state, strict=False)


def head_names(model: nn.Module) -> list[str]:
    """Return the names of the classifier's modules."""
    names = model.pretrained_cfg.get("classifier", "classifier")
    return [names] if isinstance(names, str) else list(names)


def init_head(model: nn.Module) -> None:
    """Initialise the classifier with small weights, so that the initial loss is ln(classes).

    timm samples them from ±1/√classes: with 7 classes the initial logits have a standard deviation of about 3.
    """
    for name in head_names(model):
        head = model.get_submodule(name)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)


def training_mode(model: nn.Module, frozen_backbone: bool) -> None:
    """Switch to training mode; a frozen backbone stays in evaluation mode (batch norm, dropout)."""
    model.train(not frozen_backbone)
    model.get_classifier().train()


def build_optimizer(model: nn.Module, projector: nn.Module | None, options: Namespace):
    """Return the timm optimizer, without weight decay on norms and biases, with layer-wise learning rates for `--layer_decay`.

    Args:
        model: a timm model.
        projector: trained as well, at the learning rate of the last layer.

    Raises:
        TrainingError: timm has no such optimizer, or it does not work here.
    """
    if options.optimizer.lower() not in list_optimizers():
        raise unknown_name("optimizer", options.optimizer, list_optimizers())
    rate, decay = options.learning_rate, options.weight_decay
    try:
        optimizer = create_optimizer_v2(
            model, options.optimizer, rate, decay, layer_decay=options.layer_decay
        )
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise TrainingError(
            f"optimizer {options.optimizer} does not work here: {first_line(error)}"
        ) from error
    for parameter in projector.parameters() if projector else ():
        optimizer.add_param_group(
            {"params": [parameter], "weight_decay": decay if parameter.ndim > 1 else 0.0}
        )
    return optimizer


def save_model(
    model: nn.Module, data_config: dict, source: Source, folder: Path, dtype: str = "float32"
) -> None:
    """Write `model.safetensors` and a `config.json` with the label names that both timm and transformers can read.

    Args:
        dtype: float16 rounds the weights and halves the file size; both libraries load it into a float32 model.

    Raises:
        TrainingError, OSError: the files cannot be written; existing ones are kept.
    """
    classes = len(source.label_names)
    data = {k: list(v) if isinstance(v, tuple) else v for k, v in data_config.items()}
    keys = ("pool_size", "first_conv", "classifier", "fixed_input_size")
    base = {k: model.pretrained_cfg[k] for k in keys if k in model.pretrained_cfg}
    labels = {"label_names": source.label_names, "label_descriptions": source.label_descriptions}
    config = {
        "num_classes": classes,
        "dtype": "float32",  # transformers computes in float32, whatever the dtype of the file
        # read by transformers, and replaced when it saves a model fine-tuned on other classes
        "id2label": dict(enumerate(source.label_names)),
        "label2id": {name: i for i, name in enumerate(source.label_names)},
        "pretrained_cfg": {"fixed_input_size": False, **base, **data, "num_classes": classes, **labels},
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".model-") as unfinished:
        contiguous = copy.deepcopy(model).to(getattr(torch, dtype), memory_format=torch.contiguous_format)
        try:
            timm.models.save_for_hf(contiguous, unfinished, model_config=config, safe_serialization=True)
        except SafetensorError as error:  # also raised for a full disk
            raise TrainingError(f"the model cannot be written to {folder}: {first_line(error)}") from error
        path = Path(unfinished) / "config.json"
        saved = json.loads(path.read_text())
        saved.get("model_args", {}).pop("num_classes", None)  # transformers would pass it twice
        for key in ("tag", "license", "origin_url"):  # those of timm's ImageNet weights
            saved["pretrained_cfg"].pop(key, None)
        path.write_text(json.dumps(saved, indent=2) + "\n")
        for name in MODEL_FILES:
            (Path(unfinished) / name).replace(folder / name)


class Float32Conv2d(nn.Conv2d):
    """A convolution that runs in float32 under autocast."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 [N, C, H, W] for images of any floating-point dtype."""
        with torch.autocast(images.device.type, enabled=False):
            return super().forward(images.float())


def keep_slow_convolutions_in_float32(model: nn.Module) -> None:
    """Keep strided depthwise convolutions in float32 under autocast: on a CPU their bfloat16 gradient is over 5 times slower.

    With the four of ReXNet-150 in float32, a bfloat16 step takes 0.8 times as long as a float32 one; without, just as long.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d and module.groups > 1 and max(module.stride) > 1:
            module.__class__ = Float32Conv2d  # in place, to keep parameters, names and hooks


def reload_weights(model: nn.Module, folder: Path, accelerator: Accelerator) -> None:
    """Load the saved weights on the main process and broadcast them to the models of all processes."""
    if accelerator.is_main_process:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    broadcast(list(model.state_dict().values()))
