"""Read the input of `python -m hub_model score`, a folder of images or a dataset, as shards of encoded images.

The shards and their order depend on the input alone, so they are the same for any number of processes and in a resumed run.
The listing of a folder is stored in a file, and images are read one at a time: memory does not grow with the input.
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
from hub_model.inference.hub import HUB_ERRORS, hub_error_message
from hub_model.inference.images import SUFFIXES, looks_like_image
from hub_model.inference.text import printable

SHARD_IMAGES = 256  # in a listing; an interrupted process loses at most one shard
BATCH_SIZE = 32
LISTING = pa.schema(
    [("file_name", pa.string()), ("path", pa.binary()), ("split", pa.string()), ("label", pa.string())]
)
UNREADABLE = (DatasetNotFoundError, pa.ArrowException, ValueError, NotImplementedError, RuntimeError)

Row = dict[str, Any]  # file_name; image: bytes, a path or URL, or None if there is none; split; label


class Listing:
    """Image files, listed once by the main process in a Parquet file whose row groups are the shards."""

    skipped = ""  # other files, by reason, as the end of a sentence

    def __init__(self, listing: Path, rows: Iterator[tuple], settings: Row, columns: tuple[str, ...]) -> None:
        digest, self.listing, self.columns = hashlib.sha256(), listing, columns
        with pq.ParquetWriter(listing, LISTING) as writer:
            while group := list(itertools.islice(rows, SHARD_IMAGES)):
                for row in group:
                    digest.update(repr((row, size_and_mtime(row[1]))).encode())
                values = [list(column) for column in zip(*group, strict=True)]
                writer.write_table(pa.table(values, schema=LISTING), SHARD_IMAGES)
        metadata = pq.read_metadata(listing)
        self.shards = list(range(metadata.num_row_groups))
        self.settings = settings | {"images": metadata.num_rows, "listing_sha256": digest.hexdigest()}

    def read(self, shard: int) -> Iterator[Row]:
        for row in pq.ParquetFile(self.listing).read_row_group(shard).to_pylist():
            yield row | {"image": os.fsdecode(row["path"])}


class StreamedDataset:
    """Splits of a dataset in any format that `datasets` streams; a shard is a Parquet row group or, in other formats, a file."""

    skipped = ""

    def __init__(self, tables: dict[str, datasets.IterableDataset], settings: Row) -> None:
        self.settings, self.image, self.label = settings, settings["image_column"], settings["label_column"]
        features = next(iter(tables.values())).features or {}
        images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
        if self.image not in features:
            hint = f"; pass --image_column {images[0]}" if images else ""
            raise RepoError(
                f"{settings['dataset']} has no column {self.image!r} (found: {', '.join(features)}){hint}"
            )
        if self.image in images:
            undecoded = datasets.Image(decode=False)
            tables = {split: table.cast_column(self.image, undecoded) for split, table in tables.items()}
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
            yield row | {"image": self._inside(path) if data is None else data}

    def _inside(self, path: str | None) -> str | None:
        """Return the path in a row if it is inside the dataset: an untrusted dataset may name any file on this machine."""
        name = self.settings["dataset"]
        if not path or path.startswith(f"hf://datasets/{name}@"):
            return path
        inside = Path(name).is_dir() and Path(path).resolve().is_relative_to(Path(name).resolve())
        return path if inside else None


def batches(source: Listing | StreamedDataset, shards: list[tuple[int, Any]]) -> Iterator[Row]:
    """Yield batches of up to 32 rows; an empty batch ends its shard. Raises RepoError if the source cannot be read."""
    try:
        for number, shard in shards:
            rows = source.read(shard)
            while batch := list(itertools.islice(rows, BATCH_SIZE)):
                yield {"number": number, "rows": batch}
            yield {"number": number, "rows": []}
    except (*HUB_ERRORS, pa.ArrowException) as error:
        raise RepoError(f"reading the images failed: {first_line(error)}") from None


def is_dataset(folder: Path) -> bool:
    """Return whether a folder is a dataset, not a folder of images: it or its `data/` has Parquet files."""
    return any(parent.is_dir() and any(parent.glob("*.parquet")) for parent in (folder / "data", folder))


def open_folder(folder: Path, listing: Path, follow_links: bool) -> Listing:
    """List the images in a folder, recursively. Raises RepoError if there are none."""
    source, skipped = FolderSource(folder, follow_links), Counter()

    def rows() -> Iterator[tuple]:
        for path, reason in source.listing():
            if reason := reason or reason_to_skip(source, path):
                skipped[reason] += 1
            else:
                yield printable(path), os.fsencode(source.root / path), None, None

    images = Listing(listing, rows(), {"folder": str(folder)}, ())
    if skipped:
        counts = [f"{reason}: {count:,}" for reason, count in sorted(skipped.items())]
        images.skipped = f"; skipped: {', '.join(counts)}"
    if not images.shards:
        raise RepoError(f"{folder} has no images{images.skipped}; supported suffixes: {', '.join(SUFFIXES)}")
    return images


def reason_to_skip(source: FolderSource, path: str) -> str:
    """Return why a file is not scored, from its name and first bytes; empty for an image."""
    if any(path.startswith(f"{name}/") for name in source.zips):
        return "in a zip (unpack it)"
    try:
        with open(source.root / path, "rb") as file:
            head = file.read(16)
    except OSError:  # scoring reports it if the name is that of an image
        head = b""
    return "" if looks_like_image(path, head) else f"not images ({Path(path).suffix or 'no suffix'})"


def size_and_mtime(path: bytes) -> tuple[int, int] | None:
    """Return what changes when a file is replaced; None for a file that is missing or on a Hub."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def open_dataset(options: argparse.Namespace, listing: Path) -> Listing | StreamedDataset:
    """Open a dataset repo or folder, with all its splits unless `--split` names some.

    Raises RepoError: it cannot be reached or read, or has no such split or image column.
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
        raise RepoError(hub_error_message(error, name)) from None
    except UNREADABLE as error:
        if "Config name is missing" in str(error):
            names = ", ".join(datasets.get_dataset_config_names(name, revision=revision))
            raise RepoError(f"{name} has several configurations: pass --config with one of {names}") from None
        raise RepoError(f"dataset {name} cannot be read: {first_line(error)}") from None
    except HUB_ERRORS as error:
        raise RepoError(hub_error_message(error, name, "dataset", revision)) from None
    if not source.shards:
        raise RepoError(f"{name} has no rows in {', '.join(source.settings['splits'])}")
    return source


def _open_splits(
    builder: datasets.DatasetBuilder, options: argparse.Namespace, revision: str | None, listing: Path
) -> Listing | StreamedDataset:
    files = builder.config.data_files or {}
    available = [str(split) for split in files or builder.info.splits or ()]
    if missing := [split for split in options.split if split not in available]:
        raise RepoError(f"{options.source} has no split {missing[0]!r} (found: {', '.join(available)})")
    splits = options.split or available
    settings = {"dataset": options.source, "config": options.config, "revision": revision, "splits": splits}
    urls = [(split, url) for split in splits for url in sorted(files.get(split, ()))]
    if isinstance(builder, ImageFolder) and all(looks_like_image(url, b"") for _, url in urls):
        rows = [(PurePosixPath(url), url.encode(), split) for split, url in urls]
        has_labels = len({path.parent.name for path, *_ in rows} - set(available)) > 1
        rows = ((path.name, url, split, path.parent.name) for path, url, split in rows)
        return Listing(listing, rows, settings, ("split", "label") if has_labels else ("split",))
    files_state = repr([(url, size_and_mtime(url.encode())) for _, url in urls])
    settings |= {"image_column": options.image_column, "label_column": options.label_column}
    settings |= {"files_sha256": hashlib.sha256(files_state.encode()).hexdigest()}
    return StreamedDataset({split: builder.as_streaming_dataset(split) for split in splits}, settings)


def path_or_bytes(image: bytes | str | None) -> bytes | str:
    """Return the path of a local image, or else its bytes.

    Raises OSError if there is no such file, and RepoError if its Hub cannot be reached.
    """
    if image is None:
        raise OSError("the dataset holds no image in this row")
    if isinstance(image, bytes):
        return image
    if "://" not in image:
        if not stat.S_ISREG(os.stat(image).st_mode):  # opening a pipe would wait for a writer
            raise OSError("it is not a file")
        open(image, "rb").close()  # raises if the file is not readable
        return image
    try:
        with fsspec.open(image) as file:
            return file.read()
    except FileNotFoundError:
        raise
    except HUB_ERRORS as error:
        raise RepoError(f"{image} cannot be reached: {first_line(error)}") from None
