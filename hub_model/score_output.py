"""The predictions of `python -m hub_model score`: a Parquet part for each shard in `OUT.parts/`, then one file OUT.

A part appears whole or not at all, so what a killed run left is right and is kept. When all parts are there they become OUT in
one step, in the order of the shards, and the folder goes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hub_model.inference.calibration import names_in
from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import ImageError, RepoError, first_line
from hub_model.inference.images import read_picture
from hub_model.score_sources import Row, encoded

KEY = b"scoring"  # of OUT's own metadata: what it was made with


def schema_of(classifier: Classifier, known: tuple[str, ...]) -> pa.Schema:
    """The columns of the predictions; `known` are those that the source has of `split` and `label`."""
    text = pa.string()
    columns = [("file_name", text), *((name, text) for name in known), ("predicted_label", text)]
    columns += [(f"probability_{label}", pa.float32()) for label in classifier.label_names]
    columns += [(f"conformal_set_{level}", pa.list_(text)) for level in classifier.calibration.thresholds]
    return pa.schema([*columns, ("ood_score", pa.float64()), ("verdict", text), ("error", text)])


def answer(classifier: Classifier, images: list[Row], schema: pa.Schema) -> pa.Table:
    """The rows of one batch of images, in the same order."""
    pixels, places, errors = [], [], []
    for image in images:
        reason = None
        try:
            pixels.append(classifier.preprocess([read_picture(encoded(image["image"]))]))
        except ImageError as error:
            reason = str(error)
        except OSError as error:
            reason = f"The file cannot be read: {error.strerror or first_line(error)}"
        errors.append(reason)
        places.append(None if reason else len(pixels) - 1)
    columns: Row = {}
    if pixels:
        found = classifier.interpret(*classifier.forward(np.concatenate(pixels)))
        columns = {"predicted_label": found.labels, "ood_score": found.ood_score}
        columns["verdict"] = [verdict.kind for verdict in found.verdicts]
        for index, label in enumerate(found.label_names):
            columns[f"probability_{label}"] = found.probabilities[:, index].astype(np.float32)
        for level, members in found.sets.items():
            columns[f"conformal_set_{level}"] = names_in(members, found.label_names)
    rows, arrays = pa.array(places, pa.int64()), []
    for field in schema:
        if field.name in ("file_name", "split", "label"):
            arrays.append(pa.array([image[field.name] for image in images], field.type))
        elif field.name == "error":
            arrays.append(pa.array(errors, field.type))
        else:
            values = columns.get(field.name)
            values = [None] * len(pixels) if values is None else values
            arrays.append(pa.array(values, field.type).take(rows))
    return pa.table(arrays, schema=schema)


class Parts:
    """The parts of one OUT. The folder must be one that all processes, on all machines, see."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.parent / f"{out.name}.parts"  # `out` may be a folder, which `claim` refuses
        self.manifest = self.folder / "manifest.json"
        self._lock: BinaryIO | None = None

    def claim(self) -> None:
        """Make the folder, for this run alone. Raises RepoError when it cannot, or another run is at work on it."""
        if self.out.is_dir():
            raise RepoError(
                f"--out {self.out} is a folder: name a file, like {self.out / 'predictions.parquet'}"
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
            raise RepoError(f"another run is writing {self.out}: wait for its end") from None
        except OSError:
            pass  # a file system without locks

    def settle(self, manifest: dict[str, Any], overwrite: bool) -> bool:
        """Return whether OUT holds these very predictions; else begin, or go on with what an unfinished run left.

        Raises RepoError: OUT or the parts were made with other settings, and --overwrite was not given.
        """
        if self.out.exists() and not overwrite:
            made_with = read_json(lambda: (pq.read_schema(self.out).metadata or {})[KEY])
            if made_with == manifest:
                return True
            raise RepoError(
                f"{self.out} exists{differing(made_with, manifest)}: pass --overwrite to replace it"
            )
        recorded = read_json(self.manifest.read_text)
        if recorded != manifest:
            if recorded is not None and not overwrite:
                raise RepoError(
                    f"{self.folder} holds an unfinished run{differing(recorded, manifest)}: repeat its settings, or pass "
                    "--overwrite to start over"
                )
            for part in self.folder.glob("part-*"):
                part.unlink()
            self._write(self.manifest, json.dumps(manifest, indent=1).encode())
        return False

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"

    def missing(self, shards: int) -> list[int]:
        """The numbers of the shards that have no part yet."""
        there = {entry.name for entry in os.scandir(self.folder)}
        return [number for number in range(shards) if self.path(number).name not in there]

    def write(self, number: int, table: pa.Table) -> None:
        """Put one part in its place, in one step."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        self._write(self.path(number), sink.getvalue())

    def _write(self, path: Path, data: Any) -> None:
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    def merge(self, shards: int, manifest: dict[str, Any]) -> tuple[Counter, int]:
        """Make OUT of the parts. Returns how many images each class was predicted for, and how many could not be read.

        Raises RepoError: a part is damaged, or there are more or fewer rows than images.
        """
        counts, unread, rows = Counter(), 0, 0
        unfinished = self.folder / "merged"
        schema = pq.read_schema(self.path(0)).with_metadata({KEY: json.dumps(manifest)})
        with unfinished.open("wb") as file:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for number in range(shards):
                    try:
                        table = pq.read_table(self.path(number))
                    except (pa.ArrowException, OSError) as error:
                        raise RepoError(
                            f"{self.path(number)} is damaged ({first_line(error)}): delete it and rerun to resume"
                        ) from None
                    writer.write_table(table)
                    counts.update(table["predicted_label"].drop_null().to_pylist())
                    unread += table.num_rows - table["error"].null_count
                    rows += table.num_rows
            file.flush()
            os.fsync(file.fileno())
        if rows != manifest.get("images", rows):
            raise RepoError(
                f"{self.folder} holds {rows:,} rows for {manifest['images']:,} images: start over with --overwrite"
            )
        unfinished.replace(self.out)
        self.remove()
        return counts, unread

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_if_unused(self) -> None:
        """Delete the folder unless it holds a run that can resume, or is another run's."""
        if self._lock is not None and read_json(self.manifest.read_text) is None:
            self.remove()


def read_json(read: Any) -> dict[str, Any] | None:
    """What `read()` returns, as JSON; None where there is none."""
    try:
        return json.loads(read())
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None


def differing(before: dict[str, Any] | None, now: dict[str, Any]) -> str:
    """The first setting that differs, as a part of a sentence."""
    changed = [key for key in now if before is not None and before.get(key) != now[key]]
    if not changed:
        return ""
    return (
        f" with another {changed[0].replace('_', ' ')} (was {before.get(changed[0])}, now {now[changed[0]]})"
    )
