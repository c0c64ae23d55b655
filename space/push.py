"""From this folder to a Space repo, in one commit.

In: the files of this folder, a Space id, the ids of the model and the dataset. Out: the Space repo, its
front matter naming both. A push of the same files again makes no commit.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from shutil import copyfile

from huggingface_hub import SpaceCard

from hub_model.inference.errors import RepoError
from hub_model.inference.model_repo import is_repo_id
from hub_model.publish import push_folder

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


def push_space(space_id: str, model_id: str, dataset_id: str, private: bool = False) -> str:
    """Create or update the Space repo and return its address. Raises RepoError."""
    for name in filter(None, (model_id, dataset_id)):
        if Path(name).exists() or not is_repo_id(name):
            raise RepoError(
                f"a Space reads its model and dataset from the Hub: {name!r} is no id (owner/name)"
            )
    if not model_id:
        raise RepoError("no model is named: pass --model OWNER/NAME")
    with tempfile.TemporaryDirectory() as folder:
        space_files(Path(folder), model_id, dataset_id)
        return push_folder(Path(folder), space_id, "space", private, f"Show {model_id}")
