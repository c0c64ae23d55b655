"""Open a model repo and check it before anything of it is used: a Hub id or a folder in, a `ModelRepo` out.

Safetensors only: a repo with a pickle, or with custom code in its `config.json`, is refused with the name of that
file or key, even if it would not have been read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hub_model.inference.errors import RepoError, first_line

# Files that are unpickled, or archives of such files: loading one can run code.
UNSAFE_SUFFIXES = frozenset(
    {".bin", ".pt", ".pth", ".tar", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".mar", ".npy", ".npz"}
)
DOWNLOADED = ["*.json", "*.jsonl", "*.safetensors", "onnx/*.onnx", "logits_*.parquet", "README.md"]
CUSTOM_CODE_KEYS = ("auto_map", "custom_pipelines")  # make transformers run code of the repo
# Arguments that make timm.create_model download or unpickle other weights.
LOADING_ARGS = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
ARCHITECTURE = re.compile(r"\w+(\.\w+)?")  # a timm model name; never a path or another repo


@dataclass(frozen=True)
class ModelConfig:
    """A checked `config.json`; `raw` is its full content.

    Fields missing from the file are empty, or None. `label_descriptions` has only the labels that the file describes.
    `model_args` has no `num_classes`, which timm writes there too and would be passed twice.
    """

    architecture: str
    label_names: tuple[str, ...]
    label_descriptions: dict[str, str]
    num_classes: int | None
    model_args: dict[str, Any]
    pretrained_cfg: dict[str, Any]
    raw: dict[str, Any]

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of the input."""
        return tuple(self.pretrained_cfg["input_size"])


@dataclass(frozen=True)
class ModelRepo:
    """A checked model repo on this machine. `commit` is None for a plain folder."""

    name: str
    folder: Path
    commit: str | None
    config: ModelConfig

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.config.label_names

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def onnx(self) -> Path | None:
        path = self.folder / "onnx" / "model.onnx"
        return path if path.is_file() else None

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in the file `name`; None when the repo has no such file."""
        path = self.folder / name
        return read_json(path, f"{self.name}/{name}") if path.is_file() else None

    def read_jsonl(self, name: str) -> list[dict[str, Any]]:
        """The objects in the JSON Lines file `name`; empty when the repo has no such file."""
        path = self.folder / name
        return read_jsonl(path, f"{self.name}/{name}") if path.is_file() else []


def open_model_repo(model_id: str | os.PathLike[str], revision: str | None = None) -> ModelRepo:
    """Check a model repo, downloaded if necessary: `OWNER/NAME` or a folder, with or without timm's prefix.

    Raises RepoError: the repo is missing, unreachable, unsafe or incomplete, or its config is malformed.
    """
    name = re.sub(r"^(hf[-_]hub|local-dir):", "", str(model_id))  # timm's prefixes
    if not name.strip():
        raise RepoError("no model given: set MODEL_ID to a model repo (OWNER/NAME) or a folder")
    folder, commit = Path(name), None
    if not folder.is_dir():
        folder, commit = download(name, revision, DOWNLOADED)
    refuse_unsafe_files(name, (path.relative_to(folder) for path in folder.rglob("*") if path.is_file()))
    for required in ("config.json", "model.safetensors"):
        if not (folder / required).is_file():
            raise RepoError(f"{name} has no {required}")
    config = read_config(folder / "config.json", name)
    if not config.label_names:
        raise RepoError(f"{name}/config.json has no list 'label_names'")
    return ModelRepo(name, folder, commit, config)


def unsafe_files(files: Iterable[str | PurePosixPath]) -> list[str]:
    """The files that are read by unpickling, sorted."""
    return sorted(name for name in map(str, files) if PurePosixPath(name).suffix.lower() in UNSAFE_SUFFIXES)


def refuse_unsafe_files(name: str, files: Iterable[str | PurePosixPath]) -> None:
    """Raise RepoError naming the first unsafe file of a repo, except one that transformers' Trainer adds and nothing reads."""
    if found := [file for file in unsafe_files(files) if file != "training_args.bin"]:
        raise RepoError(
            f"{name} is refused: {found[0]} can hold a pickle, which can run code; only safetensors are read"
        )


