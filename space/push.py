"""From this folder to a Space repo, in one commit.

In: the files of this folder, a Space id, the ids of the model and the dataset. Out: the Space repo, its
front matter naming both. A push of the same files again makes no commit.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from shutil import copyfile

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, SpaceCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from hub_model.inference.errors import RepoError

FOLDER = Path(__file__).parent
KINDS = {".py", ".css", ".txt", ".md"}


def space_files(out: Path, model_id: str, dataset_id: str) -> None:
    """Write the files of the Space into `out`, the README naming the model and the dataset."""
    for path in sorted(FOLDER.iterdir()):
        if path.is_file() and path.suffix in KINDS:
            copyfile(path, out / path.name)
    card = SpaceCard.load(out / "README.md")
    card.data.models = [model_id]
    card.data.datasets = [dataset_id] if dataset_id else []
    card.data["preload_from_hub"] = [model_id]
    card.save(out / "README.md")


def is_id(name: str) -> bool:
    """Whether it is an `owner/name` that a Hub takes."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def push_space(space_id: str, model_id: str, dataset_id: str, private: bool = False) -> str:
    """Create or update the Space repo and return its address. Raises RepoError."""
    for name in filter(None, (model_id, dataset_id)):
        if Path(name).exists() or not is_id(name):
            raise RepoError(
                f"a Space reads its model and dataset from the Hub: {name!r} is no id (owner/name)"
            )
    if not model_id:
        raise RepoError("no model is named: pass --model OWNER/NAME")
    if not is_id(space_id):
        raise RepoError(f"{space_id!r} is no id of a Space (owner/name)")
    api = HfApi()
    try:
        api.create_repo(
            space_id, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True
        )
        info = api.space_info(space_id)
        if private and not info.private:
            raise RepoError(
                f"{space_id} is public: make it private in its settings, or push without --private"
            )
        parent = info.sha
        there = api.list_repo_files(space_id, repo_type="space", revision=parent)
        with tempfile.TemporaryDirectory() as folder:
            space_files(Path(folder), model_id, dataset_id)
            here = {path.name: path for path in sorted(Path(folder).iterdir())}
            stale = sorted(set(there) - set(here) - {".gitattributes"})
            commit = api.create_commit(
                space_id,
                [CommitOperationDelete(name, is_folder=False) for name in stale]
                + [CommitOperationAdd(name, path) for name, path in here.items()],
                repo_type="space",
                commit_message=f"Show {model_id}",
                parent_commit=parent,  # someone else's commit in between is refused, not overwritten
            )
    except (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code == 412:
            raise RepoError(
                f"someone else has changed {space_id} meanwhile: look at it, then push again"
            ) from None
        text = getattr(error, "server_message", None) or str(error)
        reason = (text.strip().splitlines() or [type(error).__name__])[0]
        raise RepoError(f"{space_id} could not be pushed: {reason}") from None
    return commit.repo_url.url if hasattr(commit.repo_url, "url") else str(commit.repo_url)
