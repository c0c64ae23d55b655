"""From this folder to a Space repo, in one commit.

In: the files of this folder, a Space id, the ids of the model and the data set. Out: the Space repo, its
front matter naming both. A push of the same files again makes no commit.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from shutil import copyfile

import httpx2
from huggingface_hub import HfApi, SpaceCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

FOLDER = Path(__file__).parent
KINDS = {".py", ".css", ".txt", ".md"}


class PushError(ValueError):
    """The Space could not be pushed; the message is one sentence for a person."""


def space_files(out: Path, model_id: str, dataset_id: str) -> None:
    """Write the files of the Space into `out`, the README naming the model and the data set."""
    for path in sorted(FOLDER.iterdir()):
        if path.is_file() and path.suffix in KINDS:
            copyfile(path, out / path.name)
    card = SpaceCard.load(out / "README.md")
    card.data.models = [model_id]
    card.data.datasets = [dataset_id] if dataset_id else []
    card.data["preload_from_hub"] = [model_id]
    card.save(out / "README.md")


def push_space(space_id: str, model_id: str, dataset_id: str, private: bool = False) -> str:
    """Create or update the Space repo and return its address. Raises PushError."""
    for name in filter(None, (model_id, dataset_id)):
        if Path(name).exists() or name.count("/") != 1:
            raise PushError(
                f"a Space reads its model and data set from the Hub: {name!r} is no id (owner/name)"
            )
    if not model_id:
        raise PushError("no model is named: pass --model OWNER/NAME")
    api = HfApi()
    try:
        api.create_repo(space_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            space_files(Path(folder), model_id, dataset_id)
            commit = api.upload_folder(
                repo_id=space_id,
                repo_type="space",
                folder_path=folder,
                delete_patterns="*",
                commit_message=f"Show {model_id}",
            )
    except HFValidationError as error:
        raise PushError(str(error).splitlines()[0]) from None
    except (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PushError(f"{space_id} could not be pushed: {reason}") from None
    return commit.repo_url.url if hasattr(commit.repo_url, "url") else str(commit.repo_url)
