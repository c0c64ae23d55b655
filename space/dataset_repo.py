"""The dataset repo as the app needs it: image counts by class, and samples to show.

In: a dataset repo on the Hub or its folder (Parquet shards `train-*`, `validation-*`, `test-*` with the columns `image`,
`label`, `file_name`). Out: counts by split and class, and samples with their original bytes. Only the label column and the
row groups that contain a requested sample are read, so the dataset can be of any size.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import HfFileSystem

from hub_model.inference.errors import RepoError, first_line

SHARD = re.compile(r"(?:.*/)?(train|validation|test)(?:-\d+-of-\d+)?\.parquet$")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Sample:
    """One labelled image: `image` is the encoded file as the dataset holds it."""

    image: bytes
    label: str
    file_name: str


@dataclass(frozen=True)
class DatasetRepo:
    """`labels[split][shard]` are the class indices of a shard's rows; `counts[split]` follows `label_names`."""

    name: str
    label_names: tuple[str, ...]
    shards: dict[str, list[str]]
    labels: dict[str, list[list[int]]]
    filesystem: Any
    sources: dict[str, int] = field(default_factory=dict)  # images by the column `source`, where there is one
    card: dict[str, Any] = field(default_factory=dict)  # the front matter of README.md
    about: str = ""  # the text of README.md below the front matter

    @property
    def counts(self) -> dict[str, list[int]]:
        """Images of each class, by split."""
        return {
            split: [sum(shard.count(i) for shard in shards) for i in range(len(self.label_names))]
            for split, shards in self.labels.items()
        }

    @property
    def on_hub(self) -> bool:
        return not isinstance(self.filesystem, LocalFileSystem)

    def samples(self, split: str, per_class: int, seed: int = 0) -> Iterator[Sample]:
        """Up to `per_class` random samples of each class (seeded), in the order of the shards."""
        rows = [
            (shard, row, label)
            for shard, labels in enumerate(self.labels.get(split, []))
            for row, label in enumerate(labels)
            if label is not None and 0 <= label < len(self.label_names)  # -1: unlabelled
        ]
        random.Random(seed).shuffle(rows)
        per_label: Counter = Counter()
        chosen: dict[int, set[int]] = defaultdict(set)
        for shard, row, label in rows:
            if per_label[label] < per_class:
                per_label[label] += 1
                chosen[shard].add(row)
        for shard in sorted(chosen):
            with self.filesystem.open(self.shards[split][shard]) as file:
                yield from self._read_rows(pq.ParquetFile(file), chosen[shard])

    def _read_rows(self, parquet: pq.ParquetFile, rows: set[int]) -> Iterator[Sample]:
        start = 0
        for group in range(parquet.num_row_groups):
            end = start + parquet.metadata.row_group(group).num_rows
            if indices := sorted(row - start for row in rows if start <= row < end):
                table = parquet.read_row_group(group, columns=["image", "label", "file_name"])
                for row in table.take(indices).to_pylist():
                    image = (row["image"] or {}).get("bytes") or b""
                    yield Sample(image, self.label_names[row["label"]], row.get("file_name") or "")
            start = end


def open_dataset_repo(dataset_id: str | os.PathLike[str]) -> DatasetRepo:
    """Find the shards of a Hub id (`owner/name`) or a folder and read their labels. Raises RepoError."""
    name = str(dataset_id)
    if not name.strip():
        raise RepoError("no dataset is named: set DATASET_ID to a dataset repo (owner/name) or a folder")
    local = Path(dataset_id).is_dir()
    filesystem, root = (LocalFileSystem(), name) if local else (HfFileSystem(), f"datasets/{name}")
    try:
        paths = sorted(filesystem.find(root))
    except Exception as error:  # of the network, of the Hub or of the id: visitors see one sentence for all
        raise RepoError(f"the dataset repo {name} cannot be read ({type(error).__name__})") from None
    by_split = {split: [p for p in paths if (m := SHARD.match(p)) and m[1] == split] for split in SPLITS}
    shards = {split: files for split, files in by_split.items() if files}
    if not shards:
        raise RepoError(f"there is no dataset repo {name} with Parquet files for train, validation and test")
    try:
        label_names, labels, sources = _read_labels(shards, filesystem)
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise RepoError(f"the dataset repo {name} breaks the contract ({first_line(error)})") from None
    card, about = _read_card(f"{root}/README.md", filesystem)
    return DatasetRepo(name, label_names, shards, labels, filesystem, sources, card, about)


def _read_labels(
    shards: dict[str, list[str]], filesystem: Any
) -> tuple[tuple[str, ...], dict[str, list[list[int]]], dict[str, int]]:
    """Class names, labels by split and shard, and images by source."""
    names: list[str] = []
    labels: dict[str, list[list[int]]] = {split: [] for split in shards}
    sources: Counter = Counter()
    for split, paths in shards.items():
        for path in paths:
            with filesystem.open(path) as file:
                parquet = pq.ParquetFile(file)
                names = names or _class_names(parquet.schema_arrow.metadata)
                columns = [name for name in ("label", "source") if name in parquet.schema_arrow.names]
                table = parquet.read(columns=columns)
            labels[split].append(table.column("label").to_pylist())
            if "source" in columns:
                sources.update(map(str, table.column("source").to_pylist()))
    return tuple(names), labels, dict(sources)


def _class_names(metadata: dict[bytes, bytes] | None) -> list[str]:
    features = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    try:
        return list(features["info"]["features"]["label"]["names"])
    except KeyError:
        raise ValueError("its column 'label' has no class names") from None


def _read_card(path: str, filesystem: Any) -> tuple[dict[str, Any], str]:
    """Front matter and text of a README.md; empty where it is missing or malformed."""
    try:
        with filesystem.open(path) as file:
            _, front, about = file.read(100_000).decode("utf-8", "replace").split("---\n", 2)
        card = yaml.safe_load(front)
    except (OSError, ValueError, yaml.YAMLError):
        return {}, ""
    return (card, about) if isinstance(card, dict) else ({}, about)
