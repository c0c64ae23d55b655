"""A model repo, checked before anything of it is used.

In: a Hub id (`owner/name`, optionally a revision) or the folder of a model repo. Out: a `ModelRepo` with the
paths of its files and what its `config.json` says. Safetensors only: a repo that holds a pickle or names
code of its own (`auto_map`) is refused by name, whether or not that file would have been read.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hub_model.inference.errors import RepoError

PICKLES = {".bin", ".pt", ".pth", ".tar", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".mar"}
WANTED = ["*.json", "*.jsonl", "*.safetensors", "onnx/*.onnx", "logits_*.parquet", "README.md"]
# Arguments of timm.create_model that would make it fetch or unpickle something: a config has no say in them.
LOADING_ARGS = {
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
    "num_classes",
}


@dataclass(frozen=True)
class ModelRepo:
    """A checked model repo on this machine. `commit` is None for a plain folder."""

    name: str
    folder: Path
    commit: str | None
    architecture: str
    model_args: dict[str, Any]
    pretrained_cfg: dict[str, Any]
    label_names: tuple[str, ...]
    label_descriptions: dict[str, str]

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
        return _read_object(path, self.name) if path.is_file() else None

    def read_jsonl(self, name: str) -> list[dict[str, Any]]:
        """The objects of a JSON-lines file; empty when the repo has no such file."""
        path = self.folder / name
        if not path.is_file():
            return []
        try:
            return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        except ValueError as error:
            raise RepoError(f"{self.name}: {name} is not JSON lines ({error})") from None


def open_model_repo(model_id: str | os.PathLike[str], revision: str | None = None) -> ModelRepo:
    """Find, download if need be, and check a model repo.

    Raises RepoError: repo missing or unreachable, pickle or code inside, a file missing, a broken
    config.
    """
    if not str(model_id).strip():
        raise RepoError("no model is named: set MODEL_ID to a model repo (owner/name) or a folder")
    name = str(model_id).removeprefix("hf-hub:").removeprefix("hf_hub:")
    folder, commit = Path(model_id), None
    if not folder.is_dir():
        folder, commit = _download(name, revision)
    refuse_unsafe_files(name, [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()])
    return _read_config(name, folder, commit)


def refuse_unsafe_files(name: str, files: list[str]) -> None:
    """Raise RepoError naming the first file that only an unpickler could read."""
    for file in sorted(files):
        if PurePosixPath(file).suffix.lower() in PICKLES:
            raise RepoError(
                f"{name} is refused: {file} is a pickle, which can run code; only safetensors are read"
            )


def _download(name: str, revision: str | None) -> tuple[Path, str]:
    from httpx2 import HTTPError  # what huggingface_hub 2 raises when no Hub answers
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().model_info(name, revision=revision)
        refuse_unsafe_files(name, [sibling.rfilename for sibling in info.siblings or []])
    except HFValidationError:
        raise RepoError(f"{name!r} is neither a folder nor the id of a model repo (owner/name)") from None
    except (GatedRepoError, RepositoryNotFoundError):
        raise RepoError(f"there is no model repo {name} that may be read from here") from None
    except RevisionNotFoundError:
        raise RepoError(f"the model repo {name} has no revision {revision!r}") from None
    except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError):
        pass  # the Hub does not answer: an earlier download, if there is one, will do
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=WANTED)
    except (LocalEntryNotFoundError, HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError):
        raise RepoError(f"the model repo {name} cannot be fetched: the Hub does not answer") from None
    return Path(folder), Path(folder).name


def _read_config(name: str, folder: Path, commit: str | None) -> ModelRepo:
    for needed in ("config.json", "model.safetensors"):
        if not (folder / needed).is_file():
            raise RepoError(f"{name} breaks the contract: it has no {needed}")
    config = _read_object(folder / "config.json", name)
    if "auto_map" in config or "custom_pipelines" in config:
        raise RepoError(f"{name} is refused: its config.json names code of its own (auto_map)")
    pretrained_cfg = config.get("pretrained_cfg", config)  # timm's older configs are flat
    pretrained_cfg = pretrained_cfg if isinstance(pretrained_cfg, dict) else {}
    labels = config.get("label_names") or pretrained_cfg.get("label_names")
    if not (isinstance(labels, list) and len(labels) > 1 and all(isinstance(label, str) for label in labels)):
        raise RepoError(f"{name} breaks the contract: config.json has no list 'label_names'")
    if config.get("num_classes", len(labels)) != len(labels) or len(set(labels)) != len(labels):
        raise RepoError(
            f"{name} breaks the contract: {len(set(labels))} different label_names for "
            f"{config.get('num_classes')} classes in config.json"
        )
    descriptions = config.get("label_descriptions") or pretrained_cfg.get("label_descriptions") or {}
    model_args = config.get("model_args") or {}
    if not (isinstance(descriptions, dict) and isinstance(model_args, dict)):
        raise RepoError(f"{name} breaks the contract: label_descriptions and model_args must be objects")
    return ModelRepo(
        name=name,
        folder=folder,
        commit=commit,
        architecture=str(config.get("architecture", "")),
        model_args={
            key: value for key, value in model_args.items() if key not in LOADING_ARGS | {"num_classes"}
        },
        pretrained_cfg=pretrained_cfg,
        label_names=tuple(labels),
        label_descriptions={label: str(descriptions.get(label, label)) for label in labels},
    )


def _read_object(path: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise RepoError(f"{name} breaks the contract: {path.name} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise RepoError(f"{name} breaks the contract: {path.name} is not a JSON object")
    return value
