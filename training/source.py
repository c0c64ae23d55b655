"""The dataset as published: a repo id or folder in, checked splits of undecoded rows out.

Everything that can be wrong with someone else's dataset is found here, before training starts, and said in one sentence: a run
must not end at its last step over a label in the test split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import httpx2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from datasets.builder import Key
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.utils.file_utils import xopen
from huggingface_hub import DatasetCard, HfApi, HfFileSystem
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from hub_model.inference.errors import first_line
from training import TrainingError

UNREACHABLE = (OSError, HfHubHTTPError, OfflineModeIsEnabled, httpx2.HTTPError)
UNREADABLE = (DatasetNotFoundError, HFValidationError, ValueError, NotImplementedError, RuntimeError)
LABEL_KINDS = ("string", "large_string", "bool", "int", "uint", "float", "double")


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
        return getattr(self.splits[split], "num_shards", 1) if self.streamed(split) else 1

    def streamed(self, split: str) -> bool:
        return isinstance(self.splits[split], datasets.IterableDataset)

    def shard_size(self, split: str, index: int, count: int) -> int:
        """Return how many rows the `index`-th of `count` equal groups of a streamed split's shards has."""
        return len(
            column_values(self.label_tables[split].shard(num_shards=count, index=index), self.label_column)
        )

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
        except (*UNREACHABLE, pa.ArrowException) as error:
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
        places = (Path(self.id), Path(datasets.config.HF_CACHE_HOME), Path(HF_HUB_CACHE))
        try:
            if path.startswith("hf://"):  # a repo of single files, streamed
                return HfFileSystem().cat_file(path)
            file = Path(path).resolve(strict=True)
            if not file.is_file() or not any(file.is_relative_to(place.resolve()) for place in places):
                raise TrainingError(f"{name} of {self.id} points to {path!r}, no file of the dataset")
            return file.read_bytes()
        except (*UNREACHABLE, ValueError) as error:
            raise TrainingError(f"{name} of {self.id} cannot be read: {first_line(error)}") from error


def open_source(options, streaming: bool) -> Source:
    """Open the dataset that the options name and check the columns, splits and labels of all of it.

    Raises:
        TrainingError: it cannot be reached or read, or has not what training needs.
    """
    if not options.dataset.strip():
        raise TrainingError("--dataset is empty: name a dataset repo OWNER/NAME or a folder")
    try:
        return _open_source(options, streaming)
    except (pa.ArrowException, DatasetGenerationError) as error:
        cause = error.__cause__ or error
        empty = "BatchSize must be greater than 0" in str(cause)  # pyarrow's word for a file without a row
        reason = "a split of it is empty, a Parquet file without a row" if empty else first_line(cause)
    except UNREADABLE as error:
        reason = several_configurations(options) or first_line(error)
    except UNREACHABLE as error:
        raise TrainingError(f"dataset {options.dataset} cannot be reached: {first_line(error)}") from error
    raise TrainingError(f"dataset {options.dataset} cannot be read: {reason}")


def _open_source(options, streaming: bool) -> Source:
    tables = load(options, streaming)
    wanted = [options.train_split, options.validation_split, options.test_split]
    for split in wanted[:2]:
        if split not in tables:
            raise TrainingError(
                f"{options.dataset} has no split {split!r} (it has: {', '.join(tables)}); "
                "name one with --train_split / --validation_split, or build the splits with `python -m dataset_script build`"
            )
    tables = {split: tables[split] for split in wanted if split in tables}
    kind = check_columns(options, tables[options.train_split])
    column = options.label_column
    label_tables = load(options, streaming, columns=[column]) if streaming else tables
    label_tables = {split: label_tables[split].select_columns([column]) for split in tables}
    values = {split: column_values(table, column) for split, table in label_tables.items()}
    for split, found in values.items():
        if not found:
            raise TrainingError(f"split {split!r} of {options.dataset} is empty")
    names, index = class_index(options, kind, values[options.train_split])
    card = card_metadata(options)
    described = card.get("label_descriptions")
    described = described if isinstance(described, dict) else {}
    undecoded = datasets.Image(decode=False)
    return Source(
        id=str(options.dataset),
        revision=revision_of(options),
        licence=card["license"] if isinstance(card.get("license"), str) else None,
        label_names=names,
        label_descriptions={name: str(described.get(name, name)) for name in names},
        image_column=options.image_column,
        label_column=column,
        splits={k: table.cast_column(options.image_column, undecoded) for k, table in tables.items()},
        label_tables=label_tables,
        labels={k: label_indices(options, k, found, index) for k, found in values.items()},
        index=index,
    )


