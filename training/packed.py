"""Parquet files through pyarrow alone, for a machine without `datasets`: what `training.hub_dataset` gives of a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hub_model.inference.errors import first_line
from training import TrainingError


@dataclass(frozen=True)
class PackedTable:
    """The rows of some files, or of some of their columns, as dictionaries; a row group at a time is in memory."""

    files: list[Path]
    columns: list[str] | None = None

    def __len__(self) -> int:
        return sum(pq.read_metadata(path).num_rows for path in self.files)

    def __iter__(self) -> Iterator[dict]:
        for path in self.files:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    yield from file.read_row_group(group, columns=self.columns).to_pylist()


def open_tables(options, streaming: bool) -> tuple[dict, dict, dict, list[str] | None]:
    """Return the splits' tables, those of the label column alone, its values, and the class names of a ClassLabel.

    Raises:
        TrainingError: this is not a folder of train-*.parquet and validation-*.parquet, or lacks a column.
    """
    if streaming or not Path(options.dataset).is_dir():
        raise TrainingError(
            "without the package datasets only a folder is read, into memory: pip install datasets"
        )
    files = sorted(Path(options.dataset).rglob("*.parquet"))
    wanted = (options.train_split, options.validation_split, options.test_split)
    splits = {split: [f for f in files if f.stem.partition("-")[0] == split] for split in wanted}
    for split in wanted[:2]:
        if not splits[split]:
            raise TrainingError(f"{options.dataset} has no files {split}-*.parquet")
    try:
        schema = pq.read_schema(splits[options.train_split][0])
        for column in (options.image_column, options.label_column):
            if column not in schema.names:
                raise TrainingError(f"{options.dataset} has no column {column!r} (found: {schema.names})")
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        kind = described.get("info", {}).get("features", {}).get(options.label_column, {})
        splits = {split: found for split, found in splits.items() if found}
        tables = {split: PackedTable(found) for split, found in splits.items()}
        labels = {split: PackedTable(found, [options.label_column]) for split, found in splits.items()}
        values = {split: [row[options.label_column] for row in table] for split, table in labels.items()}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise TrainingError(f"dataset {options.dataset} cannot be read: {first_line(error)}") from error
    return tables, labels, values, kind.get("names")
