"""A built dataset folder in, one commit on the Hub out; nothing where the repo has that content already.

Speaks to whatever `HF_ENDPOINT` names, through `huggingface_hub` alone.
"""

from __future__ import annotations

import csv
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from huggingface_hub import DatasetCard

from dataset_script.card import rendered_for
from dataset_script.source import DatasetError
from dataset_script.splits import SPLITS
from hub_model.inference.errors import RepoError, first_line
from hub_model.inference.hub import is_repo_id
from hub_model.publish import Published, push_folder

COLUMNS = ("image", "label", "file_name", "sha256", "group")
OURS = ("data/*", "figures/*", "*.csv")  # what a push replaces; other files in the repo are left alone
PARTS = ("README.md", "splits.csv", "rejected.csv", "figures/classes.jpg", "figures/classes_bar.png",
         "figures/classes_pie.png")  # fmt: skip


def check_contract(folder: Path) -> None:
    """Check that a folder is a whole dataset as `build` makes it.

    Raises:
        DatasetError: what breaks the contract, by file.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"{folder} is not a directory: build one with `python -m dataset_script build RAW {folder}`"
        )
    missing = [name for name in PARTS if not (folder / name).is_file()]
    if missing:
        raise DatasetError(f"{folder} breaks the contract of a dataset repo: {', '.join(missing)} is missing")
    odd = [
        p
        for p in sorted(folder.rglob("*"))
        if p.is_symlink() or (p.is_file() and _is_foreign(p.relative_to(folder)))
    ]
    if odd:
        raise DatasetError(
            f"{odd[0]} does not belong in a dataset repo: remove it, or build the folder again"
        )
    groups, counts = {}, Counter()
    for split in SPLITS:
        for path in sorted((folder / "data").glob(f"{split}-*-of-*.parquet")):
            for group in _groups_of(path):
                counts[split] += 1
                if groups.setdefault(group, split) != split:
                    raise DatasetError(
                        f"{path}: group {group} is in {groups[group]} and in {split}; build the folder again"
                    )
    empty = [split for split in SPLITS if not counts[split]]
    if empty:
        raise DatasetError(f"{folder}/data has no images for the split {', '.join(empty)}")
    try:
        with (folder / "splits.csv").open(newline="", encoding="utf-8") as file:
            told = Counter(row.get("split") for row in csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{folder}/splits.csv cannot be read: {first_line(error)}") from error
    try:
        infos = DatasetCard.load(folder / "README.md").data.get("dataset_info") or {}
        written = {item["name"]: item["num_examples"] for item in infos.get("splits", ())}
    except (yaml.YAMLError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{folder}/README.md has front matter that is not what `build` wrote: mend it, or build the folder again"
        ) from error
    for name, numbers in (("splits.csv", dict(told)), ("README.md", written)):
        if numbers != dict(counts):
            raise DatasetError(
                f"{folder}/{name} counts {numbers}, the Parquet files hold {dict(counts)}: build the folder again"
            )


def _is_foreign(path: Path) -> bool:
    if path.parts[0] in ("data", "figures"):
        return path.suffix not in (".parquet", ".png", ".jpg")
    return path.as_posix() not in (*PARTS, "label_issues.csv")


def _groups_of(path: Path) -> list[str]:
    try:
        with pq.ParquetFile(path) as file:
            absent = [name for name in COLUMNS if name not in file.schema_arrow.names]
            if absent:
                raise DatasetError(f"{path} breaks the contract: it has no column {', '.join(absent)}")
            return file.read(columns=["group"])["group"].to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read as Parquet: {first_line(error)}") from error


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    model: str | None = None,
    space: str | None = None,
) -> Published:
    """Publish a dataset folder as one commit that makes the repo equal to it; files of others in the repo stay.

    The card is rendered for that repo, and links `model` and `space` where they are named.

    Raises:
        DatasetError: the folder breaks the contract.
        RepoError: the name is not a repo id, or the Hub cannot be reached or refuses.
    """
    for name in filter(None, (repo_id, model, space)):
        if not is_repo_id(name):
            raise RepoError(f"{name!r} is not a repo id (OWNER/NAME)")
    check_contract(folder)
    with tempfile.TemporaryDirectory() as place:  # the same files, and a card that names the repo
        for path in (path for path in folder.rglob("*") if path.is_file()):
            link = Path(place, path.relative_to(folder))
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        card = Path(place, "README.md")
        card.unlink()
        text = (folder / "README.md").read_text(encoding="utf-8")
        card.write_text(rendered_for(text, repo_id, model, space), encoding="utf-8")
        return push_folder(
            Path(place), repo_id, "dataset", private, "Publish the dataset", revision=revision, stale=OURS
        )
