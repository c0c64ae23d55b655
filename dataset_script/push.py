"""A built dataset folder in, one commit on the Hub out; nothing where the repo has that content already.

Speaks to whatever `HF_ENDPOINT` names, through `huggingface_hub` alone.
"""

from __future__ import annotations

import csv
import fnmatch
from collections import Counter
from pathlib import Path

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from dataset_script.source import DatasetError
from dataset_script.splits import SPLITS

COLUMNS = ("image", "label", "file_name", "sha256", "group")
OURS = ("data/*", "figures/*", "*.csv")  # what a push replaces; other files in the repo are left alone
PARTS = ("README.md", "splits.csv", "quarantine.csv", "figures/classes_bar.png", "figures/classes_pie.png")


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
        if p.is_symlink() or (p.is_file() and _stranger(p.relative_to(folder)))
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
    with (folder / "splits.csv").open(newline="", encoding="utf-8") as file:
        told = Counter(row.get("split") for row in csv.DictReader(file))
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


def _stranger(path: Path) -> bool:
    if path.parts[0] in ("data", "figures"):
        return path.suffix not in (".parquet", ".png")
    return path.as_posix() not in (*PARTS, "suspects.csv")


def _groups_of(path: Path) -> list[str]:
    try:
        with pq.ParquetFile(path) as file:
            absent = [name for name in COLUMNS if name not in file.schema_arrow.names]
            if absent:
                raise DatasetError(f"{path} breaks the contract: it has no column {', '.join(absent)}")
            return file.read(columns=["group"])["group"].to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def push(
    folder: Path, repo_id: str, *, private: bool = False, revision: str | None = None
) -> tuple[str, bool]:
    """Publish a dataset folder as one commit that makes the repo equal to it.

    Returns:
        The repo's URL and whether a commit was made (False: it held exactly this already).

    Raises:
        DatasetError: the folder breaks the contract, the name is no repo id, or the Hub cannot be reached or refuses.
    """
    check_contract(folder)
    api = HfApi()
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError(f"{repo_id!r} should look like OWNER/NAME")
        url = api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True)
        if private and not api.repo_info(repo_id, repo_type="dataset").private:
            raise DatasetError(
                f"{repo_id} is public: make it private in its settings, or push without --private"
            )
        if revision:
            api.create_branch(repo_id, repo_type="dataset", branch=revision, exist_ok=True)
        parent = api.repo_info(repo_id, repo_type="dataset", revision=revision).sha
        there = api.list_repo_files(repo_id, repo_type="dataset", revision=parent)
        info = api.create_commit(  # `upload_folder` would cut a large folder into several commits
            repo_id,
            _changes(folder, there),
            repo_type="dataset",
            revision=revision,
            parent_commit=parent,  # someone else's commit in between is refused, not overwritten
            commit_message="Publish the dataset",
        )
        return str(url), info.oid != parent
    except HFValidationError as error:
        raise DatasetError(f"{repo_id} is no repo id: {error}") from error
    except LocalTokenNotFoundError as error:
        raise DatasetError("no Hub token: run `hf auth login`, or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        raise DatasetError(_refusal(repo_id, error)) from error
    except (httpx2.HTTPError, OSError, RuntimeError) as error:  # RuntimeError: a large file was not taken
        cause = error.__cause__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, HfHubHTTPError):
            raise DatasetError(_refusal(repo_id, cause)) from error
        raise DatasetError(
            f"the Hub at {constants.ENDPOINT} cannot be reached ({type(cause or error).__name__}): check the network and "
            "HF_ENDPOINT, then push again; what has arrived is not sent twice"
        ) from error


def _changes(folder: Path, there: list[str]) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Return what makes a repo with the files `there` hold the folder's: its files, and the end of those it has no more."""
    here = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    stale = [
        name
        for name in there
        if name not in here and any(fnmatch.fnmatchcase(name, pattern) for pattern in OURS)
    ]
    return [CommitOperationDelete(name, is_folder=False) for name in stale] + [
        CommitOperationAdd(name, path) for name, path in here.items()
    ]


def _refusal(repo_id: str, error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status == 401:
        return f"the Hub at {constants.ENDPOINT} does not know you: run `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return f"the token may not write to {repo_id}: use one with write access"
    if status == 412:
        return f"someone else has changed {repo_id} meanwhile: look at it, then push again"
    return f"the Hub refused {repo_id} with status {status}: {(error.server_message or '').splitlines()[:1]}"
