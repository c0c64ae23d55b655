"""Open a dataset repo or folder with `datasets`: splits with undecoded images, and the values of the label column."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from functools import partial

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.builder import Key
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError, SplitsVerificationError
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.utils.file_utils import xopen

from hub_model.inference.errors import first_line
from hub_model.inference.hub import HUB_ERRORS
from training import TrainingError

UNREADABLE = (DatasetNotFoundError, ValueError, NotImplementedError, RuntimeError)
LABEL_KINDS = ("string", "large_string", "bool", "int", "uint", "float", "double")


def open_tables(options: Namespace, streaming: bool) -> tuple[dict, dict, dict, list[str] | None]:
    """Return the tables of the splits, the same with the label column only, its values, and the class names of a ClassLabel.

    Raises:
        TrainingError: the dataset cannot be reached or read, or lacks a column or split.
    """
    try:
        return _open_tables(options, streaming)
    except (pa.ArrowException, DatasetGenerationError) as error:
        cause = error.__cause__ or error
        empty = "BatchSize must be greater than 0" in str(cause)  # pyarrow's message for a file without rows
        reason = "a split is empty (a Parquet file without rows)" if empty else first_line(cause)
    except SplitsVerificationError:
        reason = "`dataset_info` in its card does not match the splits or sizes of its files: remove it from the card"
    except UNREADABLE as error:
        reason = several_configurations(options) or first_line(error)
    except HUB_ERRORS as error:
        raise TrainingError(f"dataset {options.dataset} cannot be reached: {first_line(error)}") from error
    raise TrainingError(f"dataset {options.dataset} cannot be read: {reason}")


def _open_tables(options: Namespace, streaming: bool) -> tuple[dict, dict, dict, list[str] | None]:
    tables = load(options, streaming)
    names = [options.train_split, options.validation_split, options.test_split]
    for split in names[:2]:
        if split not in tables:
            raise TrainingError(
                f"{options.dataset} has no split {split!r} (it has: {', '.join(tables)}); "
                "pass --train_split / --validation_split, or create the splits with `python -m dataset_script build`"
            )
    tables = {split: tables[split] for split in names if split in tables}
    kind = check_columns(options, tables[options.train_split])
    column = options.label_column
    labels = load(options, streaming, columns=[column]) if streaming else tables
    labels = {split: labels[split].select_columns([column]) for split in tables}
    values = {split: column_values(table, column) for split, table in labels.items()}
    undecoded = datasets.Image(decode=False)
    tables = {split: table.cast_column(options.image_column, undecoded) for split, table in tables.items()}
    return tables, labels, values, list(kind.names) if isinstance(kind, datasets.ClassLabel) else None


def load(options: Namespace, streaming: bool, columns: list[str] | None = None) -> dict:
    """Return the splits of the dataset; of streamed Parquet files only `columns`, if given."""
    version = {"name": options.dataset_config, "revision": options.dataset_revision}
    if not streaming:
        return dict(datasets.load_dataset(options.dataset, **version))
    builder = datasets.load_dataset_builder(options.dataset, **version)
    if isinstance(builder, Parquet):
        # `datasets` 5 uses pyarrow's scanner, whose threads read the whole file ahead of a slow consumer, and sleeps 5 s at the
        # end for them (apache/arrow#45214); remove once `datasets` reads one row group at a time
        builder.config.columns = columns
        builder._generate_tables = partial(read_row_groups, builder)
        builder.SLEEP_ON_THREADS_SHUTDOWNS = False
    return dict(builder.as_streaming_dataset())


def read_row_groups(builder: Parquet, files: list, row_groups_list: list) -> Iterator[tuple[Key, pa.Table]]:
    """Yield the tables of Parquet files with at most one row group in memory."""
    for number, (path, groups) in enumerate(zip(files, row_groups_list, strict=True)):
        with xopen(path, "rb") as raw, pq.ParquetFile(raw) as file:
            for group in range(file.num_row_groups) if groups is None else groups:
                table = file.read_row_group(group, columns=builder.config.columns, use_threads=False)
                yield Key(number, group), builder._cast_table(table)


def column_values(table: datasets.Dataset | datasets.IterableDataset, column: str) -> list:
    """Return a column as a list."""
    return [value for batch in table.iter(batch_size=1000) for value in batch[column]]


def several_configurations(options: Namespace) -> str | None:
    """Return the error message if the dataset has several configurations and none was chosen, else None."""
    if options.dataset_config:
        return None
    try:
        names = datasets.get_dataset_config_names(options.dataset, revision=options.dataset_revision)
    except (*UNREADABLE, *HUB_ERRORS):
        return None
    if len(names) < 2:
        return None
    return f"it has several configurations ({', '.join(names)}); pass --dataset_config {names[0]}"


def check_columns(options: Namespace, table) -> datasets.ClassLabel | datasets.Value:
    """Return the feature of the label column after checking that it and the image column exist and have usable types.

    Raises:
        TrainingError: they do not; names the option that selects another column.
    """
    features = table.features or table._resolve_features().features
    encoded = (datasets.Value("binary"), datasets.Value("large_binary"))  # an image file's bytes
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image) or kind in encoded]
    others = [name for name in features if name not in images]
    for flag, candidates in (("image_column", images), ("label_column", others)):
        column = getattr(options, flag)
        if column not in features:
            hint = f"; pass --{flag} {candidates[0]}" if candidates else ""
            found = ", ".join(map(repr, features))
            raise TrainingError(f"{options.dataset} has no column {column!r} (found: {found}){hint}")
    if options.image_column not in images:
        raise TrainingError(
            f"column {options.image_column!r} of {options.dataset} holds {features[options.image_column]}, not images"
            + (f"; pass --image_column {images[0]}" if images else "")
        )
    kind = features[options.label_column]
    plain = isinstance(kind, datasets.Value) and kind.dtype.startswith(LABEL_KINDS)
    if not (plain or isinstance(kind, datasets.ClassLabel)):
        raise TrainingError(
            f"column {options.label_column!r} of {options.dataset} holds {kind}, not class labels"
        )
    return kind
