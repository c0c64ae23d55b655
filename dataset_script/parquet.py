"""The rows of the dataset as Parquet shards, `data/SPLIT-00000-of-0000N.parquet`, with the original image bytes.

The same rows give the same bytes: shards contain no time, path or machine name. Row groups are small and have a page index,
so that readers can stream them; the writer holds one of them in memory.
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
    """Return the columns of the dataset, with labels in the order of `classes` and, if `sources`, a column `source`."""
    texts = ["file_name", "sha256", "group", *["source"] * sources]
    columns = {"image": ImageFeature(), "label": ClassLabel(names=classes)}
    return Features(columns | dict.fromkeys(texts, Value("string")))


def chunks(rows: Iterable[Row], max_bytes: int, max_rows: int | None = None) -> Iterator[list[Row]]:
    """Yield chunks of at most `max_rows` rows and `max_bytes` of images; a larger image gets a chunk of its own."""
    chunk: list[Row] = []
    size = 0
    for row in rows:
        if chunk and (size + row.length > max_bytes or len(chunk) == max_rows):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += row.length
    if chunk:
        yield chunk


def write_shard(
    path: Path,
    rows: Iterable[Row],
    schema: pa.Schema,
    read: Callable[[Row], bytes],
    update: Callable[[int], object],
) -> None:
    """Write one shard; `read` returns the image bytes of a row, `update` is called with the number of rows just written."""
    options = {"compression": "snappy", "use_dictionary": ["label"], "write_page_index": True}
    with pq.ParquetWriter(path, schema, **options) as writer:
        for chunk in chunks(rows, ROW_GROUP_BYTES, ROW_GROUP_ROWS):
            table = [
                {
                    "image": {"bytes": read(row), "path": row.file_name},
                    "label": row.label,
                    "file_name": row.file_name,
                    "sha256": row.sha256.hex(),
                    "group": row.group,
                    "source": row.source,
                }
                for row in chunk
            ]
            writer.write_table(pa.Table.from_pylist(table, schema), row_group_size=len(chunk))
            update(len(chunk))
