"""Write the predictions of `python -m hub_model score`: one Parquet file per shard in `OUT.parts/`, merged into OUT at the end.

Shards are written atomically, so those of an interrupted run are complete and are kept. Once all shards are written, they are
merged into OUT in order, again atomically, and their folder is deleted.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hub_model.inference.calibration import names_in
from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import ImageError, RepoError, first_line
from hub_model.inference.images import read_image
from hub_model.score_sources import Row, path_or_bytes

KEY = b"scoring"  # OUT's metadata: what it was made with


def schema_of(classifier: Classifier, source_columns: tuple[str, ...]) -> pa.Schema:
    """Return the schema of the predictions; `source_columns` are those of `split` and `label` that the source has."""
    text = pa.string()
    columns = [("file_name", text), *((name, text) for name in source_columns), ("predicted_label", text)]
    columns += [(f"probability_{label}", pa.float32()) for label in classifier.label_names]
    columns += [(f"conformal_set_{level}", pa.list_(text)) for level in classifier.calibration.thresholds]
    return pa.schema([*columns, ("ood_score", pa.float64()), ("verdict", text), ("error", text)])


def predict(classifier: Classifier, batch: list[Row], schema: pa.Schema) -> pa.Table:
    """Return the predictions for a batch, one row per image, in order; unreadable images have an `error` instead."""
    pixels, indices, errors = [], [], []
    for row in batch:
        try:
            pixels.append(classifier.preprocess([read_image(path_or_bytes(row["image"]))]))
            errors.append(None)
        except ImageError as error:
            errors.append(str(error))
        except OSError as error:
            errors.append(f"The file cannot be read: {error.strerror or first_line(error)}")
        indices.append(None if errors[-1] else len(pixels) - 1)
    columns: dict[str, Any] = {name: [row[name] for row in batch] for name in ("file_name", "split", "label")}
    columns["error"] = errors
    columns |= {field.name: pa.nulls(len(batch), field.type) for field in schema if field.name not in columns}
    if pixels:
        predictions = classifier.interpret(*classifier.forward(np.concatenate(pixels)))
        predicted: dict[str, Any] = {"predicted_label": predictions.labels}
        predicted["verdict"] = [verdict.kind for verdict in predictions.verdicts]
        if predictions.ood_score is not None:
            predicted["ood_score"] = predictions.ood_score
        for i, label in enumerate(predictions.label_names):
            predicted[f"probability_{label}"] = predictions.probabilities[:, i].astype(np.float32)
        for level, sets in predictions.sets.items():
            predicted[f"conformal_set_{level}"] = names_in(sets, predictions.label_names)
        rows = pa.array(indices, pa.int64())
        for name, values in predicted.items():
            columns[name] = pa.array(values, schema.field(name).type).take(rows)
    return pa.table(columns, schema=schema)


class Shards:
    """The shards of one OUT, in a folder that every process on every machine can see."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.parent / f"{out.name}.parts"  # not `with_name`: `out` may be a folder, see `claim`
        self.manifest = self.folder / "manifest.json"
        self._lock: BinaryIO | None = None

    def claim(self) -> None:
        """Create and lock the folder. Raises RepoError if that is impossible or another run has the lock."""
        if self.out.is_dir():
            raise RepoError(
                f"--out {self.out} is a directory: pass a file, like {self.out / 'predictions.parquet'}"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("ab")
        except OSError as error:
            raise RepoError(f"{self.folder} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock = None
            raise RepoError(f"another run is writing {self.out}: wait until it ends") from None
        except OSError:
            pass  # a file system without locks

    def is_complete(self, manifest: dict[str, Any], overwrite: bool) -> bool:
        """Return whether OUT already has these predictions; if not, prepare the folder to start or to resume.

        Raises RepoError: OUT or its shards were made with other settings, and `overwrite` is not set.
        """
        if self.out.exists() and not overwrite:
            previous = load_json(lambda: (pq.read_schema(self.out).metadata or {})[KEY])
            if previous == manifest:
                return True
            raise RepoError(
                f"{self.out} exists{first_change(previous, manifest)}: pass --overwrite to replace it"
            )
        previous = load_json(self.manifest.read_text)
        if previous != manifest:
            if previous is not None and not overwrite:
                raise RepoError(
                    f"{self.folder} has an unfinished run{first_change(previous, manifest)}: repeat its settings, or pass "
                    "--overwrite to start over"
                )
            for shard in self.folder.glob("part-*"):
                shard.unlink()
            write_atomically(self.manifest, json.dumps(manifest, indent=1).encode())
        return False

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"

    def missing(self, shards: int) -> list[int]:
        """Return the numbers of the shards that are not written yet."""
        written = set(os.listdir(self.folder))
        return [number for number in range(shards) if self.path(number).name not in written]

    def write(self, number: int, table: pa.Table) -> None:
        """Write one shard atomically."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        write_atomically(self.path(number), sink.getvalue())

    def merge(self, shards: int, manifest: dict[str, Any]) -> tuple[Counter, int]:
        """Merge the shards into OUT. Returns the number of images by predicted class, and of unreadable ones.

        Raises RepoError: a shard is damaged, or there are more or fewer rows than images.
        """
        counts, unreadable, rows = Counter(), 0, 0
        temporary = self.folder / "merged"
        schema = pq.read_schema(self.path(0)).with_metadata({KEY: json.dumps(manifest)})
        with temporary.open("wb") as file:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for path in map(self.path, range(shards)):
                    try:
                        table = pq.read_table(path)
                    except (pa.ArrowException, OSError) as error:
                        raise RepoError(
                            f"{path} is damaged ({first_line(error)}): delete it and rerun to resume"
                        ) from None
                    writer.write_table(table)
                    counts.update(table["predicted_label"].drop_null().to_pylist())
                    unreadable += table.num_rows - table["error"].null_count
                    rows += table.num_rows
            file.flush()
            os.fsync(file.fileno())
        if rows != manifest.get("images", rows):
            raise RepoError(
                f"{self.folder} has {rows:,} rows for {manifest['images']:,} images: start over with --overwrite"
            )
        temporary.replace(self.out)
        self.remove()
        return counts, unreadable

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_if_unused(self) -> None:
        """Delete the folder unless it has a run to resume or another run has locked it."""
        if self._lock is not None and load_json(self.manifest.read_text) is None:
            self.remove()


def write_atomically(path: Path, data: Any) -> None:
    """Write bytes to a temporary file, sync it and rename it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_json(read: Callable[[], str | bytes]) -> dict[str, Any] | None:
    """Parse what `read()` returns as JSON; None if there is none."""
    try:
        return json.loads(read())
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None


def first_change(previous: dict[str, Any] | None, current: dict[str, Any]) -> str:
    """Return the first setting that changed, for use in a sentence; empty if there is none."""
    for key in current:
        if previous is not None and previous.get(key) != current[key]:
            return f" with another {key.replace('_', ' ')} (was {previous.get(key)}, now {current[key]})"
    return ""
