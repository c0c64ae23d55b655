"""The network: a timm architecture, ImageNet weights or an earlier run in, a model ready to train out."""

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
START_FILES = ["config.json", "model.safetensors"]
DATA_KEYS = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


@dataclass(frozen=True)
class Start:
    """Where the weights come from: what a model folder's `config.json` says, and the path of its safetensors file."""

    config: ModelConfig
    weights: Path

    @property
    def data_config(self) -> dict:
        """The start model's preprocessing as it says so itself; {} where it does not."""
        return self.config.raw.get("pretrained_cfg") or {}


def find_start(where: str) -> Start:
    """Return the config and weights behind `hf-hub:OWNER/NAME[@REVISION]`, a run or model folder, or a .safetensors file.

    Raises:
        TrainingError: there is nothing of the kind, it holds an unsafe file, or it names code of its own.
    """
    try:
        path = Path(where)
        if where.startswith("hf-hub:"):
            name, _, revision = where.removeprefix("hf-hub:").partition("@")
            path, _ = download(name, revision or None, START_FILES)
        folder, weights = (path, path / "model.safetensors") if path.is_dir() else (path.parent, path)
        refuse_unsafe_files(where, [f.name for f in path.glob("*")] if path.is_dir() else [path.name])
        if not weights.is_file():
            missing = f"{where} has no {weights.name}" if path.is_dir() else f"there is no {where}"
            raise TrainingError(f"{missing}: name a hf-hub:OWNER/NAME, a run folder or a .safetensors file")
        config = folder / "config.json"
        return Start(read_config(config if config.is_file() else {}, where), weights)
    except RepoError as error:
        raise TrainingError(str(error)) from error


def build_model(options: Namespace, label_names: list[str]) -> tuple[nn.Module, dict]:
    """Return the network with one output a class, and its data config (timm's: input_size, mean, std, crop_pct, …).

    Raises:
        TrainingError: the architecture or the weights cannot be had.
    """
    start = find_start(options.init_from) if options.init_from else None
    started = start.config.architecture if start else ""
    architecture = options.model or started or DEFAULT_ARCHITECTURE
    if started and started != architecture:
        raise TrainingError(f"--init_from holds a {started}, not a {architecture}: leave --model out")
    given = start.data_config if start else {}
    size = options.image_size or given.get("input_size", [None])[-1] or default_size(architecture)
    model = create(architecture, options, len(label_names), size, options.pretrained and start is None)
    same_classes = bool(start) and list(start.config.label_names) == label_names
    if start:
        load_weights(model, start, keep_head=same_classes)
    if not same_classes:
        shrink_head(model)
    if options.freeze_backbone:
        model.requires_grad_(False)
        model.get_classifier().requires_grad_(True)
    known = given or model.pretrained_cfg
    data = resolve_data_config({k: known[k] for k in DATA_KEYS if k in known}, model=model)
    check_sizes(model, {size, *(size for _, size in options.size_schedule)})
    crop_pct = data["crop_pct"] if given else 1.0  # a crop holds one cell: nothing of it is thrown away
    return model, {**data, "input_size": (3, size, size), "crop_pct": crop_pct}


def default_size(architecture: str) -> int:
    """Return the pixels a side of the network's input where nothing else says so: those of a ViT are its own."""
    try:
        own = timm.get_pretrained_cfg(architecture)
    except RuntimeError:  # an unknown name, of which `create` says so
        return DEFAULT_IMAGE_SIZE
    return own.input_size[-1] if own and own.fixed_input_size else DEFAULT_IMAGE_SIZE


def create(architecture: str, options: Namespace, classes: int, size: int, pretrained: bool) -> nn.Module:
    """Return `timm.create_model` for that input size, its failures turned into one sentence each."""
    if architecture.split(".")[0] not in timm.list_models():
        raise unknown("model", architecture, timm.list_models())
    given = {"pretrained": pretrained, "num_classes": classes, "drop_rate": options.drop_rate}
    given["pretrained_cfg_overlay"] = {"input_size": (3, size, size)}  # a ViT is built for one size
    try:
        try:
            return timm.create_model(architecture, **given, drop_path_rate=options.drop_path_rate)
        except TypeError:  # an architecture without stochastic depth
            return timm.create_model(architecture, **given)
    except (*HUB_ERRORS, RuntimeError) as error:
        if not pretrained:
            raise TrainingError(f"timm cannot make {architecture}: {first_line(error)}") from error
        raise TrainingError(
            f"the ImageNet weights of {architecture} cannot be reached ({first_line(error)}): "
            "pass --no-pretrained to train from scratch, or --init_from to start from weights of your own"
        ) from error


def unknown(kind: str, name: str, known: list[str]) -> TrainingError:
    """Return the error for a name that timm does not have, with near matches."""
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    return TrainingError(f"timm has no {kind} {name!r}{hint}")


@torch.no_grad()
def check_sizes(model: nn.Module, sizes: set[int]) -> None:
    """Let the network see an empty image of each size.

    Raises:
        TrainingError: it cannot take one.
    """
    for size in sorted(sizes):
        try:
            model.eval()(torch.zeros(1, 3, size, size))
        except (AssertionError, RuntimeError) as error:
            name = model.pretrained_cfg["architecture"]
            raise TrainingError(f"{name} cannot take images of {size} pixels: {first_line(error)}") from error


