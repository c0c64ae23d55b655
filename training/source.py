"""Open and validate a dataset: a repo id or folder in, splits of undecoded rows out.

Columns, splits and labels are checked before training starts, so that a run does not fail at its end on a label in the test
split.
"""

from __future__ import annotations

import hashlib
import itertools
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import yaml
from huggingface_hub import DatasetCard, HfApi, HfFileSystem
from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

from hub_model.inference.errors import first_line
from hub_model.inference.hub import HUB_ERRORS
from training import TrainingError

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Row:
    """An encoded image with its label index, its name in errors and predictions, and its source, if known."""

    name: str
    data: bytes
    label: int
    source: str | None = None


@dataclass
class Source:
    """A dataset with validated columns and labels.

    Attributes:
        label_names: the classes, in the order of the logits.
        label_descriptions: the full name of each class.
        revision: commit of the dataset repo, or a SHA-256 over the file names and sizes of a folder.
        licence: identifier in the metadata of the dataset card; None if it has none.
        splits: the tables of train, validation and, if present, test.
        label_tables: the same with the label column only.
        labels: int64 [rows], the class index of each row of a split.
        index: class index of each value of the label column (the identity for a ClassLabel).
    """

    id: str
    revision: str
    licence: str | None
    label_names: list[str]
    label_descriptions: dict[str, str]
    image_column: str
    label_column: str
    splits: dict[str, datasets.Dataset | datasets.IterableDataset]
    label_tables: dict[str, datasets.Dataset | datasets.IterableDataset]
    labels: dict[str, np.ndarray]
    index: dict

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images in each split."""
        return {split: len(labels) for split, labels in self.labels.items()}

    def class_counts(self, split: str) -> list[int]:
        """Return the number of images of each class."""
        return np.bincount(self.labels[split], minlength=len(self.label_names)).tolist()

    def num_shards(self, split: str) -> int:
        """Return the number of shards (files) of a streamed split; 1 if it is not streamed."""
        table = self.splits[split]
        return 1 if hasattr(table, "__len__") else table.num_shards

    def shard_size(self, split: str, index: int, count: int) -> int:
        """Return the number of rows in the `index`-th of `count` equal groups of the shards of a streamed split."""
        return sum(1 for _ in self.label_tables[split].shard(num_shards=count, index=index))

    def rows(
        self,
        split: str,
        epoch: int = 0,
        selected: Iterable[bool] | None = None,
        shuffle: tuple[int, int] | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[Row]:
        """Yield the rows of a split, in stored order unless shuffled.

        Args:
            epoch: changes the order of a shuffled split.
            selected: for each row, whether to yield it (default: all); those that are not selected are read, too.
            shuffle: (seed, buffer size) for shuffling a streamed split.
            shard: (i, n) reads only the i-th of n equal groups of the shards of a streamed split.
        """
        table, (index, count) = self.splits[split], shard
        if count > 1:
            table = table.shard(num_shards=count, index=index)
        if shuffle is not None:
            table = table.shuffle(seed=shuffle[0], buffer_size=shuffle[1])
            table.set_epoch(epoch)
        try:
            selected = itertools.repeat(True) if selected is None else selected
            for position, row in itertools.compress(enumerate(table), selected):
                yield self._row(split, position, row)
        except (*HUB_ERRORS, pa.ArrowException) as error:
            raise TrainingError(f"reading {split} of {self.id} failed: {first_line(error)}") from error

    def _row(self, split: str, position: int, row: dict) -> Row:
        name = str(row.get("file_name") or f"{split}-{position:06d}")
        image, label = row[self.image_column], row[self.label_column]
        data = image and image["bytes"]
        if data is None and image and image["path"]:
            data = self._read(name, image["path"])
        if data is None:
            raise TrainingError(f"{name} of {self.id} has no image in column {self.image_column!r}")
        if label not in self.index:
            raise TrainingError(f"{name} of {self.id} has label {label!r}, which is not one of the classes")
        source = row.get("source")
        return Row(name, data, self.index[label], source if source is None else str(source))

    def _read(self, name: str, path: str) -> bytes:
        """Return an image that the table stores as a path: in the dataset's folder or in the download cache of `datasets`.

        Raises:
            TrainingError: the path leads elsewhere on this machine, or the file cannot be read.
        """
        folders = (Path(self.id), Path(HF_HOME), Path(HF_HUB_CACHE))
        try:
            if path.startswith("hf://"):  # a streamed repo of image files
                return HfFileSystem().cat_file(path)
            file = Path(path).resolve(strict=True)
            if not file.is_file() or not any(file.is_relative_to(folder.resolve()) for folder in folders):
                raise TrainingError(f"{name} of {self.id} points to {path!r}, not a file of the dataset")
            return file.read_bytes()
        except (*HUB_ERRORS, ValueError) as error:
            raise TrainingError(f"{name} of {self.id} cannot be read: {first_line(error)}") from error


def open_source(options: Namespace, streaming: bool) -> Source:
    """Open the dataset of `--dataset` and validate its columns, its splits and all labels.

    Raises:
        TrainingError: it cannot be reached or read, or lacks a column, split or label.
    """
    if not options.dataset.strip():
        raise TrainingError("--dataset is empty: pass a dataset repo OWNER/NAME or a folder")
    if find_spec("datasets"):
        from training.hub_dataset import open_tables
    else:
        from training.parquet_folder import open_tables
    tables, label_tables, values, classes = open_tables(options, streaming)
    for split, labels in values.items():
        if not labels:
            raise TrainingError(f"split {split!r} of {options.dataset} is empty")
    names, index = class_index(options, classes, values[options.train_split])
    card = card_metadata(options)
    descriptions = card.get("label_descriptions")
    descriptions = descriptions if isinstance(descriptions, dict) else {}
    return Source(
        id=str(options.dataset),
        revision=revision_of(options),
        licence=card["license"] if isinstance(card.get("license"), str) else None,
        label_names=names,
        label_descriptions={name: str(descriptions.get(name, name)) for name in names},
        image_column=options.image_column,
        label_column=options.label_column,
        splits=tables,
        label_tables=label_tables,
        labels={k: label_indices(options, k, labels, index) for k, labels in values.items()},
        index=index,
    )


def class_index(options: Namespace, classes: list[str] | None, values: list) -> tuple[list[str], dict]:
    """Return the class names and the class index of each label value.

    The names are those of the ClassLabel if there is one, else the sorted values of the training split (floats only if integral).
    """
    if classes is not None:
        names, index = classes, {i: i for i in range(len(classes))}
    else:
        unique, column = set(values), f"column {options.label_column!r} of {options.dataset}"
        if None in unique or any(value != value for value in unique):
            raise TrainingError(f"{column} has rows without a label")
        if any(isinstance(value, float) and not value.is_integer() for value in unique):
            raise TrainingError(f"{column} holds fractions, not class labels")
        index = {value: i for i, value in enumerate(sorted(unique))}
        names = [str(int(value) if isinstance(value, float) else value) for value in index]
    if len(names) < 2:
        raise TrainingError(
            f"{options.dataset} has one class only ({', '.join(names)}): at least two are needed"
        )
    return names, index


def label_indices(options: Namespace, split: str, values: list, index: dict) -> np.ndarray:
    """Return the class index of each row of a split, int64 [rows].

    Raises:
        TrainingError: a label is not one of the classes, such as the -1 of a test split without labels.
    """
    unknown = [i for i, value in enumerate(values) if value not in index]
    if unknown:
        hint = "correct them or name another split"
        if split == options.test_split:
            hint = "pass --test_split none to train without a test split"
        raise TrainingError(
            f"{len(unknown)} of {len(values)} rows in split {split!r} of {options.dataset} have a label that is not one of the "
            f"{len(index)} classes (row {unknown[0]} has label {values[unknown[0]]!r}); {hint}"
        )
    return np.array([index[value] for value in values], dtype=np.int64)


def revision_of(options: Namespace) -> str:
    """Return the commit of the dataset repo, or a SHA-256 over the file names and sizes of a folder except its card (*.md)."""
    folder = Path(options.dataset)
    if folder.is_dir():
        files = sorted(
            (str(f.relative_to(folder)), f.stat().st_size)
            for f in folder.rglob("[!.]*")
            if f.is_file() and f.suffix != ".md" and not f.relative_to(folder).parts[0].startswith(".")
        )
        return hashlib.sha256(repr(files).encode()).hexdigest()
    try:
        return HfApi().dataset_info(options.dataset, revision=options.dataset_revision).sha
    except HUB_ERRORS:
        return options.dataset_revision or "unknown (read from the cache)"


def card_metadata(options: Namespace) -> dict:
    """Return the metadata of the dataset card; {} without a readable card, as training does not depend on it."""
    folder = Path(options.dataset)
    try:
        card = DatasetCard.load(folder / "README.md" if folder.is_dir() else options.dataset)
    except (*HUB_ERRORS, ValueError, yaml.YAMLError):
        return {}
    return card.data.to_dict()
