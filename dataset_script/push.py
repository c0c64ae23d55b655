"""Pushes a built dataset folder to the Hub in one commit, or in none if the repo is already up to date.

Uses only `huggingface_hub`, with the Hub at `HF_ENDPOINT`.
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
from hub_model.inference.errors import first_line
from hub_model.publish import Published, check_repo_id, push_folder

COLUMNS = ("image", "label", "file_name", "sha256", "group")
OURS = ("data/*", "figures/*", "*.csv")  # files that a push replaces or deletes; others in the repo are kept
FILES = ("README.md", "splits.csv", "rejected.csv", "figures/classes.jpg", "figures/classes_bar.png",
         "figures/classes_pie.png")  # fmt: skip


def check_contract(folder: Path) -> None:
    """Check that a folder is a complete dataset as written by `build`.

    Raises:
        DatasetError: names the file that is missing or wrong.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"{folder} is not a directory: build one with `python -m dataset_script build RAW {folder}`"
        )
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise DatasetError(f"{folder} is not a complete dataset: {', '.join(missing)} is missing")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or (path.is_file() and _is_foreign(path.relative_to(folder))):
            raise DatasetError(f"{path} does not belong in a dataset repo: remove it, or rebuild the folder")
    groups, counts = {}, Counter()
    for split in SPLITS:
        for path in sorted((folder / "data").glob(f"{split}-*-of-*.parquet")):
            for group in _groups_of(path):
                counts[split] += 1
                if groups.setdefault(group, split) != split:
                    raise DatasetError(
                        f"{path}: group {group} is in {groups[group]} and in {split}; rebuild the folder"
                    )
    if empty := [split for split in SPLITS if not counts[split]]:
        raise DatasetError(f"{folder}/data has no images for the split {', '.join(empty)}")
    try:
        with (folder / "splits.csv").open(newline="", encoding="utf-8") as file:
            in_table = Counter(row.get("split") for row in csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{folder}/splits.csv cannot be read: {first_line(error)}") from error
    try:
        infos = DatasetCard.load(folder / "README.md").data.get("dataset_info") or {}
        in_card = {item["name"]: item["num_examples"] for item in infos.get("splits", ())}
    except (yaml.YAMLError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{folder}/README.md has front matter that is not as `build` wrote it: fix it, or rebuild the folder"
        ) from error
    for name, numbers in (("splits.csv", dict(in_table)), ("README.md", in_card)):
        if numbers != dict(counts):
            raise DatasetError(
                f"{folder}/{name} counts {numbers}, but the Parquet files hold {dict(counts)}: rebuild the folder"
            )


def _is_foreign(path: Path) -> bool:
    if path.parts[0] in ("data", "figures"):
        return path.suffix not in (".parquet", ".png", ".jpg")
    return path.as_posix() not in (*FILES, "label_issues.csv")


def _groups_of(path: Path) -> list[str]:
    try:
        with pq.ParquetFile(path) as file:
            if missing := [name for name in COLUMNS if name not in file.schema_arrow.names]:
                raise DatasetError(f"{path} has no column {', '.join(missing)}: rebuild the folder")
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
    """Push a dataset folder in one commit that replaces the files in the repo; files that are not of a dataset are kept.

    The card is rendered for the repo, with links to `model` and `space` if given.

    Raises:
        DatasetError: the folder is not a complete dataset.
        RepoError: a name is not a repo id, or the Hub cannot be reached or refuses.
    """
    for name in filter(None, (repo_id, model, space)):
        check_repo_id(name)
    check_contract(folder)
    card = rendered_for((folder / "README.md").read_text(encoding="utf-8"), repo_id, model, space)
    with tempfile.TemporaryDirectory() as name:  # links to the same files, and the rendered card
        staging = Path(name)
        for path in filter(Path.is_file, folder.rglob("*")):
            link = staging / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        (staging / "README.md").unlink()
        (staging / "README.md").write_text(card, encoding="utf-8")
        return push_folder(
            staging, repo_id, "dataset", private, "Publish the dataset", revision=revision, stale=OURS
        )
