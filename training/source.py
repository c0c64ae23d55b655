"""The dataset as published: a repo id or folder in, checked splits of undecoded rows out.

Everything that can be wrong with a foreign dataset is found here, before training starts, and said in one sentence.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import httpx2
import pyarrow
import yaml
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import DatasetCard, HfApi, HfFileSystem
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from hub_model.inference.errors import first_line
from training import TrainingError
from training.row_groups import read_by_row_groups

UNREACHABLE = (OSError, HfHubHTTPError, OfflineModeIsEnabled, httpx2.HTTPError)
UNREADABLE = (
    DatasetNotFoundError,
    HFValidationError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)


@dataclass(frozen=True)
class Row:
    """An image as stored, with its label index and the name it is reported under."""

    name: str
    data: bytes
    label: int


@dataclass
class Source:
    """A dataset whose columns and labels have been checked.

    Attributes:
        label_names: the classes, in the order of the logits.
        label_descriptions: their full names.
        sizes: images of each split that there is.
        revision: commit of the dataset repo, or the SHA-256 of a folder's file list and sizes.
        licence: of the images, as the dataset's card says in the Hub's short form; None where it says nothing.
    """

    id: str
    revision: str
    licence: str | None
    label_names: list[str]
    label_descriptions: dict[str, str]
    image_column: str
    label_column: str
    splits: dict[str, datasets.Dataset | datasets.IterableDataset]
    sizes: dict[str, int]
    _index: dict = field(default_factory=dict)

    def rows(
        self,
        split: str,
        epoch: int = 0,
        mine: Callable[[int], bool] | None = None,
        shuffle: tuple[int, int] | None = None,
        files: tuple[int, int] = (0, 1),
    ) -> Iterator[Row]:
        """Yield the rows of a split in their stored order.

        Args:
            epoch: reseeds the shuffling.
            mine: yields the rows at the positions it is true of; the others are read, but not handed out.
            shuffle: (seed, buffer size) of a streamed shuffling.
            files: (i, n) reads the i-th of n equal parts of a streamed split's files, and none of the others.
        """
        table = self._part(split, files)
        if shuffle is not None:
            table = table.shuffle(seed=shuffle[0], buffer_size=shuffle[1])
            table.set_epoch(epoch)
        try:
            for position, row in enumerate(table):
                if mine is None or mine(position):
                    yield self._row(split, position, row)
        except (*UNREACHABLE, pyarrow.ArrowException) as error:
            raise TrainingError(f"reading {split} of {self.id} failed: {first_line(error)}") from error

    def _row(self, split: str, position: int, row: dict) -> Row:
        name = str(row.get("file_name") or f"{split}-{position:06d}")
        image, label = row[self.image_column], row[self.label_column]
        data = image and image["bytes"]
        if data is None and image and image["path"]:
            data = self._read(name, image["path"])
        if data is None:
            raise TrainingError(f"{name} of {self.id} has no image in column {self.image_column!r}")
        index = self._position(label)
        if not isinstance(index, int) or not 0 <= index < len(self.label_names):
            raise TrainingError(
                f"{name} of {self.id} has label {label!r}, none of the {len(self.label_names)} classes"
            )
        return Row(name, data, index)

    def _position(self, label: int | str) -> int | None:
        """Return the index of a label as the column has it; a ClassLabel's is its own."""
        return self._index.get(label) if self._index else label

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

    def _part(self, split: str, files: tuple[int, int]) -> datasets.Dataset | datasets.IterableDataset:
        table, (part, parts) = self.splits[split], files
        return table if parts == 1 else table.shard(num_shards=parts, index=part)

    def files(self, split: str) -> int:
        """Return of how many files (shards) a streamed split is made; 1 where it is not streamed."""
        table = self.splits[split]
        return table.num_shards if isinstance(table, datasets.IterableDataset) else 1

    def count(self, split: str, files: tuple[int, int]) -> int:
        """Return how many rows a part of a streamed split's files has, from the label column alone."""
        return sum(1 for _ in self._part(split, files).select_columns([self.label_column]))

    def class_counts(self, split: str) -> list[int]:
        """Return how many images each class has, from the label column alone."""
        column = self.splits[split].select_columns([self.label_column])
        counts = Counter(self._position(row[self.label_column]) for row in column)
        return [counts[i] for i in range(len(self.label_names))]


