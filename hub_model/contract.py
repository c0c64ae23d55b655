"""The files of a model repo, and readers that validate them.

A model repo has `config.json` (timm's schema with label names), `model.safetensors`, `README.md`, `metrics.json`,
`calibration.json`, `history.jsonl`, `onnx/model.onnx`, `figures/` and the logits of every evaluated split, and no pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
from safetensors import SafetensorError, safe_open
from torch.utils.flop_counter import FlopCounterMode

from hub_model.inference.calibration import CALIBRATION
from hub_model.inference.errors import RepoError, first_line
from hub_model.inference.model_repo import ModelConfig, read_config, read_json, read_jsonl, unsafe_files
from hub_model.inference.ood import OOD_ARRAYS

CONFIG, WEIGHTS, CARD, METRICS = "config.json", "model.safetensors", "README.md", "metrics.json"
HISTORY, ONNX = "history.jsonl", "onnx/model.onnx"
MEASUREMENTS = "measurements"  # in a run folder: the result of each study, NAME.json
REQUIRED = (CONFIG, WEIGHTS, CARD, METRICS, HISTORY, ONNX, CALIBRATION, "logits_validation.parquet")
SPLITS = ("validation", "test")
HISTORY_KEYS = (
    "epoch",
    *(f"{s}_{k}" for s in ("train", "validation") for k in ("loss", "accuracy", "macro_f1")),
)
LOGITS_SCHEMA = {"file_name": pa.string(), "label": pa.int64(), "logits": pa.list_(pa.float32())}


@dataclass(frozen=True)
class Logits:
    """Logits of a split: file_names [N], labels int64 [N], values float32 [N, C], sources [N] or None."""

    file_names: list[str]
    labels: np.ndarray
    values: np.ndarray
    sources: list[str] | None = None


@dataclass(frozen=True)
class Contents:
    """The validated files that run folders and model repos share; `digest` is the SHA-256 of the weights."""

    config: ModelConfig
    digest: str
    calibration: dict
    history: list[dict]
    logits: dict[str, Logits]


@contextlib.contextmanager
def malformed_as_error(path: Path) -> Iterator[None]:
    """Turn the exceptions that a malformed file causes in the block into a `RepoError` that names the file."""
    try:
        yield
    except RepoError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or "no details"
        raise RepoError(f"{path} is malformed: {type(error).__name__}, {reason}") from None


def check_config(path: Path) -> ModelConfig:
    """Read a `config.json`; `RepoError` unless timm and transformers both load it with the right labels."""
    config = read_config(path, str(path.parent))
    if not timm.is_model(config.architecture):
        raise RepoError(f"{path}: timm has no architecture {config.architecture!r}")
    if not config.label_names:
        raise RepoError(f"{path}: label_names must list 2 or more different names")
    if "num_classes" in (config.raw.get("model_args") or {}):
        raise RepoError(f"{path}: model_args.num_classes must be removed: transformers cannot load it")
    return config


def read_logits(path: Path, classes: int) -> Logits:
    """Read a Parquet file of file_name, label, logits and, optionally, source, one row per image.

    Raises:
        RepoError: it is missing, unreadable, empty, or its columns, labels or logits are not as they must be.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else first_line(error)
        raise RepoError(f"{path} cannot be read: {reason}") from None
    columns = {field.name: field.type for field in table.schema}
    has_sources = columns.pop("source", None) == pa.string()
    if columns != LOGITS_SCHEMA:
        expected, actual = (
            ", ".join(f"{name}: {type_}" for name, type_ in schema.items())
            for schema in (LOGITS_SCHEMA, columns)
        )
        raise RepoError(f"{path} must have the columns {expected}, not {actual}")
    if table.num_rows == 0 or any(column.null_count for column in table.columns):
        raise RepoError(f"{path} is empty or has a row with a null")
    labels, logits = table["label"].to_numpy(), table["logits"].combine_chunks()
    lengths = logits.value_lengths().to_numpy()
    if (lengths != classes).any():
        raise RepoError(f"{path} has rows of {lengths[lengths != classes][0]} logits for {classes} classes")
    values = logits.flatten().to_numpy().reshape(-1, classes)
    if not np.isfinite(values).all():
        raise RepoError(f"{path} has a logit that is not finite")
    if labels.min() < 0 or labels.max() >= classes:
        raise RepoError(
            f"{path} has labels from {labels.min()} to {labels.max()}, outside 0 to {classes - 1}"
        )
    sources = table["source"].to_pylist() if has_sources else None
    return Logits(table["file_name"].to_pylist(), labels, values, sources)


