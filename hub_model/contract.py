"""What a model repo must hold, and the readers of its files: a folder in, what breaks the contract out.

The contract is that of `config.json` (timm's schema with label names), `model.safetensors`, `README.md`, `metrics.json`,
`history.jsonl`, `onnx/model.onnx`, `figures/` and the logits of every measured split. Nothing in it is a pickle.
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
from hub_model.inference.errors import RepoError
from hub_model.inference.model_repo import ModelConfig, read_config, read_json, read_jsonl, unsafe_files
from hub_model.inference.ood import OOD_ARRAYS

CONFIG, WEIGHTS, CARD, METRICS = "config.json", "model.safetensors", "README.md", "metrics.json"
HISTORY, ONNX = "history.jsonl", "onnx/model.onnx"
MEASUREMENTS = "measurements"  # of a run folder: NAME.json is what a study found
REQUIRED = (CONFIG, WEIGHTS, CARD, METRICS, HISTORY, ONNX, CALIBRATION, "logits_validation.parquet")
SPLITS = ("validation", "test")
HISTORY_KEYS = (
    "epoch",
    *(f"{s}_{k}" for s in ("train", "validation") for k in ("loss", "accuracy", "macro_f1")),
)
LOGITS_SCHEMA = {"file_name": pa.string(), "label": pa.int64(), "logits": pa.list_(pa.float32())}


@dataclass(frozen=True)
class Logits:
    """What a model said of a split: file_names [N], labels int64 [N], values float32 [N, C], sources [N] or None."""

    file_names: list[str]
    labels: np.ndarray
    values: np.ndarray
    sources: list[str] | None = None


@dataclass(frozen=True)
class Contents:
    """What a run folder and a model repo both hold, checked: an entry of `history` an epoch, `logits` by split."""

    config: ModelConfig
    digest: str
    calibration: dict
    history: list[dict]
    logits: dict[str, Logits]


@contextlib.contextmanager
def malformed_as_error(path: Path) -> Iterator[None]:
    """Whatever a file of the wrong shape makes the code inside stumble over becomes a `RepoError` that names it."""
    try:
        yield
    except RepoError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or "it says nothing more"
        raise RepoError(f"{path} is malformed: {type(error).__name__}, {reason}") from None


def check_config(path: Path) -> ModelConfig:
    """A `config.json` that timm and transformers both read with the right labels; else `RepoError`."""
    config = read_config(path, str(path.parent))
    if not timm.is_model(config.architecture):
        raise RepoError(f"{path}: timm has no architecture {config.architecture!r}")
    if not config.label_names:
        raise RepoError(f"{path}: label_names must be a list of 2 or more different names")
    if "num_classes" in (config.raw.get("model_args") or {}):
        raise RepoError(f"{path}: model_args.num_classes must go, transformers fails on it")
    return config


def read_logits(path: Path, classes: int) -> Logits:
    """A table of file_name, label and logits, one row an image; `RepoError` says what is wrong with it."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        raise RepoError(f"{path} cannot be read: {reason}") from None
    found = {field.name: field.type for field in table.schema}
    sources = found.pop("source", None) == pa.string()
    if found != LOGITS_SCHEMA:
        raise RepoError(f"{path} must have the columns {columns(LOGITS_SCHEMA)}, not {columns(found)}")
    if table.num_rows == 0 or any(column.null_count for column in table.columns):
        raise RepoError(f"{path} is empty or has a row without a value")
    labels, lengths = table["label"].to_numpy(), table["logits"].combine_chunks().value_lengths().to_numpy()
    if (lengths != classes).any():
        raise RepoError(f"{path} has rows of {lengths[lengths != classes][0]} logits for {classes} classes")
    values = table["logits"].combine_chunks().flatten().to_numpy().reshape(-1, classes)
    if not np.isfinite(values).all():
        raise RepoError(f"{path} holds a logit that is not finite")
    if labels.min() < 0 or labels.max() >= classes:
        raise RepoError(
            f"{path} has labels from {labels.min()} to {labels.max()}, outside 0 to {classes - 1}"
        )
    return Logits(
        table["file_name"].to_pylist(), labels, values, table["source"].to_pylist() if sources else None
    )