def load(options, streaming: bool, columns: list[str] | None = None) -> dict:
    """Return the dataset's splits through `datasets`; of streamed Parquet files only some columns, where asked for."""
    where = {"name": options.dataset_config, "revision": options.dataset_revision}
    if not streaming:
        return dict(datasets.load_dataset(options.dataset, **where))
    builder = datasets.load_dataset_builder(options.dataset, **where)
    if isinstance(builder, Parquet):
        # `datasets` 5 reads through pyarrow's scanner, whose threads read a whole file ahead of a slower reader, and waits 5 s
        # for them at the end (apache/arrow#45214); to be deleted with the release that reads a row group at a time
        builder.config.columns = columns
        builder._generate_tables = partial(read_row_groups, builder)
        builder.SLEEP_ON_THREADS_SHUTDOWNS = False
    return dict(builder.as_streaming_dataset())


def read_row_groups(builder: Parquet, files: list, row_groups_list: list) -> Iterator[tuple[Key, pa.Table]]:
    """Yield the tables of Parquet files, with no more of them in memory than one row group."""
    for number, (path, groups) in enumerate(zip(files, row_groups_list, strict=True)):
        with xopen(path, "rb") as raw, pq.ParquetFile(raw) as file:
            for group in range(file.num_row_groups) if groups is None else groups:
                table = file.read_row_group(group, columns=builder.config.columns, use_threads=False)
                yield Key(number, group), builder._cast_table(table)


def column_values(table: datasets.Dataset | datasets.IterableDataset, column: str) -> list:
    """Return a column as a list."""
    return [value for batch in table.iter(batch_size=1000) for value in batch[column]]


def several_configurations(options) -> str | None:
    """Return the sentence for a dataset of several configurations of which none was named; None where that is not it."""
    if options.dataset_config:
        return None
    try:
        names = datasets.get_dataset_config_names(options.dataset, revision=options.dataset_revision)
    except (*UNREADABLE, *UNREACHABLE):
        return None
    several = len(names) > 1
    return (
        f"it has several configurations ({', '.join(names)}); pass --dataset_config {names[0]}"
        if several
        else None
    )


def check_columns(options, table) -> datasets.ClassLabel | datasets.Value:
    """Return the kind of the label column, after checking that it and the image column are there and of a usable kind."""
    features = table.features or table._resolve_features().features
    encoded = (datasets.Value("binary"), datasets.Value("large_binary"))  # an image file's bytes
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image) or kind in encoded]
    for flag, column in (("image_column", options.image_column), ("label_column", options.label_column)):
        if column not in features:
            have = ", ".join(repr(name) for name in features)
            others = images if flag == "image_column" else [n for n in features if n not in images]
            hint = f"; pass --{flag} {others[0]}" if others else ""
            raise TrainingError(f"{options.dataset} has no column {column!r} (found: {have}){hint}")
    if options.image_column not in images:
        raise TrainingError(
            f"column {options.image_column!r} of {options.dataset} holds {features[options.image_column]}, not images"
            + (f"; pass --image_column {images[0]}" if images else "")
        )
    kind = features[options.label_column]
    plain = isinstance(kind, datasets.Value) and kind.dtype.startswith(LABEL_KINDS)
    if not (plain or isinstance(kind, datasets.ClassLabel)):
        raise TrainingError(
            f"column {options.label_column!r} of {options.dataset} holds {kind}, not class labels"
        )
    return kind


def class_index(options, kind: datasets.ClassLabel | datasets.Value, values: list) -> tuple[list[str], dict]:
    """Return the class names and the index of each label value.

    A ClassLabel brings its names; else they are the values of the training split, sorted. Floats count where they are whole.
    """
    if isinstance(kind, datasets.ClassLabel):
        names, index = list(kind.names), {i: i for i in range(kind.num_classes)}
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
    except UNREACHABLE:
        return options.dataset_revision or "unknown (read from the cache)"


def card_metadata(options) -> dict:
    """Return the metadata of the dataset's card; none where there is no card that can be read: training needs none."""
    folder = Path(options.dataset)
    try:
        card = DatasetCard.load(folder / "README.md" if folder.is_dir() else options.dataset)
    except (*UNREACHABLE, ValueError, yaml.YAMLError):
        return {}
    return card.data.to_dict()