def read_history(path: Path) -> list[dict]:
    """Read `history.jsonl`, one entry per trained epoch, oldest first; `RepoError` names the first invalid line."""
    history = read_jsonl(path)
    for line, entry in enumerate(history, start=1):
        if missing := [key for key in HISTORY_KEYS if not isinstance(entry.get(key), (int, float))]:
            raise RepoError(f"{path}, line {line}, has no number {missing[0]!r}")
    return history


def read_all_logits(folder: Path, classes: int) -> dict[str, Logits]:
    """Read the logits of each split; only those of validation are required, since a dataset may have no test split."""
    paths = {split: folder / f"logits_{split}.parquet" for split in SPLITS}
    if not paths["test"].exists():
        del paths["test"]
    return {split: read_logits(path, classes) for split, path in paths.items()}


def empty_model(config: ModelConfig) -> torch.nn.Module:
    """Create the model of a config on the meta device, which allocates no weights."""
    classes = len(config.label_names)
    with torch.device("meta"):
        return timm.create_model(config.architecture, num_classes=classes, **config.model_args).eval()


def multiply_adds(model: torch.nn.Module, input_size: Sequence[int]) -> int:
    """Count the multiply-adds of a forward pass on one image of `input_size` (C, H, W)."""
    image = torch.empty(1, *input_size, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return counter.get_total_flops() // 2


def check_weights(path: Path, config: ModelConfig) -> None:
    """Raise `RepoError` at the first tensor whose name or shape in a safetensors file differs from the architecture's."""
    try:
        with safe_open(path, framework="pt") as file:
            actual = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RepoError(f"{path} is not a readable safetensors file: {error}") from None
    try:
        expected = {name: tuple(tensor.shape) for name, tensor in empty_model(config).state_dict().items()}
    except Exception as error:  # timm's constructors raise many types
        raise RepoError(f"{path.parent / CONFIG} describes no model that timm can create: {error}") from None
    for name in sorted(expected | actual):
        if expected.get(name) != actual.get(name):
            raise RepoError(
                f"{path} does not fit {CONFIG}: {name} has shape {actual.get(name, 'none')}, "
                f"{config.architecture} needs {expected.get(name, 'none')}"
            )


def weights_digest(folder: Path) -> str:
    """Return the hexadecimal SHA-256 of the weights in a run or model folder; `RepoError` if there are none."""
    try:
        with (folder / WEIGHTS).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise RepoError(f"{folder / WEIGHTS} is missing") from None


def read_calibration(folder: Path, digest: str) -> dict:
    """Read `calibration.json`, {} if missing; `RepoError` if its OOD rule was fitted to other weights or lacks its arrays."""
    path = folder / CALIBRATION
    calibration = read_json(path) if path.exists() else {}
    with malformed_as_error(path):
        rule = calibration.get("out_of_distribution")
        if rule and rule.get("weights_sha256") != digest:
            raise RepoError(f"{path} belongs to other weights: run `python -m hub_model ood` again")
        if rule and rule.get("arrays_fitted_on") and not (folder / OOD_ARRAYS).is_file():
            raise RepoError(f"{folder / OOD_ARRAYS} is missing, which {CALIBRATION} needs")
    return calibration


def read_contents(folder: Path) -> Contents:
    """Read and validate the files that run folders and model repos share; `RepoError` names the first problem."""
    config = check_config(folder / CONFIG)
    check_weights(folder / WEIGHTS, config)
    digest, history = weights_digest(folder), read_history(folder / HISTORY)
    logits = read_all_logits(folder, len(config.label_names))
    return Contents(config, digest, read_calibration(folder, digest), history, logits)


def check_files(folder: Path) -> list[str]:
    """Return the missing and the unexpected files of a model folder, one sentence each."""
    if not folder.is_dir():
        return [f"{folder} is not a directory"]
    paths = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    files = sorted(path.relative_to(folder).as_posix() for path in paths)
    problems = [f"{name} is missing" for name in REQUIRED if name not in files]
    if not any(name.startswith("figures/") for name in files):
        problems.append("figures/ is missing")
    problems += [f"{name} can hold a pickle: only safetensors are published" for name in unsafe_files(files)]
    for name in files:
        if (folder / name).is_symlink():
            problems.append(f"{name} is a symlink: a repo holds regular files only")
        hidden = any(part.startswith(".") for part in Path(name).parts)
        if hidden and not name.startswith((".gitattributes", ".eval_results/")):
            problems.append(f"{name} is a hidden file, which does not belong in a model repo")
        if name.startswith("checkpoints/"):
            problems.append(f"{name} belongs to a run folder, not to a model repo")
    return problems
