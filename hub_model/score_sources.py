"""What `python -m hub_model score` reads: a folder of images or a dataset in, shards of encoded images out.

The shards and their order depend on the input alone, so that any number of processes, and a resumed run, divide the same work. A
folder's listing lies in a file and images are read one after the other: memory does not grow with the input.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetNotFoundError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from dataset_script.source import FolderSource
from hub_model.inference.errors import RepoError, first_line
from hub_model.inference.hub import HUB_ERRORS, hub_refusal
from hub_model.inference.images import SUFFIXES, looks_like_picture
from hub_model.inference.text import shown

SHARD_IMAGES = 256  # of a listing; a kill costs each process at most one shard
BATCH_SIZE = 32
LISTING = pa.schema(
    [("file_name", pa.string()), ("path", pa.binary()), ("split", pa.string()), ("label", pa.string())]
)
UNREADABLE = (DatasetNotFoundError, pa.ArrowException, ValueError, NotImplementedError, RuntimeError)

Row = dict[str, Any]  # file_name; image: bytes, a path or URL, None where there is none; split; label


class Listing:
    """Images in files of their own: listed once by the main process, in row groups that are the shards."""

    def __init__(self, listing: Path, rows: Iterator[tuple], settings: Row, columns: tuple[str, ...]) -> None:
        digest, self.listing, self.columns = hashlib.sha256(), listing, columns
        with pq.ParquetWriter(listing, LISTING) as writer:
            while group := list(itertools.islice(rows, SHARD_IMAGES)):
                for row in group:
                    digest.update(repr((row, state(row[1]))).encode())
                writer.write_table(
                    pa.table([list(c) for c in zip(*group, strict=True)], schema=LISTING), SHARD_IMAGES
                )
        found = pq.read_metadata(listing)
        self.shards = list(range(found.num_row_groups))
        self.settings = settings | {"images": found.num_rows, "listing_sha256": digest.hexdigest()}

    def read(self, shard: int) -> Iterator[Row]:
        for row in pq.ParquetFile(self.listing).read_row_group(shard).to_pylist():
            yield row | {"image": os.fsdecode(row["path"])}


class Table:
    """Splits of a dataset in any form that `datasets` streams; a shard is a row group of Parquet, else a file."""

    def __init__(self, tables: dict[str, datasets.IterableDataset], settings: Row) -> None:
        self.settings, self.image, self.label = settings, settings["image_column"], settings["label_column"]
        features = next(iter(tables.values())).features or {}
        images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
        if self.image not in features:
            hint = f"; pass --image_column {images[0]}" if images else ""
            raise RepoError(
                f"{settings['dataset']} has no column {self.image!r} (it has: {', '.join(features)}){hint}"
            )
        if self.image in images:
            as_stored = datasets.Image(decode=False)
            tables = {split: table.cast_column(self.image, as_stored) for split, table in tables.items()}
        self.names = getattr(features.get(self.label), "names", None)
        self.columns = ("split", "label") if self.label in features else ("split",)
        self.tables = {split: table.reshard() for split, table in tables.items()}
        self.shards = [(split, i) for split, table in self.tables.items() for i in range(table.num_shards)]

    def read(self, shard: tuple[str, int]) -> Iterator[Row]:
        split, index = shard
        for position, row in enumerate(self.tables[split].shard(self.tables[split].num_shards, index)):
            image, label = row[self.image], row.get(self.label)
            if not isinstance(image, dict | bytes | None):
                raise RepoError(f"{self.settings['dataset']}: column {self.image!r} holds no encoded images")
            image = image if isinstance(image, dict) else {"bytes": image}
            data, path = image.get("bytes"), image.get("path")
            if self.names and label is not None:
                label = self.names[label] if 0 <= label < len(self.names) else None
            name = row.get("file_name") or Path(path or f"{split}-{index}-{position}").name
            row = {"file_name": str(name), "split": split, "label": None if label is None else str(label)}
            yield row | {"image": self._own(path) if data is None else data}

    def _own(self, path: str | None) -> str | None:
        """A path that a row names, when it lies in the dataset; a foreign table may point anywhere on this machine."""
        name = self.settings["dataset"]
        if not path or path.startswith(f"hf://datasets/{name}@"):
            return path
        inside = Path(name).is_dir() and Path(path).resolve().is_relative_to(Path(name).resolve())
        return path if inside else None


def batches(source: Listing | Table, shards: list[tuple[int, Any]]) -> Iterator[Row]:
    """Up to 32 images at a time; an empty batch ends its shard. Raises RepoError where the source fails."""
    try:
        for number, shard in shards:
            images = source.read(shard)
            while batch := list(itertools.islice(images, BATCH_SIZE)):
                yield {"number": number, "images": batch}
            yield {"number": number, "images": []}
    except (*HUB_ERRORS, pa.ArrowException) as error:
        raise RepoError(f"reading the images failed: {first_line(error)}") from None


def is_dataset(folder: Path) -> bool:
    """Whether a folder is a dataset rather than a folder of images: it holds Parquet files, itself or in `data/`."""
    return any(next(place.glob("*.parquet"), None) for place in (folder / "data", folder) if place.is_dir())


def open_folder(folder: Path, listing: Path, follow_links: bool, passed_over: Counter) -> Listing:
    """The images below a folder at any depth; counts in `passed_over` what is not one. Raises RepoError when there are none."""
    source = FolderSource(folder, follow_links)

    def rows() -> Iterator[tuple]:
        for path, reason in source.listing():
            if reason := reason or why_not_scored(source, path):
                passed_over[reason] += 1
            else:
                yield shown(path), os.fsencode(source.root / path), None, None

    found = Listing(listing, rows(), {"folder": str(folder)}, ())
    if not found.shards:
        raise RepoError(
            f"there is no image below {folder}{told(passed_over)}; pictures end in {', '.join(SUFFIXES)}"
        )
    return found


def why_not_scored(source: FolderSource, path: str) -> str:
    """Why a file is not meant as a picture of its own, by its name or first bytes; "" where it is."""
    if any(path.startswith(f"{name}/") for name in source.zips):
        return "in a zip (unpack it)"
    try:
        with open(source.root / path, "rb") as file:
            head = file.read(16)
    except OSError:  # which is told as the reason where its name is that of a picture
        head = b""
    return "" if looks_like_picture(path, head) else f"not images ({Path(path).suffix or 'no ending'})"


def told(passed_over: Counter) -> str:
    """What was passed over and why, as the end of a sentence."""
    kinds = [f"{kind}: {count:,}" for kind, count in sorted(passed_over.items())]
    return f"; passed over: {', '.join(kinds)}" if kinds else ""


def state(path: bytes) -> tuple[int, int] | None:
    """What differs when a file is replaced by another of its name; None for one that is gone, or on a Hub."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def open_dataset(options: argparse.Namespace, listing: Path) -> Listing | Table:
    """Open the splits of a dataset repo or folder that the command line names; all, where it names none.

    Raises RepoError: it cannot be reached or read, or lacks a split or the image column.
    """
    name, revision = options.source, options.dataset_revision
    try:
        if not Path(name).is_dir():
            revision = HfApi().dataset_info(name, revision=revision).sha
        builder = datasets.load_dataset_builder(name, options.config, revision=revision)
        source = _open_splits(builder, options, revision, listing)
    except RepoError:
        raise
    except HFValidationError as error:
        raise RepoError(hub_refusal(error, name)) from None
    except UNREADABLE as error:
        if "Config name is missing" in str(error):
            names = ", ".join(datasets.get_dataset_config_names(name, revision=revision))
            raise RepoError(f"{name} has several configurations: pass --config with one of {names}") from None
        raise RepoError(f"dataset {name} cannot be read: {first_line(error)}") from None
    except HUB_ERRORS as error:
        raise RepoError(hub_refusal(error, name, "dataset", revision)) from None
    if not source.shards:
        raise RepoError(f"{name} has no rows in {', '.join(source.settings['splits'])}")
    return source


