"""Open a folder of Parquet files with pyarrow only, as `training.hub_dataset` does, for machines without `datasets`."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hub_model.inference.errors import first_line
from training import TrainingError


@dataclass(frozen=True)
class ParquetTable:
    """Iterates over the rows of Parquet files as dictionaries, with one row group in memory; `columns` None reads all."""

    files: list[Path]
    columns: list[str] | None = None

    def __len__(self) -> int:
        return sum(pq.read_metadata(path).num_rows for path in self.files)

    def __iter__(self) -> Iterator[dict]:
        for path in self.files:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    yield from file.read_row_group(group, columns=self.columns).to_pylist()


def open_tables(options: Namespace, streaming: bool) -> tuple[dict, dict, dict, list[str] | None]:
    """Return the tables of the splits, the same with the label column only, its values, and the class names of a ClassLabel.

    Raises:
        TrainingError: this is not a folder with train-*.parquet and validation-*.parquet, or a column is missing.
    """
    if streaming or not Path(options.dataset).is_dir():
        raise TrainingError(
            "without the datasets package only a local folder can be read, and not streamed: pip install datasets"
        )
    files = sorted(Path(options.dataset).rglob("*.parquet"))
    names = (options.train_split, options.validation_split, options.test_split)
    splits = {split: [f for f in files if f.stem.partition("-")[0] == split] for split in names}
    for split in names[:2]:
        if not splits[split]:
            raise TrainingError(f"{options.dataset} has no files {split}-*.parquet")
    try:
        schema = pq.read_schema(splits[options.train_split][0])
        for column in (options.image_column, options.label_column):
            if column not in schema.names:
                raise TrainingError(f"{options.dataset} has no column {column!r} (found: {schema.names})")
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        kind = metadata.get("info", {}).get("features", {}).get(options.label_column, {})
        tables = {split: ParquetTable(files) for split, files in splits.items() if files}
        labels = {split: ParquetTable(table.files, [options.label_column]) for split, table in tables.items()}
        values = {split: [row[options.label_column] for row in table] for split, table in labels.items()}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise TrainingError(f"dataset {options.dataset} cannot be read: {first_line(error)}") from error
    return tables, labels, values, kind.get("names")
