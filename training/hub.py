"""Checkpoints on a branch of the model repo, from which a run can be resumed on another machine.

The branch may be public, so it holds no pickle: the files of a checkpoint are stored as the bytes of one safetensors file, and
the optimizer and random states among them are loaded by torch with `weights_only`.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from argparse import Namespace
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hub_model.inference.errors import RepoError, first_line
from hub_model.inference.hub import HUB_ERRORS, hub_error_message
from hub_model.publish import check_access, push_folder
from training import TrainingError
from training.checkpoint import find_damage

BRANCH = "checkpoint"
CHECKPOINT = "checkpoint.safetensors"
RUN_FILES = ("args.json", "config.json", "model.safetensors")
SAFE_NAME = re.compile(r"\w[\w.-]*")  # a plain name, without separators, not . or ..


def check_hub(options: Namespace) -> None:
    """Check before training that the model can be pushed.

    Raises:
        TrainingError: there is no token, or it has no write access to the repo.
    """
    if not options.push_to_hub:
        return
    try:
        check_access(options.hub_model_id)
    except RepoError as error:
        raise TrainingError(f"--push_to_hub cannot work: {error}") from error


def push_checkpoint(options: Namespace, checkpoint: Path) -> None:
    """Push a checkpoint and the run's files to the branch; a failure is printed and does not stop the training."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_run_files(options.output_dir, folder)
        files = {file.name: bytearray(file.read_bytes()) for file in checkpoint.iterdir()}
        tensors = {name: torch.frombuffer(data, dtype=torch.uint8) for name, data in files.items()}
        save_file(tensors, folder / CHECKPOINT, metadata={"name": checkpoint.name})
        message, private = f"Checkpoint {checkpoint.name}", options.hub_private_repo
        try:
            push_folder(folder, options.hub_model_id, "model", private, message, revision=BRANCH)
        except RepoError as error:
            print(f"the checkpoint was not pushed: {error}", flush=True)


def fetch_checkpoint(options: Namespace) -> None:
    """With `--resume`, restore a run that is not on this machine from its branch, if there is one.

    Raises:
        TrainingError: the Hub cannot be reached, or the checkpoint is damaged.
    """
    folder = options.output_dir
    if not options.resume or options.hub_strategy != "checkpoint" or (folder / "args.json").exists():
        return
    repo = options.hub_model_id
    try:
        snapshot = Path(snapshot_download(repo, revision=BRANCH, allow_patterns=[*RUN_FILES, CHECKPOINT]))
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return  # nothing has been pushed yet
    except HUB_ERRORS as error:
        raise TrainingError(f"the checkpoint cannot be fetched: {hub_error_message(error, repo)}") from error
    with tempfile.TemporaryDirectory() as temporary:
        try:
            checkpoint = unpack(snapshot / CHECKPOINT, Path(temporary) / "checkpoints")
        except (FileNotFoundError, SafetensorError, LookupError, TypeError) as error:
            raise TrainingError(f"the checkpoint of {repo} is damaged: {first_line(error)}") from error
        if damage := find_damage(checkpoint):
            raise TrainingError(f"the checkpoint of {repo} is damaged: {damage}")
        copy_run_files(snapshot, Path(temporary))
        shutil.copytree(temporary, folder, dirs_exist_ok=True)


def copy_run_files(source: Path, target: Path) -> None:
    """Copy those of `RUN_FILES` that exist."""
    for name in RUN_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def unpack(packed: Path, out: Path) -> Path:
    """Extract the checkpoint in a safetensors file into a new folder in `out`, and return that folder."""
    with safe_open(packed, framework="pt") as file:
        checkpoint, names = file.metadata()["name"], list(file.keys())
        if not all(SAFE_NAME.fullmatch(name) for name in (checkpoint, *names)):
            raise TrainingError(f"{packed.name} names files outside of the checkpoint")
        folder = out / checkpoint
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_bytes(file.get_tensor(name).numpy().tobytes())
    return folder
