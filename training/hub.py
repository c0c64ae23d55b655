"""The run on the Hub: its last checkpoint on a branch while it trains, from which another machine resumes.

A branch may be public, so it holds no pickle: the files of a checkpoint travel as the bytes of one safetensors file, and those
that torch reads again, optimizer and random state, are read with `weights_only`.
"""

from __future__ import annotations

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
from hub_model.inference.hub import HUB_ERRORS, hub_refusal
from hub_model.publish import check_access, push_folder
from training import TrainingError
from training.checkpoint import find_damage

BRANCH = "checkpoint"
CHECKPOINT = "checkpoint.safetensors"
RUN_FILES = ("args.json", "config.json", "model.safetensors")


def check_hub(options: Namespace) -> None:
    """Find out before the first epoch, not after the last, that nothing can be pushed.

    Raises:
        TrainingError: there is no token, or it is not one of the repo's owner.
    """
    if not options.push_to_hub:
        return
    try:
        check_access(options.hub_model_id)
    except RepoError as error:
        raise TrainingError(f"--push_to_hub cannot work: {error}") from error


def push_checkpoint(options: Namespace, checkpoint: Path) -> None:
    """Push a checkpoint to its branch; where that fails say so, and let the training continue."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in RUN_FILES:
            if (options.output_dir / name).is_file():
                shutil.copyfile(options.output_dir / name, folder / name)
        files = {file.name: bytearray(file.read_bytes()) for file in checkpoint.iterdir()}
        tensors = {name: torch.frombuffer(data, dtype=torch.uint8) for name, data in files.items()}
        save_file(tensors, folder / CHECKPOINT, metadata={"name": checkpoint.name})
        message, private = f"Checkpoint {checkpoint.name}", options.hub_private_repo
        try:
            push_folder(folder, options.hub_model_id, "model", private, message, revision=BRANCH)
        except RepoError as error:
            print(f"the checkpoint was not pushed: {error}", flush=True)


def fetch_checkpoint(options: Namespace) -> None:
    """Bring a run whose folder is not on this machine back from its branch, where there is one.

    Raises:
        TrainingError: the Hub does not answer, or what it has is damaged.
    """
    folder = options.output_dir
    if not options.resume or options.hub_strategy != "checkpoint" or (folder / "args.json").exists():
        return
    repo = options.hub_model_id
    try:
        found = Path(snapshot_download(repo, revision=BRANCH, allow_patterns=[*RUN_FILES, CHECKPOINT]))
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return  # nothing was pushed yet
    except HUB_ERRORS as error:
        raise TrainingError(f"no checkpoint can be fetched: {hub_refusal(error, repo)}") from error
    with tempfile.TemporaryDirectory() as place:
        try:
            checkpoint = unpack(found / CHECKPOINT, Path(place) / "checkpoints")
        except (FileNotFoundError, SafetensorError, LookupError, TypeError) as error:
            raise TrainingError(f"the checkpoint of {repo} is damaged: {first_line(error)}") from error
        if damage := find_damage(checkpoint):
            raise TrainingError(f"the checkpoint of {repo} is damaged: {damage}")
        for name in RUN_FILES:
            if (found / name).is_file():
                shutil.copyfile(found / name, Path(place) / name)
        shutil.copytree(place, folder, dirs_exist_ok=True)


def unpack(packed: Path, out: Path) -> Path:
    """Write the checkpoint that a safetensors file holds below `out`, and return its folder."""
    with safe_open(packed, framework="pt") as file:
        name, files = file.metadata()["name"], list(file.keys())
        if any(Path(each).name != each for each in (name, *files)):
            raise TrainingError(f"{packed.name} names files outside of the checkpoint")
        checkpoint = out / name
        checkpoint.mkdir(parents=True)
        for each in files:
            (checkpoint / each).write_bytes(file.get_tensor(each).numpy().tobytes())
    return checkpoint