def columns(schema: dict) -> str:
    """Names and types of columns as a text."""
    return ", ".join(f"{name}: {kind}" for name, kind in schema.items())


def read_history(path: Path) -> list[dict]:
    """The epochs of `history.jsonl`, oldest first; none where no epoch was trained. `RepoError` names a bad line."""
    history = read_jsonl(path)
    for line, entry in enumerate(history, start=1):
        if missing := [key for key in HISTORY_KEYS if not isinstance(entry.get(key), (int, float))]:
            raise RepoError(f"{path}, line {line}, has no number under {missing[0]!r}")
    return history


def read_all_logits(folder: Path, classes: int) -> dict[str, Logits]:
    """Logits by split; validation must be there, test may be missing when the dataset has none."""
    paths = {split: folder / f"logits_{split}.parquet" for split in SPLITS}
    return {
        split: read_logits(path, classes)
        for split, path in paths.items()
        if split == "validation" or path.exists()
    }


def empty_model(config: ModelConfig) -> torch.nn.Module:
    """The network that a config describes, without memory for its weights."""
    with torch.device("meta"):
        return timm.create_model(
            config.architecture, num_classes=len(config.label_names), **config.model_args
        ).eval()


def multiply_adds(model: torch.nn.Module, input_size: Sequence[int]) -> int:
    """Multiply-adds of a network for one image."""
    image = torch.empty(1, *input_size, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return counter.get_total_flops() // 2


def check_weights(path: Path, config: ModelConfig) -> None:
    """Compare names and shapes in the safetensors file with the architecture; `RepoError` at the first misfit."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RepoError(f"{path} is not a readable safetensors file: {error}") from None
    try:
        wanted = {name: tuple(tensor.shape) for name, tensor in empty_model(config).state_dict().items()}
    except Exception as error:  # timm's architectures raise whatever they stumble over
        raise RepoError(f"{path.parent / CONFIG} describes no model that timm can build: {error}") from None
    for name in sorted(wanted | found):
        if wanted.get(name) != found.get(name):
            raise RepoError(
                f"{path} does not fit {CONFIG}: {name} has shape {found.get(name, 'none')}, "
                f"{config.architecture} needs {wanted.get(name, 'none')}"
            )


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights in a run or model folder, in hexadecimal; `RepoError` where there are none."""
    try:
        with (folder / WEIGHTS).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise RepoError(f"{folder / WEIGHTS} is missing") from None


def read_calibration(folder: Path, digest: str) -> dict:
    """`calibration.json`, empty where there is none; RepoError where its OOD rule is of other weights or lacks its arrays."""
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
    """Read and check what a run folder and a model repo share; `RepoError` says the first thing that is wrong."""
    config = check_config(folder / CONFIG)
    check_weights(folder / WEIGHTS, config)
    digest, history = weights_digest(folder), read_history(folder / HISTORY)
    logits = read_all_logits(folder, len(config.label_names))
    return Contents(config, digest, read_calibration(folder, digest), history, logits)


def check_files(folder: Path) -> list[str]:
    """What is missing from a model folder and what does not belong there, a sentence each."""
    if not folder.is_dir():
        return [f"{folder} is not a folder"]
    found = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    files = sorted(path.relative_to(folder).as_posix() for path in found)
    problems = [f"{name} is missing" for name in REQUIRED if name not in files]
    if not any(name.startswith("figures/") for name in files):
        problems.append("figures/ is missing")
    problems += [f"{name} can hold a pickle: only safetensors are published" for name in unsafe_files(files)]
    for name in files:
        if (folder / name).is_symlink():
            problems.append(f"{name} is a link: a repo holds files")
        hidden = any(part.startswith(".") for part in Path(name).parts)
        if hidden and not name.startswith((".gitattributes", ".eval_results/")):
            problems.append(f"{name} is a hidden file, which does not belong in a model repo")
        if name.startswith("checkpoints/"):
            problems.append(f"{name} belongs to a run folder, not to a model repo")
    return problems
