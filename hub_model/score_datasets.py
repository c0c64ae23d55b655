"""Datasets for `python -m hub_model.score`: a repo id or folder in, a `Source` of its splits out.

Parquet, the form of a dataset repo, is read row group by row group, over the network as from a disk; single image files one by
one. Any other form goes through `datasets` streaming and is divided by its files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import fsspec
import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetNotFoundError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.parquet.parquet import Parquet
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hub_model.inference.errors import RepoError, first_line
from hub_model.score_sources import MAX_PIECES, SUFFIXES, Picture, Piece, Source, rows_a_piece

UNREACHABLE = (OSError, HfHubHTTPError, OfflineModeIsEnabled, httpx2.HTTPError)
UNREADABLE = (
    DatasetNotFoundError,
    HFValidationError,
    pa.ArrowException,
    ValueError,
    NotImplementedError,
    RuntimeError,
)
READ_AT_ONCE = 32  # rows


def is_dataset_folder(folder: Path) -> bool:
    """Whether a folder is a dataset rather than a folder of images: it holds Parquet files, itself or in `data/`."""
    return any(next(place.glob("*.parquet"), None) for place in (folder / "data", folder) if place.is_dir())


def open_dataset(
    name: str, config: str | None, revision: str | None, wanted: list[str], image: str, label: str
) -> Source:
    """Open the splits `wanted` (all for an empty list) of a dataset repo or folder; `image` and `label` name its columns.

    Raises RepoError: it cannot be reached or read, or lacks a split or the image column.
    """
    try:
        if not Path(name).is_dir():
            revision = HfApi().dataset_info(name, revision=revision).sha
        builder = datasets.load_dataset_builder(name, config, revision=revision)
        splits = [str(split) for split in builder.config.data_files or builder.info.splits or ()]
    except (RepositoryNotFoundError, HFValidationError):
        raise RepoError(f"{name} is neither a folder nor a dataset that may be read") from None
    except RevisionNotFoundError:
        raise RepoError(f"dataset {name} has no revision {revision!r}") from None
    except UNREADABLE as error:
        raise RepoError(f"dataset {name} cannot be read: {first_line(error)}") from None
    except UNREACHABLE as error:
        raise RepoError(f"dataset {name} cannot be reached: {first_line(error)}") from None
    if missing := [split for split in wanted if split not in splits]:
        raise RepoError(f"{name} has no split {missing[0]!r} (it has: {', '.join(splits)})")
    settings = {"dataset": name, "config": config, "revision": revision, "splits": wanted or splits}
    single = isinstance(builder, ImageFolder) and any(
        url.lower().endswith(SUFFIXES)
        for split in settings["splits"]
        for url in builder.config.data_files[split]
    )
    kind = ParquetImages if isinstance(builder, Parquet) else SingleFiles if single else StreamedImages
    try:
        return kind.open(builder, settings | {"image_column": image, "label_column": label})
    except RepoError:
        raise
    except (*UNREADABLE, *UNREACHABLE) as error:
        raise RepoError(f"dataset {name} cannot be read: {first_line(error)}") from None


class _Columns:
    """Which columns hold what, checked, and a row of them as a `Picture`."""

    def __init__(self, settings: dict[str, Any], features: datasets.Features) -> None:
        self.settings = settings
        self.image, self.label = settings["image_column"], settings["label_column"]
        if self.image not in features:
            images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
            hint = f"; pass --image_column {images[0]}" if images else ""
            raise RepoError(
                f"{settings['dataset']} has no column {self.image!r} (it has: {', '.join(features)}){hint}"
            )
        kind = features.get(self.label)
        self.names = kind.names if isinstance(kind, datasets.ClassLabel) else None
        self.known = ("split", "label") if kind is not None else ("split",)
        self.columns = [column for column in (self.image, self.label, "file_name") if column in features]

    def picture(self, row: dict[str, Any], split: str, unnamed: str) -> Picture:
        stored, label = row[self.image], row.get(self.label)
        stored = stored if isinstance(stored, dict) else {"bytes": stored}
        if self.names is not None and label is not None:
            label = self.names[label] if 0 <= label < len(self.names) else None
        name = row.get("file_name") or Path(stored.get("path") or unnamed).name
        data = stored.get("bytes")
        data = self.own(stored.get("path")) if data is None else data
        return Picture(str(name), data, split, None if label is None else str(label))

    def own(self, path: str | None) -> str | None:
        """A path that a row names, when it lies in the dataset; a foreign table may point anywhere on this machine."""
        name = self.settings["dataset"]
        if not path or path.startswith(f"hf://datasets/{name}@"):
            return path
        inside = Path(name).is_dir() and Path(path).resolve().is_relative_to(Path(name).resolve())
        return path if inside else None


class ParquetImages(_Columns):
    """Splits in Parquet files; a piece is a few row groups of one file."""

    def __init__(self, settings: dict[str, Any], features: datasets.Features, pieces: list[Piece]) -> None:
        super().__init__(settings, features)
        self.pieces = pieces
        self._opened: tuple[str, Any] = (
            "",
            None,
        )  # the file of the last piece is most often that of the next one

    @classmethod
    def open(cls, builder: Parquet, settings: dict[str, Any]) -> ParquetImages:
        """Read the footer of every file: how many rows there are, and where."""
        files, features, digest = [], builder.info.features, hashlib.sha256()
        for split in settings["splits"]:
            for url in builder.config.data_files[split]:
                with fsspec.open(url) as raw:
                    file = pq.ParquetFile(raw)
                    found = file.metadata
                    sizes = [found.row_group(i).num_rows for i in range(found.num_row_groups)]
                    features = features or datasets.Features.from_arrow_schema(file.schema_arrow)
                files.append((split, url, sizes))
                digest.update(json.dumps([split, Path(url).name, sizes, found.serialized_size]).encode())
        total = sum(sum(sizes) for _, _, sizes in files)
        if not total:
            raise RepoError(f"{settings['dataset']} has no rows in {', '.join(settings['splits'])}")
        settings = settings | {"images": total, "files_sha256": digest.hexdigest()}
        return cls(settings, features, list(_cut(files, rows_a_piece(total))))

    def read(self, piece: Piece) -> Iterator[Picture]:
        split, url, groups, first = piece.place
        if url != self._opened[0]:
            self._opened = (url, fsspec.open(url).open())
        file = pq.ParquetFile(self._opened[1])
        batches = file.iter_batches(READ_AT_ONCE, row_groups=list(range(*groups)), columns=self.columns)
        for row in (row for batch in batches for row in batch.to_pylist()):
            yield self.picture(row, split, f"{split}-{first:06d}")
            first += 1


class SingleFiles:
    """Splits that are folders of image files; the label is the name of the folder that a file is in, where there are several."""

    def __init__(self, settings: dict[str, Any], files: dict[str, list[str]], pieces: list[Piece]) -> None:
        self.settings, self.files, self.pieces = settings, files, pieces
        folders = {PurePosixPath(url).parent.name for urls in files.values() for url in urls}
        self.known = ("split", "label") if len(folders - set(files)) > 1 else ("split",)

    @classmethod
    def open(cls, builder: datasets.DatasetBuilder, settings: dict[str, Any]) -> SingleFiles:
        """Take the list of files that `datasets` made."""
        found = {split: sorted(builder.config.data_files[split]) for split in settings["splits"]}
        files = {split: [u for u in urls if u.lower().endswith(SUFFIXES)] for split, urls in found.items()}
        total, pieces = sum(map(len, files.values())), []
        for split, urls in files.items():
            for first in range(0, len(urls), rows_a_piece(total)):
                last = min(first + rows_a_piece(total), len(urls))
                pieces.append(Piece(last - first, (split, first, last)))
        digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        return cls(settings | {"images": total, "files_sha256": digest}, files, pieces)

    def read(self, piece: Piece) -> Iterator[Picture]:
        split, first, last = piece.place
        for url in self.files[split][first:last]:
            path = PurePosixPath(url)
            yield Picture(path.name, url, split, path.parent.name if "label" in self.known else None)


class StreamedImages(_Columns):
    """Splits in any form that `datasets` can stream; a piece is one of its files, or a few."""

    def __init__(self, settings: dict[str, Any], features: datasets.Features, pieces: list[Piece]) -> None:
        super().__init__(settings, features)
        self.pieces = pieces
        self.tables: dict[str, datasets.IterableDataset] = {}

    @classmethod
    def open(cls, builder: datasets.DatasetBuilder, settings: dict[str, Any]) -> StreamedImages:
        tables = {split: builder.as_streaming_dataset(split) for split in settings["splits"]}
        features, pieces = None, []
        for split, table in tables.items():
            features = features or table.features or table._resolve_features().features
            parts = min(table.num_shards, MAX_PIECES)
            pieces += [Piece(None, (split, part, parts)) for part in range(parts)]
        if not pieces:
            raise RepoError(f"{settings['dataset']} has no files in {', '.join(settings['splits'])}")
        return cls(settings, features, pieces)

    def read(self, piece: Piece) -> Iterator[Picture]:
        split, part, parts = piece.place
        if not self.tables:
            name, config, revision = (self.settings[key] for key in ("dataset", "config", "revision"))
            found = datasets.load_dataset(name, config, revision=revision, streaming=True)
            self.tables = {
                k: t.cast_column(self.image, datasets.Image(decode=False)) for k, t in found.items()
            }
        for position, row in enumerate(self.tables[split].shard(parts, part)):
            if not isinstance(row[self.image], dict | bytes | None):
                raise RepoError(
                    f"{self.settings['dataset']} hands out decoded images only: store it as Parquet"
                )
            yield self.picture(row, split, f"{split}-{part:04d}-{position:06d}")


def _cut(files: list[tuple[str, str, list[int]]], rows: int) -> Iterator[Piece]:
    """Consecutive row groups of one file until there are `rows` rows. place: split, url, (from, to), first row."""
    position: dict[str, int] = {}
    for split, url, sizes in files:
        start, filled = 0, 0
        for group, size in enumerate(sizes):
            filled += size
            if filled and (filled >= rows or group + 1 == len(sizes)):
                first = position.get(split, 0)
                yield Piece(filled, (split, url, (start, group + 1), first))
                position[split] = first + filled
                start, filled = group + 1, 0
