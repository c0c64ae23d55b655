"""What a model repo must hold, and the readers of its files: a folder in, what breaks the contract out.

The contract is that of `config.json` (timm's schema with label names), `model.safetensors`, `README.md`, `metrics.json`,
`history.jsonl`, `onnx/model.onnx`, `figures/` and the logits of every measured split. Nothing in it is a pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
from safetensors import SafetensorError, safe_open

from hub_model.inference.errors import RepoError
from hub_model.inference.model_repo import ModelConfig, read_config, unsafe_files

CONFIG, WEIGHTS, CARD, METRICS = "config.json", "model.safetensors", "README.md", "metrics.json"
HISTORY, ONNX, CALIBRATION = "history.jsonl", "onnx/model.onnx", "calibration.json"
MEASUREMENTS = "measurements"  # of a run folder: NAME.json is what a study found
OOD_ARRAYS = "out_of_distribution.safetensors"
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
    try:
        history = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except FileNotFoundError:
        raise RepoError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RepoError(f"{path} is not JSON lines: {error}") from None
    for line, entry in enumerate(history, start=1):
        if not isinstance(entry, dict):
            raise RepoError(f"{path}, line {line}, holds a {type(entry).__name__}, not a JSON object")
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


def check_weights(path: Path, config: ModelConfig) -> None:
    """Compare names and shapes in the safetensors file with the architecture; `RepoError` at the first misfit."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RepoError(f"{path} is not a readable safetensors file: {error}") from None
    try:
        with torch.device("meta"):
            model = timm.create_model(
                config.architecture, num_classes=len(config.label_names), **config.model_args
            )
    except Exception as error:  # timm's architectures raise whatever they stumble over
        raise RepoError(f"{path.parent / CONFIG} describes no model that timm can build: {error}") from None
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
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


def check_rule(calibration: dict, digest: str, path: Path) -> None:
    """Raise RepoError when the out-of-distribution rule, if there is one, was fitted to other weights or lacks its arrays."""
    with malformed_as_error(path):
        rule = calibration.get("out_of_distribution")
        if rule and rule.get("weights_sha256") != digest:
            raise RepoError(f"{path} belongs to other weights: run `python -m hub_model ood` again")
        if rule and rule.get("arrays_fitted_on") and not (path.parent / OOD_ARRAYS).is_file():
            raise RepoError(f"{path.parent / OOD_ARRAYS} is missing, which {CALIBRATION} needs")


def files_of(folder: Path) -> list[str]:
    """Paths of all files below a folder, relative, with forward slashes, sorted."""
    return sorted(
        (Path(root) / name).relative_to(folder).as_posix()
        for root, _, names in os.walk(folder)
        for name in names
    )


def check_files(folder: Path) -> list[str]:
    """What is missing from a model folder and what does not belong there, a sentence each."""
    if not folder.is_dir():
        return [f"{folder} is not a folder"]
    files = files_of(folder)
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