def read_config(source: Path | dict[str, Any], name: str) -> ModelConfig:
    """Check a `config.json` in timm's schema, as timm, transformers and this project write it.

    `name` is the repo or folder in error messages. Labels at the root (`label_names`, else transformers'
    `id2label`), which fine-tuning rewrites, take precedence over those in `pretrained_cfg`, which it keeps.
    Raises RepoError with one sentence.
    """
    path = f"{name}/config.json"
    raw = source if isinstance(source, dict) else read_json(source, path)
    if key := next((key for key in CUSTOM_CODE_KEYS if key in raw), None):
        raise RepoError(f"{name} is refused: its config.json refers to custom code ({key})")
    architecture, model_args = raw.get("architecture", ""), raw.get("model_args") or {}
    if "architecture" in raw and not (isinstance(architecture, str) and ARCHITECTURE.fullmatch(architecture)):
        raise RepoError(f"{path}: architecture must be a timm model name, not {architecture!r}")
    if not isinstance(model_args, dict):
        raise RepoError(f"{path}: model_args must be an object, not {model_args!r}")
    if loading := sorted(LOADING_ARGS & set(model_args)):
        raise RepoError(f"{path}: model_args.{loading[0]} is not allowed, only model.safetensors is loaded")
    pretrained_cfg = raw.get("pretrained_cfg", raw)  # timm's older configs are flat
    if not isinstance(pretrained_cfg, dict):
        raise RepoError(f"{path}: pretrained_cfg must be an object, not {pretrained_cfg!r}")
    size = pretrained_cfg.get("input_size", [3, 224, 224])  # timm's default
    if not isinstance(size, list) or len(size) != 3 or not all(isinstance(n, int) and n > 0 for n in size):
        raise RepoError(f"{path}: pretrained_cfg.input_size must be [channels, height, width], not {size!r}")
    labels = _label_names(raw, pretrained_cfg, path)
    classes = raw.get("num_classes", len(labels) or None)
    if labels and classes != len(labels):
        raise RepoError(f"{path}: num_classes is {classes}, but there are {len(labels)} label_names")
    descriptions = raw.get("label_descriptions") or pretrained_cfg.get("label_descriptions") or {}
    if not isinstance(descriptions, dict):
        raise RepoError(f"{path}: label_descriptions must map names in label_names to strings")
    return ModelConfig(
        architecture=architecture,
        label_names=labels,
        label_descriptions={label: str(descriptions[label]) for label in labels if label in descriptions},
        num_classes=classes,
        model_args={key: value for key, value in model_args.items() if key != "num_classes"},
        pretrained_cfg={**pretrained_cfg, "input_size": size},
        raw=raw,
    )


def _label_names(raw: dict[str, Any], pretrained_cfg: dict[str, Any], path: str) -> tuple[str, ...]:
    names = raw.get("label_names")
    if names is None and isinstance(by_id := raw.get("id2label"), dict):
        names = [by_id.get(str(i), by_id.get(i)) for i in range(len(by_id))]
    if names is None:
        names = pretrained_cfg.get("label_names")
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RepoError(f"{path}: label_names must be a list of strings, not {names!r}")
    if len(set(names)) != len(names) or len(names) < 2:
        raise RepoError(f"{path}: label_names must be 2 or more different names, not {names!r}")
    return tuple(names)


def read_json(path: Path, name: str = "") -> dict[str, Any]:
    """The JSON object in a file; RepoError with its `name` (default: its path) where there is none."""
    return _json_objects(path, name, lines=False)[0]


def read_jsonl(path: Path, name: str = "") -> list[dict[str, Any]]:
    """The JSON objects in the lines of a file; RepoError with its `name` (default: its path) for anything else."""
    return _json_objects(path, name, lines=True)


def _json_objects(path: Path, name: str, lines: bool) -> list[dict[str, Any]]:
    name = name or str(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = [json.loads(part) for part in (filter(str.strip, text.splitlines()) if lines else [text])]
    except FileNotFoundError:
        raise RepoError(f"{name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RepoError(f"{name} cannot be read as JSON: {first_line(error)}") from None
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            where = f"{name}, line {number}," if lines else name
            raise RepoError(f"{where} holds a {type(value).__name__}, not a JSON object")
    return values


def download(name: str, revision: str | None, files: list[str]) -> tuple[Path, str]:
    """Download the files of a model repo that match these patterns; return their folder and the commit.

    They come from the cache where it holds that commit, or where the Hub cannot be reached. Raises RepoError: the repo is
    missing or unsafe, or neither the Hub nor the cache has it.
    """
    from huggingface_hub import HfApi, snapshot_download  # slow to import, and not needed for a folder

    from hub_model.inference.hub import HUB_ERRORS, NO_ACCESS, hub_error_message

    try:
        try:
            siblings = HfApi().model_info(name, revision=revision).siblings or []
        except NO_ACCESS:
            raise
        except HUB_ERRORS:
            siblings = []  # the cache may hold it
        refuse_unsafe_files(name, (sibling.rfilename for sibling in siblings))
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except HUB_ERRORS as error:
        raise RepoError(hub_error_message(error, name, "model", revision)) from None
    return folder, folder.name
