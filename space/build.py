"""The Space repo: `app.py`, this package, `hub_model/inference`, the front matter and pinned requirements.

In: the ids of the model and the dataset. Out: a self-contained folder that `python app.py` runs, or one commit to a Space
repo with the same files.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from shutil import copyfile

from huggingface_hub import SpaceCard

import hub_model
from hub_model.inference.errors import RepoError
from hub_model.inference.hub import is_repo_id
from hub_model.publish import check_access, find_repo, links, push_folder

PACKAGES = {"space": Path(__file__).parent, "hub_model": Path(hub_model.__file__).parent}
FILES = {
    "space": ["*.py", "*.css", "*.js", "locales/*.yaml"],
    "hub_model": ["__init__.py", "publish.py", "inference/*.py"],  # publish.py: visitors push corrected cells
}
REPO, LINKS = "OWNER/NAME", "<!-- links: model and dataset -->"  # placeholders in README.md
TOP = ("README.md", "requirements.txt", "pre-requirements.txt")  # a Space reads them at the root of the repo
APP = '"""The entry of the Space."""\n\nfrom space.app import main\n\nmain()\n'


def build_space(out: Path, model_id: str, dataset_id: str, space_id: str = REPO) -> list[Path]:
    """Write the complete Space repo into the empty folder `out` and return its files. Raises RepoError.

    The card links model and dataset; its snippet calls `space_id`.
    """
    check_empty(out)
    for package, patterns in FILES.items():
        for source in (path for pattern in patterns for path in PACKAGES[package].glob(pattern)):
            target = out / package / source.relative_to(PACKAGES[package])
            target.parent.mkdir(parents=True, exist_ok=True)
            copyfile(source, target)
    for name in TOP:
        copyfile(PACKAGES["space"] / name, out / name)
    (out / "app.py").write_text(APP)
    card = SpaceCard.load(out / "README.md")
    card.data.models = [model_id]
    card.data.datasets = [dataset_id] if dataset_id else []
    card.data["preload_from_hub"] = [model_id]
    card.text = card.text.replace(f'"{REPO}"', f'"{space_id}"')
    card.text = card.text.replace(LINKS, links(model=model_id, dataset=dataset_id))
    card.save(out / "README.md")
    return sorted(path for path in out.rglob("*") if path.is_file())


def check_empty(out: Path) -> None:
    """Raise RepoError unless `out` is an empty directory or does not exist."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RepoError(f"{out} is not an empty directory: name a new one")


def check_ids(model_id: str, dataset_id: str) -> None:
    """Raise RepoError unless both are repo ids: a Space reads its repos from the Hub. The dataset may be empty."""
    if not model_id:
        raise RepoError("no model given: pass --model OWNER/NAME")
    for name in filter(None, (model_id, dataset_id)):
        if Path(name).exists() or not is_repo_id(name):
            raise RepoError(
                f"a Space reads its model and dataset from the Hub: {name!r} is not a repo id (owner/name)"
            )


def push_space(space_id: str, model_id: str, dataset_id: str, private: bool = False) -> str:
    """Create or update the Space repo in one commit and return its URL.

    Raises:
        RepoError: an id is wrong, the token has no write access, the model or dataset is not on the Hub, or the Hub refuses.
    """
    check_ids(model_id, dataset_id)
    check_access(space_id)
    for kind, name in (("model", model_id), ("dataset", dataset_id)):
        try:
            if name:
                find_repo(name, kind)
        except RepoError as error:
            raise RepoError(f"{error}: name another with --{kind}") from error
    with tempfile.TemporaryDirectory() as folder:
        build_space(Path(folder), model_id, dataset_id, space_id)
        return push_folder(Path(folder), space_id, "space", private, f"Show {model_id}")