def _open_splits(
    builder: datasets.DatasetBuilder, options: argparse.Namespace, revision: str | None, listing: Path
) -> Listing | Table:
    files = builder.config.data_files or {}
    there = [str(split) for split in files or builder.info.splits or ()]
    if missing := [split for split in options.split if split not in there]:
        raise RepoError(f"{options.source} has no split {missing[0]!r} (it has: {', '.join(there)})")
    splits = options.split or there
    settings = {"dataset": options.source, "config": options.config, "revision": revision, "splits": splits}
    urls = [(split, url) for split in splits for url in sorted(files.get(split, ()))]
    if isinstance(builder, ImageFolder) and all(looks_like_picture(url, b"") for _, url in urls):
        rows = [(PurePosixPath(url), url.encode(), split) for split, url in urls]
        has_labels = len({path.parent.name for path, *_ in rows} - set(there)) > 1
        rows = ((path.name, url, split, path.parent.name) for path, url, split in rows)
        return Listing(listing, rows, settings, ("split", "label") if has_labels else ("split",))
    states = repr([(url, state(url.encode())) for _, url in urls])
    settings |= {"image_column": options.image_column, "label_column": options.label_column}
    settings |= {"files_sha256": hashlib.sha256(states.encode()).hexdigest()}
    return Table({split: builder.as_streaming_dataset(split) for split in splits}, settings)


def encoded(image: bytes | str | None) -> bytes | str:
    """What `read_picture` takes: bytes, or a path of this machine.

    Raises OSError where there is no such file, and RepoError where the place that it is in does not answer.
    """
    if image is None:
        raise OSError("the dataset holds no image in this row")
    if isinstance(image, bytes):
        return image
    if "://" not in image:
        if not stat.S_ISREG(os.stat(image).st_mode):  # to open a pipe is to wait for its writer
            raise OSError("it is not a file")
        open(image, "rb").close()  # raises for a file that may not be read
        return image
    try:
        with fsspec.open(image) as file:
            return file.read()
    except FileNotFoundError:
        raise
    except HUB_ERRORS as error:
        raise RepoError(f"{image} cannot be reached: {first_line(error)}") from None
