"""The network: a timm architecture, ImageNet weights or an earlier run in, a model ready to train out."""

from __future__ import annotations

import copy
import difflib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from training import TrainingError
from training.source import UNREACHABLE, Source, first_line

DEFAULT_ARCHITECTURE = "rexnet_150"
DEFAULT_IMAGE_SIZE = 160
PICKLES = (".bin", ".pt", ".pth", ".tar", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".mar")
FOREIGN_CODE = ("auto_map", "custom_pipelines")  # what makes transformers run a repo's own code
DATA_KEYS = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


@dataclass(frozen=True)
class Start:
    """Where the weights come from: a model folder's `config.json` and the path of its safetensors file."""

    config: dict
    weights: Path

    @property
    def label_names(self) -> list[str]:
        return self.config.get("label_names") or []


def find_start(where: str) -> Start:
    """Return the config and weights behind `hf-hub:OWNER/NAME`, a run or model folder, or a .safetensors file.

    Raises:
        TrainingError: there is nothing of the kind, it holds a pickle, or it names code of its own.
    """
    if where.startswith("hf-hub:"):
        return from_pretrained(where.removeprefix("hf-hub:"))
    path = Path(where)
    if path.is_dir():
        folder, weights = path, path / "model.safetensors"
    elif path.suffix in PICKLES:
        raise TrainingError(
            f"{where} is a pickle, which can run code when it is loaded: convert it to safetensors"
        )
    else:
        folder, weights = path.parent, path
    refuse_pickles(where, [file.name for file in folder.glob("*")] if path.is_dir() else [])
    if not weights.is_file():
        missing = f"{where} has no {weights.name}" if path.is_dir() else f"there is no {where}"
        raise TrainingError(f"{missing}: name a hf-hub:OWNER/NAME, a run folder or a .safetensors file")
    config = folder / "config.json"
    return Start(read_config(where, config) if config.is_file() else {}, weights)


def refuse_pickles(where: str, files: list[str]) -> None:
    """Raise TrainingError naming the first file that only an unpickler reads, whether or not it would have been read."""
    for name in sorted(files):
        if name.lower().endswith(PICKLES):
            raise TrainingError(
                f"{where} is refused: {name} is a pickle, which can run code when it is loaded; "
                "only safetensors are read, so convert it or take the file away"
            )


def read_config(where: str, path: Path) -> dict:
    """Return the `config.json` of a model; TrainingError when it is none, or names code that comes with it."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"the config.json of {where} cannot be read: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise TrainingError(f"the config.json of {where} holds a {type(config).__name__}, not a JSON object")
    if code := next((key for key in FOREIGN_CODE if key in config), None):
        raise TrainingError(f"{where} is refused: its config.json names code of its own ({code})")
    return config


def from_pretrained(repo: str) -> Start:
    """Return a model repo's config and weights, `OWNER/NAME[@REVISION]`; nothing but the two files is downloaded."""
    repo, _, revision = repo.partition("@")
    try:
        files = {s.rfilename for s in HfApi().model_info(repo, revision=revision or None).siblings}
        refuse_pickles(repo, sorted(files))
        if "model.safetensors" not in files:
            raise TrainingError(f"{repo} has no model.safetensors")
        paths = [
            Path(hf_hub_download(repo, name, revision=revision or None))
            for name in ("config.json", "model.safetensors")
        ]
    except (RepositoryNotFoundError, EntryNotFoundError, HFValidationError) as error:
        raise TrainingError(f"model {repo} is not on the Hub: {first_line(error)}") from error
    except UNREACHABLE as error:
        raise TrainingError(f"model {repo} cannot be reached: {first_line(error)}") from error
    return Start(read_config(repo, paths[0]), paths[1])


def build_model(options, label_names: list[str]) -> tuple[nn.Module, dict]:
    """Return the network with one output a class, and its data config (timm's: input_size, mean, std, crop_pct, …).

    Raises:
        TrainingError: the architecture or the weights cannot be had.
    """
    start = find_start(options.init_from) if options.init_from else None
    architecture = options.model or (start and start.config.get("architecture")) or DEFAULT_ARCHITECTURE
    if start and start.config.get("architecture", architecture) != architecture:
        raise TrainingError(
            f"--init_from holds a {start.config['architecture']}, not a {architecture}: leave --model out"
        )
    model = create(architecture, options, len(label_names), pretrained=options.pretrained and start is None)
    same_classes = False
    if start:
        same_classes = start.label_names == label_names
        load_weights(model, start, keep_head=same_classes)
    if not same_classes:
        shrink_head(model)
    given = (start.config.get("pretrained_cfg") if start else None) or model.pretrained_cfg
    data = resolve_data_config({k: given[k] for k in DATA_KEYS if k in given}, model=model)
    size = input_size(architecture, options, given if start else {}, model.pretrained_cfg)
    check_sizes(model, {size, *(size for _, size in options.size_schedule)})
    crop_pct = (
        data["crop_pct"] if start and start.config.get("pretrained_cfg") else 1.0
    )  # crops hold one cell each, cut to size: nothing of them is thrown away
    return model, {**data, "input_size": (3, size, size), "crop_pct": crop_pct}