def load_weights(model: nn.Module, start: Start, keep_head: bool) -> None:
    """Load the start weights; the classifier only where its classes are ours.

    Raises:
        TrainingError: the file is damaged or belongs to another architecture.
    """
    try:
        state = load_file(start.weights)
    except (SafetensorError, OSError) as error:
        raise TrainingError(
            f"{start.weights} is not a readable safetensors file: {first_line(error)}"
        ) from error
    own = model.state_dict()
    if "pos_embed" in state and state["pos_embed"].shape != own.get("pos_embed", torch.empty(0)).shape:
        state["pos_embed"] = resample_abs_pos_embed(  # a ViT's, of another input size
            state["pos_embed"], list(model.patch_embed.grid_size), num_prefix_tokens=model.num_prefix_tokens
        )
    head = tuple(f"{name}." for name in head_names(model))
    if not keep_head:
        state = {k: v for k, v in state.items() if not k.startswith(head)}
    wrong = [k for k in state if k not in own or state[k].shape != own[k].shape]
    missing = [k for k in own if k not in state and not k.startswith(head)]
    if wrong or missing:
        raise TrainingError(
            f"{start.weights} does not fit this architecture (first difference: {(wrong + missing)[0]})"
        )
    model.load_state_dict(state, strict=False)


def head_names(model: nn.Module) -> list[str]:
    """Return the names of the classifier's modules."""
    names = model.pretrained_cfg.get("classifier", "classifier")
    return [names] if isinstance(names, str) else list(names)


def shrink_head(model: nn.Module) -> None:
    """Start the classifier small, so that the first loss is ln(classes).

    timm draws its weights from ±1/√classes: with 7 classes the first logits have a standard deviation of about 3.
    """
    for name in head_names(model):
        head = model.get_submodule(name)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)


def training_mode(model: nn.Module, frozen_backbone: bool) -> None:
    """Switch to training; a frozen backbone keeps its batch statistics and drops nothing out."""
    model.train(not frozen_backbone)
    model.get_classifier().train()


def build_optimizer(model: nn.Module, projector: nn.Module | None, options: Namespace):
    """Return timm's optimizer of that name: no weight decay on norms and biases, and rates by layer where asked for.

    Args:
        model: a network of timm, which knows its layers.
        projector: what is trained besides, at the rate of the last layer.

    Raises:
        TrainingError: timm has no such optimizer, or it does not work here.
    """
    if options.optimizer.lower() not in list_optimizers():
        raise unknown("optimizer", options.optimizer, list_optimizers())
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
    """Write `model.safetensors` and a `config.json` that timm and transformers both read with the true label names.

    Args:
        dtype: float16 rounds the weights, and halves the file; both libraries load it into a float32 model.

    Raises:
        TrainingError, OSError: they cannot be written; the earlier ones are untouched.
    """
    classes = len(source.label_names)
    data = {k: list(v) if isinstance(v, tuple) else v for k, v in data_config.items()}
    kept = ("pool_size", "first_conv", "classifier", "fixed_input_size")
    own = {k: model.pretrained_cfg[k] for k in kept if k in model.pretrained_cfg}
    labels = {"label_names": source.label_names, "label_descriptions": source.label_descriptions}
    config = {
        "num_classes": classes,
        "dtype": "float32",  # what transformers computes in, whatever the file holds
        # transformers reads these, and replaces them when it saves a model fine-tuned on other classes
        "id2label": dict(enumerate(source.label_names)),
        "label2id": {name: i for i, name in enumerate(source.label_names)},
        "pretrained_cfg": {"fixed_input_size": False, **own, **data, "num_classes": classes, **labels},
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".model-") as unfinished:
        plain_layout = copy.deepcopy(model).to(getattr(torch, dtype), memory_format=torch.contiguous_format)
        try:
            timm.models.save_for_hf(plain_layout, unfinished, model_config=config, safe_serialization=True)
        except SafetensorError as error:  # what safetensors makes of a full disk
            raise TrainingError(f"the model cannot be written to {folder}: {first_line(error)}") from error
        path = Path(unfinished) / "config.json"
        written = json.loads(path.read_text())
        written.get("model_args", {}).pop("num_classes", None)  # transformers would pass it twice
        for of_other_weights in ("tag", "license", "origin_url"):  # timm's own, of its ImageNet weights
            written["pretrained_cfg"].pop(of_other_weights, None)
        path.write_text(json.dumps(written, indent=2) + "\n")
        for name in ("config.json", "model.safetensors"):
            (Path(unfinished) / name).replace(folder / name)


class Float32Conv2d(nn.Conv2d):
    """A convolution that autocast leaves in single precision."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 [N, C, H, W] of images of any precision."""
        with torch.autocast(images.device.type, enabled=False):
            return super().forward(images.float())


def spare_slow_convolutions(model: nn.Module) -> None:
    """Keep strided depthwise convolutions in float32: on a CPU their bfloat16 gradient takes over five times as long.

    With the four of ReXNet-150 spared, a training step in bfloat16 takes 0.8 of one in float32; with none, as long as it.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d and module.groups > 1 and max(module.stride) > 1:
            module.__class__ = Float32Conv2d  # in place: parameters, names and hooks stay


def read_back(model: nn.Module, folder: Path, accelerator: Accelerator) -> None:
    """Give the model of every process the weights as the main process has saved them."""
    if accelerator.is_main_process:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    broadcast(list(model.state_dict().values()))
