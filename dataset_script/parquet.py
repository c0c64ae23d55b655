"""The rows of the dataset as Parquet shards: `data/SPLIT-00000-of-0000N.parquet`, image bytes as they were found.

The same rows give the same bytes: no time, path or machine goes in. Row groups are small and carry a page index, so that
readers stream them; only one of them is in memory here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    text = Value("string")
    columns = {"image": ImageFeature(), "label": ClassLabel(names=classes)}
    texts = ("file_name", "sha256", "group", "source")[: 4 if sources else 3]
    return Features({**columns, **dict.fromkeys(texts, text)})


def shards(rows: Sequence[Row], max_bytes: int) -> list[list[Row]]:
    """Cut rows into shards of at most `max_bytes` of images each (a larger image has a shard of its own)."""
    cut: list[list[Row]] = [[]]
    filled = 0
    for row in rows:
        if cut[-1] and filled + row.length > max_bytes:
            cut.append([])
            filled = 0
        cut[-1].append(row)
        filled += row.length
    return cut


def _row_groups(rows: Sequence[Row]) -> Iterator[list[Row]]:
    group: list[Row] = []
    filled = 0
    for row in rows:
        group.append(row)
        filled += row.length
        if len(group) == ROW_GROUP_ROWS or filled >= ROW_GROUP_BYTES:
            yield group
            group, filled = [], 0
    if group:
        yield group


def write_shard(
    path: Path,
    rows: Sequence[Row],
    schema: pa.Schema,
    read: Callable[[Row], bytes],
    written: Callable[[int], object],
) -> None:
    """Write one shard; `read` gives the bytes of a row's image, and `written` is told of how many more rows have been."""
    with pq.ParquetWriter(
        path, schema, compression="snappy", use_dictionary=["label"], write_page_index=True
    ) as writer:
        for group in _row_groups(rows):
            images = [{"bytes": read(row), "path": row.file_name} for row in group]
            columns = {
                "image": pa.array(images, schema.field("image").type),
                "label": pa.array([row.label for row in group], pa.int64()),
                "file_name": [row.file_name for row in group],
                "sha256": [row.sha256.hex() for row in group],
                "group": [row.group for row in group],
            }
            if "source" in schema.names:
                columns["source"] = [row.source for row in group]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=len(group))
            written(len(group))
