"""Parquet files streamed by `datasets` a row group at a time.

As it is, `datasets` reads them through pyarrow's scanner, whose threads read ahead of a slower reader by up to a gigabyte for
each open file. They may also outlive the stream, for which `datasets` waits five seconds at its end (apache/arrow#45214).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetBuilder
from datasets.builder import Key
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.utils.file_utils import xopen


def read_by_row_groups(builder: DatasetBuilder) -> None:
    """Let a builder, if it is the one for Parquet, hold no more of a file than the row group that is read."""
    if isinstance(builder, Parquet):
        builder._generate_tables = partial(_tables, builder)
        builder.SLEEP_ON_THREADS_SHUTDOWNS = False


def _tables(
    builder: Parquet, files: Iterable[str], row_groups_list: Iterable[Iterable[int] | None]
) -> Iterator[tuple[Key, pa.Table]]:
    for number, (path, groups) in enumerate(zip(files, row_groups_list, strict=True)):
        with xopen(path, "rb") as raw, pq.ParquetFile(raw) as file:
            for group in range(file.num_row_groups) if groups is None else groups:
                table = file.read_row_group(group, columns=builder.config.columns, use_threads=False)
                yield Key(number, group), builder._cast_table(table)