def open_source(options, streaming: bool) -> Source:
    """Open the dataset that the options name and check its columns, splits and labels.

    Raises:
        TrainingError: it cannot be reached or read, or has not what training needs.
    """
    try:
        return _open_source(options, streaming)
    except (pyarrow.ArrowException, DatasetGenerationError) as error:
        cause = error.__cause__ or error
        empty = "BatchSize must be greater than 0" in str(cause)  # pyarrow's word for a file without a row
        reason = "a split of it is empty, a Parquet file without a row" if empty else first_line(cause)
        raise TrainingError(f"dataset {options.dataset} cannot be read: {reason}") from error


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
    features = check_columns(options, tables[options.train_split])
    names = label_names(options, tables, features[options.label_column])
    index = (
        {}
        if isinstance(features[options.label_column], datasets.ClassLabel)
        else {v: i for i, v in enumerate(names.values)}
    )
    tables = {k: t.cast_column(options.image_column, datasets.Image(decode=False)) for k, t in tables.items()}
    card = card_metadata(options)
    described = card.get("label_descriptions")
    described = described if isinstance(described, dict) else {}
    source = Source(
        id=str(options.dataset),
        revision=revision_of(options),
        licence=card["license"] if isinstance(card.get("license"), str) else None,
        label_names=[str(name) for name in names.values],
        label_descriptions={str(name): str(described.get(name, name)) for name in names.values},
        image_column=options.image_column,
        label_column=options.label_column,
        splits=tables,
        sizes={k: count_rows(t, k, options.label_column) for k, t in tables.items()},
        _index=index,
    )
    for split, size in source.sizes.items():
        if size == 0:
            raise TrainingError(f"split {split!r} of {options.dataset} is empty")
    return source


@dataclass(frozen=True)
class Names:
    """The label values in the order of their indices."""

    values: list


def load(options, streaming: bool) -> dict:
    """Return the dataset's splits through `datasets`."""
    if not options.dataset.strip():
        raise TrainingError("--dataset is empty: name a dataset repo OWNER/NAME or a folder")
    try:
        where = (options.dataset, options.dataset_config)
        if not streaming:
            return dict(datasets.load_dataset(*where, revision=options.dataset_revision))
        builder = datasets.load_dataset_builder(*where, revision=options.dataset_revision)
        read_by_row_groups(builder)
        return dict(builder.as_streaming_dataset())
    except pyarrow.ArrowException:  # `open_source` knows what it means
        raise
    except UNREADABLE as error:
        raise TrainingError(f"dataset {options.dataset} cannot be read: {first_line(error)}") from error
    except UNREACHABLE as error:
        raise TrainingError(f"dataset {options.dataset} cannot be reached: {first_line(error)}") from error


def check_columns(options, table) -> datasets.Features:
    """Return the features after checking that the image and label columns are there and of a usable kind."""
    features = table.features
    if features is None:
        features = table._resolve_features().features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    for flag, column in (("image_column", options.image_column), ("label_column", options.label_column)):
        if column not in features:
            have = ", ".join(repr(name) for name in features)
            others = images if flag == "image_column" else [n for n in features if n not in images]
            hint = f"; pass --{flag} {others[0]}" if others else ""
            raise TrainingError(f"{options.dataset} has no column {column!r} (it has: {have}){hint}")
    if options.image_column not in images:
        raise TrainingError(
            f"column {options.image_column!r} of {options.dataset} holds {features[options.image_column]}, not images"
            + (f"; pass --image_column {images[0]}" if images else "")
        )
    return features


def label_names(options, tables: dict, kind) -> Names:
    """Return the classes: a ClassLabel's own names, else the values that occur in the training split, sorted."""
    if isinstance(kind, datasets.ClassLabel):
        names = Names(list(kind.names))
    elif isinstance(kind, datasets.Value) and (
        kind.dtype == "string" or kind.dtype.startswith(("int", "uint", "large_string"))
    ):
        column = tables[options.train_split].select_columns([options.label_column])
        found = {row[options.label_column] for row in column}
        if None in found:
            raise TrainingError(
                f"column {options.label_column!r} of {options.dataset} has rows without a label"
            )
        names = Names(sorted(found))
    else:
        raise TrainingError(
            f"column {options.label_column!r} of {options.dataset} holds {kind}, not class labels"
        )
    if len(names.values) < 2:
        raise TrainingError(
            f"{options.dataset} has one class only ({', '.join(map(str, names.values))}): there is nothing to tell apart"
        )
    return names


def count_rows(table, split: str, label_column: str) -> int:
    """Return the number of rows: known at once, from the card, or counted over the label column."""
    if isinstance(table, datasets.Dataset):
        return len(table)
    info = (table.info.splits or {}).get(split)
    if info is not None and info.num_examples:
        return info.num_examples
    return sum(1 for _ in table.select_columns([label_column]))


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
