"""Model repo folder in, repo on a Hub out; and back, to see that it is the same. `HF_ENDPOINT` says which Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from hub_model.check import check
from hub_model.contract import CONFIG, files_of, find_pickle, read_config
from hub_model.inference.errors import RepoError
from space.push import is_id

UNREACHABLE = (
    httpx2.HTTPError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    HFValidationError,
    LocalTokenNotFoundError,
    OSError,
    RuntimeError,
)

# Runs in a process of its own with an empty cache: the same images through the Hub and from the folder.
COMPARE = """
import json, sys, timm, torch
repo, folder = sys.argv[1:]
hub = timm.create_model(f"hf-hub:{repo}", pretrained=True).eval()
here = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
images = torch.randn(4, *hub.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0))
from transformers import AutoModelForImageClassification
other = AutoModelForImageClassification.from_pretrained(repo).eval()
with torch.inference_mode():
    ours, local, theirs = hub(images), here(images), other(pixel_values=images).logits
names = [other.config.id2label[i] for i in range(len(other.config.id2label))]
print(json.dumps({
    "identical": torch.equal(ours, local),
    "difference": (ours - theirs).abs().max().item(),
    "timm_names": list(hub.pretrained_cfg["label_names"]),
    "transformers_names": names,
}))
"""


def push(folder: Path, repo: str, private: bool = False) -> str:
    """Publish a model repo folder in one commit and return its address; the same content makes no commit.

    Raises:
        RepoError: the folder breaks the contract, the Hub does not take it, or the repo is public and should be private.
    """
    if not is_id(repo):
        raise RepoError(f"{repo!r} is no id of a model repo (owner/name)")
    if problems := check(folder):
        raise RepoError(f"{folder} is not published: {problems[0]}")
    api = HfApi()
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        there = api.model_info(repo)
        if private and not there.private:
            raise RepoError(f"{repo} is public: make it private in its settings, or push without --private")
        parent = there.sha
        stale = set(api.list_repo_files(repo, revision=parent)) - set(files_of(folder)) - {".gitattributes"}
        done = api.create_commit(  # `upload_folder` would cut a large folder into several commits
            repo,
            [CommitOperationDelete(name, is_folder=False) for name in sorted(stale)]
            + [CommitOperationAdd(name, folder / name) for name in files_of(folder)],
            commit_message="Publish the model",
            parent_commit=parent,  # someone else's commit in between is refused, not overwritten
        )
    except UNREACHABLE as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code == 412:
            raise RepoError(
                f"someone else has changed {repo} meanwhile: look at it, then push again"
            ) from error
        raise RepoError(f"{repo} cannot be published: {reason(error)}") from error
    return done.commit_url


def verify(repo: str, against: Path | None = None) -> dict:
    """Load a repo in a fresh process with an empty cache, compare it with a folder, and return what was found.

    Raises:
        RepoError: it cannot be loaded, or is not the same.
    """
    with tempfile.TemporaryDirectory() as cache:
        try:
            refuse_code(repo, Path(cache) / "config")
            folder = against or Path(snapshot_download(repo, cache_dir=Path(cache) / "reference"))
        except UNREACHABLE as error:
            raise RepoError(f"{repo} cannot be read: {reason(error)}") from error
        environment = os.environ | {"HF_HOME": str(Path(cache) / "fresh")}
        environment.pop("HF_HUB_CACHE", None)
        command = [sys.executable, "-c", COMPARE, repo, str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RepoError(
            f"{repo} does not load: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
        )
    found = json.loads(done.stdout.splitlines()[-1])
    if not found["identical"]:
        raise RepoError(f"{repo} gives other logits than {folder}")
    if found["difference"] > 1e-4 or found["timm_names"] != found["transformers_names"]:
        raise RepoError(f"timm and transformers read {repo} differently")
    return found


def refuse_code(repo: str, cache: Path) -> None:
    """Raise RepoError for a repo that could run code here: one with a pickle, or whose `config.json` names code."""
    files = HfApi().list_repo_files(repo)
    if pickle := find_pickle(files):
        raise RepoError(f"{repo} is refused: {pickle} can hold a pickle, only safetensors are read")
    if CONFIG in files:
        try:
            read_config(Path(hf_hub_download(repo, CONFIG, cache_dir=cache)))
        except RepoError as error:
            raise RepoError(f"{repo} is refused: {error}") from None


def reason(error: BaseException) -> str:
    """Return the first line of what the Hub said, else of the innermost cause."""
    while error.__cause__ is not None and not getattr(error, "server_message", None):
        error = error.__cause__
    text = getattr(error, "server_message", None) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]