@torch.no_grad()
def check_sizes(model: nn.Module, sizes: set[int]) -> None:
    """Let the network see an empty image of each size.

    Raises:
        TrainingError: it cannot take one.
    """
    training = model.training
    for size in sorted(sizes):
        try:
            model.eval()(torch.zeros(1, 3, size, size))
        except (AssertionError, RuntimeError) as error:
            name = model.pretrained_cfg["architecture"]
            raise TrainingError(f"{name} cannot take images of {size} pixels: {first_line(error)}") from error
    model.train(training)


def create(architecture: str, options, classes: int, pretrained: bool) -> nn.Module:
    """Return `timm.create_model`, its failures turned into one sentence each."""
    if architecture.split(".")[0] not in timm.list_models():
        raise unknown("model", architecture, timm.list_models())
    drop = {"drop_rate": options.drop_rate, "drop_path_rate": options.drop_path_rate}
    try:
        try:
            return timm.create_model(architecture, pretrained=pretrained, num_classes=classes, **drop)
        except TypeError:  # an architecture without stochastic depth
            return timm.create_model(
                architecture, pretrained=pretrained, num_classes=classes, drop_rate=options.drop_rate
            )
    except (*UNREACHABLE, RuntimeError) as error:
        if not pretrained:
            raise TrainingError(f"timm cannot make {architecture}: {first_line(error)}") from error
        raise TrainingError(
            f"the ImageNet weights of {architecture} cannot be reached ({first_line(error)}): "
            "pass --no-pretrained to train from scratch, or --init_from to start from weights of your own"
        ) from error


def build_optimizer(model: nn.Module, projector: nn.Module | None, options) -> torch.optim.Optimizer:
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


def unknown(kind: str, name: str, known: list[str]) -> TrainingError:
    """Return the error for a name that timm does not have, with near matches."""
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    return TrainingError(f"timm has no {kind} {name!r}{hint}")


def input_size(architecture: str, options, given: dict, own: dict) -> int:
    """Return the pixels a side of the network's input.

    Args:
        given: the data config of the start weights; {} without.
        own: the architecture's data config in timm.

    Raises:
        TrainingError: the architecture takes one size only, and another was asked for.
    """
    fixed = own["input_size"][-1] if own.get("fixed_input_size") else None
    asked = [options.image_size, *(size for _, size in options.size_schedule)]
    if fixed and any(size not in (None, fixed) for size in asked):
        raise TrainingError(f"{architecture} takes images of {fixed} pixels only: pass --image_size {fixed}")
    return options.image_size or fixed or given.get("input_size", [DEFAULT_IMAGE_SIZE])[-1]


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
    head = {f"{name}." for name in head_names(model)}
    if not keep_head:
        state = {k: v for k, v in state.items() if not any(k.startswith(h) for h in head)}
    wrong = [k for k in state if k not in own or state[k].shape != own[k].shape]
    missing = [k for k in own if k not in state and not any(k.startswith(h) for h in head)]
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


def freeze_backbone(model: nn.Module) -> None:
    """Leave only the classifier to be trained."""
    model.requires_grad_(False)
    for name in head_names(model):
        model.get_submodule(name).requires_grad_(True)


def training_mode(model: nn.Module, frozen_backbone: bool) -> None:
    """Switch to training; a frozen backbone keeps its batch statistics, and only the classifier's modules are switched."""
    model.train(not frozen_backbone)
    if frozen_backbone:
        for name in head_names(model):
            model.get_submodule(name).train()


def save_model(model: nn.Module, data_config: dict, source: Source, folder: Path) -> None:
    """Write `model.safetensors` and a `config.json` that timm and transformers both read with the true label names.

    Raises:
        TrainingError, OSError: they cannot be written; the earlier ones are untouched.
    """
    label_names = source.label_names
    data = {k: list(v) if isinstance(v, tuple) else v for k, v in data_config.items()}
    shape = {
        k: model.pretrained_cfg[k]
        for k in ("pool_size", "first_conv", "classifier")
        if k in model.pretrained_cfg
    }
    fixed = bool(model.pretrained_cfg.get("fixed_input_size"))
    config = {
        "num_classes": len(label_names),
        "label_names": label_names,
        "label_descriptions": source.label_descriptions,
        "pretrained_cfg": {"fixed_input_size": fixed, **data, **shape, "num_classes": len(label_names)},
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".model-") as unfinished:
        plain_layout = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
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


def as_eval(model: nn.Module) -> nn.Module:
    """Return the model in evaluation mode, without gradients, channels last."""
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
