"""The rows of the dataset as Parquet shards: `data/SPLIT-00000-of-0000N.parquet`, image bytes as they were found.

The same rows give the same bytes: no time, path or machine goes in. Row groups are small and carry a page index, so that
readers stream them; only one of them is in memory here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Value
from datasets import Image as ImageFeature

from dataset_script.records import Row

ROW_GROUP_ROWS = 100
ROW_GROUP_BYTES = 16 * 2**20


def features(classes: list[str], sources: bool = False) -> Features:
    """Return the columns of the dataset, labels in the order of `classes`; with a column `source` where there are several."""
    texts = ["file_name", "sha256", "group", *["source"] * sources]
    return Features(
        {"image": ImageFeature(), "label": ClassLabel(names=classes)} | dict.fromkeys(texts, Value("string"))
    )


def chunks(rows: Iterable[Row], max_bytes: int, max_rows: int | None = None) -> Iterator[list[Row]]:
    """Cut rows into chunks of at most `max_bytes` of images (a larger image has one of its own) and `max_rows` rows."""
    chunk: list[Row] = []
    filled = 0
    for row in rows:
        if chunk and (filled + row.length > max_bytes or len(chunk) == max_rows):
            yield chunk
            chunk, filled = [], 0
        chunk.append(row)
        filled += row.length
    if chunk:
        yield chunk


def write_shard(
    path: Path,
    rows: Iterable[Row],
    schema: pa.Schema,
    read: Callable[[Row], bytes],
    written: Callable[[int], object],
) -> None:
    """Write one shard; `read` gives the bytes of a row's image, and `written` is told of how many more rows have been."""
    with pq.ParquetWriter(
        path, schema, compression="snappy", use_dictionary=["label"], write_page_index=True
    ) as writer:
        for group in chunks(rows, ROW_GROUP_BYTES, ROW_GROUP_ROWS):
            table = [
                {
                    "image": {"bytes": read(row), "path": row.file_name},
                    "label": row.label,
                    "file_name": row.file_name,
                    "sha256": row.sha256.hex(),
                    "group": row.group,
                    "source": row.source,
                }
                for row in group
            ]
            writer.write_table(pa.Table.from_pylist(table, schema), row_group_size=len(group))
            written(len(group))
