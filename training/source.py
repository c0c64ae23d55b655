"""The dataset as published: a repo id or folder in, checked splits of undecoded rows out.

Everything that can be wrong with someone else's dataset is found here, before training starts, and said in one sentence: a run
must not end at its last step over a label in the test split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
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
    """An image as stored, with its label index, the name it is reported under, and where it comes from, if that is known."""

    name: str
    data: bytes
    label: int
    source: str | None = None


@dataclass
class Source:
    """A dataset whose columns and labels have been checked.

    Attributes:
        label_names: the classes, in the order of the logits.
        label_descriptions: their full names.
        revision: commit of the dataset repo, or the SHA-256 of a folder's file list and sizes.
        licence: of the images, as the dataset's card says in the Hub's short form; None where it says nothing.
        splits: the tables of train, validation and, where there is one, test.
        label_tables: the same with nothing but the label column.
        labels: int64 [rows], the class indices of each split.
        index: class index of each value of the label column; of a ClassLabel the identity.
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
        """Images of each split."""
        return {split: len(labels) for split, labels in self.labels.items()}

    def class_counts(self, split: str) -> list[int]:
        """Return how many images each class has."""
        return np.bincount(self.labels[split], minlength=len(self.label_names)).tolist()

    def num_shards(self, split: str) -> int:
        """Return of how many shards (files) a streamed split is made; 1 where it is not streamed."""
        table = self.splits[split]
        return 1 if hasattr(table, "__len__") else table.num_shards

    def shard_size(self, split: str, index: int, count: int) -> int:
        """Return how many rows the `index`-th of `count` equal groups of a streamed split's shards has."""
        return sum(1 for _ in self.label_tables[split].shard(num_shards=count, index=index))

    def rows(
        self,
        split: str,
        epoch: int = 0,
        mine: Callable[[int], bool] | None = None,
        shuffle: tuple[int, int] | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[Row]:
        """Yield the rows of a split in their stored order.

        Args:
            epoch: reseeds the shuffling.
            mine: yields the rows at the positions it is true of; the others are read, but not handed out.
            shuffle: (seed, buffer size) of a streamed shuffling.
            shard: (i, n) reads the i-th of n equal groups of a streamed split's shards, and none of the others.
        """
        table, (index, count) = self.splits[split], shard
        if count > 1:
            table = table.shard(num_shards=count, index=index)
        if shuffle is not None:
            table = table.shuffle(seed=shuffle[0], buffer_size=shuffle[1])
            table.set_epoch(epoch)
        try:
            for position, row in enumerate(table):
                if mine is None or mine(position):
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
            raise TrainingError(f"{name} of {self.id} has label {label!r}, none of the classes")
        source = row.get("source")
        return Row(name, data, self.index[label], source if source is None else str(source))

    def _read(self, name: str, path: str) -> bytes:
        """Return an image that the table holds as a path: below the dataset's folder, or where `datasets` put downloads.

        Raises:
            TrainingError: it lies elsewhere on this machine, where a dataset has no business, or cannot be read.
        """
        places = (Path(self.id), Path(HF_HOME), Path(HF_HUB_CACHE))
        try:
            if path.startswith("hf://"):  # a repo of single files, streamed
                return HfFileSystem().cat_file(path)
            file = Path(path).resolve(strict=True)
            if not file.is_file() or not any(file.is_relative_to(place.resolve()) for place in places):
                raise TrainingError(f"{name} of {self.id} points to {path!r}, no file of the dataset")
            return file.read_bytes()
        except (*HUB_ERRORS, ValueError) as error:
            raise TrainingError(f"{name} of {self.id} cannot be read: {first_line(error)}") from error


def open_source(options, streaming: bool) -> Source:
    """Open the dataset that the options name and check the columns, splits and labels of all of it.

    Raises:
        TrainingError: it cannot be reached or read, or has not what training needs.
    """
    if not options.dataset.strip():
        raise TrainingError("--dataset is empty: name a dataset repo OWNER/NAME or a folder")
    if find_spec("datasets"):
        from training.hub_dataset import open_tables
    else:
        from training.packed import open_tables
    tables, label_tables, values, classes = open_tables(options, streaming)
    for split, found in values.items():
        if not found:
            raise TrainingError(f"split {split!r} of {options.dataset} is empty")
    names, index = class_index(options, classes, values[options.train_split])
    card = card_metadata(options)
    described = card.get("label_descriptions")
    described = described if isinstance(described, dict) else {}
    return Source(
        id=str(options.dataset),
        revision=revision_of(options),
        licence=card["license"] if isinstance(card.get("license"), str) else None,
        label_names=names,
        label_descriptions={name: str(described.get(name, name)) for name in names},
        image_column=options.image_column,
        label_column=options.label_column,
        splits=tables,
        label_tables=label_tables,
        labels={k: label_indices(options, k, found, index) for k, found in values.items()},
        index=index,
    )


def class_index(options, classes: list[str] | None, values: list) -> tuple[list[str], dict]:
    """Return the class names and the index of each label value.

    A ClassLabel brings its names; else they are the values of the training split, sorted. Floats count where they are whole.
    """
    if classes is not None:
        names, index = classes, {i: i for i in range(len(classes))}
    else:
        found = set(values)
        if None in found or any(value != value for value in found):
            raise TrainingError(
                f"column {options.label_column!r} of {options.dataset} has rows without a label"
            )
        if any(isinstance(value, float) and not value.is_integer() for value in found):
            raise TrainingError(
                f"column {options.label_column!r} of {options.dataset} holds fractions, not class labels"
            )
        found = sorted(found)
        names = [str(int(value) if isinstance(value, float) else value) for value in found]
        index = {value: i for i, value in enumerate(found)}
    if len(names) < 2:
        raise TrainingError(
            f"{options.dataset} has one class only ({', '.join(names)}): there is nothing to tell apart"
        )
    return names, index


def label_indices(options, split: str, values: list, index: dict) -> np.ndarray:
    """Return the class index of each row of a split, int64 [rows].

    Raises:
        TrainingError: there are others than the classes; a test split without labels has -1.
    """
    wrong = [i for i, value in enumerate(values) if value not in index]
    if wrong:
        optional = split == options.test_split
        raise TrainingError(
            f"{len(wrong)} of {len(values)} rows in split {split!r} of {options.dataset} have a label that is none of the "
            f"{len(index)} classes (row {wrong[0]} has label {values[wrong[0]]!r}); "
            + (
                "pass --test_split none to train without a test"
                if optional
                else "correct them or name another split"
            )
        )
    return np.array([index[value] for value in values], dtype=np.int64)


def revision_of(options) -> str:
    """Return what pins the data: the repo's commit, or the SHA-256 over a folder's file names and sizes, cards aside."""
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


def card_metadata(options) -> dict:
    """Return the metadata of the dataset's card; none where there is no card that can be read: training needs none."""
    folder = Path(options.dataset)
    try:
        card = DatasetCard.load(folder / "README.md" if folder.is_dir() else options.dataset)
    except (*HUB_ERRORS, ValueError, yaml.YAMLError):
        return {}
    return card.data.to_dict()
