"""The dataset repo as the app needs it: how many images of each class, and some of them to show.

In: a dataset repo of the Hub or its folder (Parquet shards `train-*`, `validation-*`, `test-*` with the
columns `image`, `label`, `file_name`). Out: counts by split and class, and samples with their original
bytes. Only the label column and the row groups that hold a wanted sample are read, so the size of the data
set does not matter.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import HfFileSystem

from hub_model.inference.errors import RepoError, first_line

SHARD = re.compile(r"(?:.*/)?(train|validation|test)(?:-\d+-of-\d+)?\.parquet$")


@dataclass(frozen=True)
class Sample:
    """One labelled image: `image` is the encoded file as the dataset holds it."""

    image: bytes
    label: str
    file_name: str


@dataclass(frozen=True)
class DatasetRepo:
    """`labels[split][shard]` are the class indices of a shard's rows; `counts[split]` follow
    `label_names`."""

    name: str
    label_names: tuple[str, ...]
    shards: dict[str, list[str]]
    labels: dict[str, list[list[int]]]
    filesystem: Any
    sources: dict[str, int] = field(default_factory=dict)  # images by where they come from, if it says so
    card: dict[str, Any] = field(default_factory=dict)  # the front matter of its README.md
    about: str = ""  # the text below it

    @property
    def counts(self) -> dict[str, list[int]]:
        """Images of each class, by split."""
        return {
            split: [sum(shard.count(i) for shard in shards) for i in range(len(self.label_names))]
            for split, shards in self.labels.items()
        }

    def samples(self, split: str, per_class: int, seed: int = 0) -> Iterator[Sample]:
        """Up to `per_class` samples of each class, drawn at random (seeded), in the order of the shards."""
        import pyarrow.parquet as pq

        rows = [
            (shard, row, label)
            for shard, labels in enumerate(self.labels.get(split, []))
            for row, label in enumerate(labels)
            if label is not None and 0 <= label < len(self.label_names)  # -1 stands for "nobody knows"
        ]
        random.Random(seed).shuffle(rows)
        taken: dict[int, int] = {}
        wanted: dict[int, set[int]] = {}
        for shard, row, label in rows:
            if taken.get(label, 0) < per_class:
                taken[label] = taken.get(label, 0) + 1
                wanted.setdefault(shard, set()).add(row)
        for shard in sorted(wanted):
            with self.filesystem.open(self.shards[split][shard]) as file:
                yield from self._read_rows(pq.ParquetFile(file), wanted[shard])

    def _read_rows(self, parquet: Any, wanted: set[int]) -> Iterator[Sample]:
        first = 0
        for group in range(parquet.num_row_groups):
            size = parquet.metadata.row_group(group).num_rows
            chosen = sorted(row - first for row in wanted if first <= row < first + size)
            if chosen:
                table = parquet.read_row_group(group, columns=["image", "label", "file_name"]).take(chosen)
                for row in table.to_pylist():
                    image = (row["image"] or {}).get("bytes") or b""
                    yield Sample(image, self.label_names[row["label"]], row.get("file_name") or "")
            first += size

    @property
    def on_hub(self) -> bool:
        return not isinstance(self.filesystem, LocalFileSystem)


def open_dataset_repo(dataset_id: str | os.PathLike[str]) -> DatasetRepo:
    """Find the shards of a Hub id (`owner/name`) or a folder and read their labels. Raises
    RepoError."""
    name, folder = str(dataset_id), Path(dataset_id)
    if not name.strip():
        raise RepoError("no dataset is named: set DATASET_ID to a dataset repo (owner/name) or a folder")
    local = folder.is_dir()
    filesystem, root = (LocalFileSystem(), str(folder)) if local else (HfFileSystem(), f"datasets/{name}")
    try:
        paths = filesystem.find(root)
    except Exception as error:  # any failure of the network or of the id comes to the same for a visitor
        raise RepoError(f"the dataset repo {name} cannot be read ({type(error).__name__})") from None
    shards: dict[str, list[str]] = {}
    for path in sorted(paths):
        if match := SHARD.match(path):
            shards.setdefault(match[1], []).append(path)
    if not shards:
        raise RepoError(f"there is no dataset repo {name} with Parquet files for train, validation and test")
    card, about = _read_card(f"{root}/README.md", filesystem)
    return replace(_read_labels(name, shards, filesystem), card=card, about=about)


def _read_card(path: str, filesystem: Any) -> tuple[dict[str, Any], str]:
    """Front matter and text of a README.md; empty where there is none that can be read."""
    try:
        with filesystem.open(path) as file:
            _, front, about = file.read(100_000).decode("utf-8", "replace").split("---\n", 2)
        card = yaml.safe_load(front)
    except (OSError, ValueError, yaml.YAMLError):
        return {}, ""
    return (card, about) if isinstance(card, dict) else ({}, about)


def _read_labels(name: str, shards: dict[str, list[str]], filesystem: Any) -> DatasetRepo:
    import pyarrow as pa
    import pyarrow.parquet as pq

    order = [split for split in ("train", "validation", "test") if split in shards]
    labels: dict[str, list[list[int]]] = {}
    label_names: list[str] = []
    sources: Counter = Counter()
    try:
        for split in order:
            for path in shards[split]:
                with filesystem.open(path) as file:
                    parquet = pq.ParquetFile(file)
                    label_names = label_names or _names(parquet.schema_arrow.metadata)
                    columns = [name for name in ("label", "source") if name in parquet.schema_arrow.names]
                    table = parquet.read(columns=columns)
                labels.setdefault(split, []).append(table.column("label").to_pylist())
                if "source" in columns:
                    sources.update(map(str, table.column("source").to_pylist()))
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise RepoError(f"the dataset repo {name} breaks the contract ({first_line(error)})") from None
    chosen = {split: shards[split] for split in order}
    return DatasetRepo(name, tuple(label_names), chosen, labels, filesystem, dict(sources))


def _names(metadata: dict[bytes, bytes] | None) -> list[str]:
    features = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    try:
        return list(features["info"]["features"]["label"]["names"])
    except KeyError:
        raise ValueError("its column 'label' has no class names") from None
