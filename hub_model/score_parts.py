"""The unfinished predictions: `OUT.parts/` beside OUT, a Parquet file for each finished piece, and what they were made with.

A part appears whole or not at all, so what a killed run left is right and is kept. When all parts are there they become OUT in
one step, in the order of the pieces, and the folder goes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hub_model.inference.errors import RepoError

MANIFEST = "manifest.json"
KEY = b"scoring"  # of OUT's own metadata: the manifest
ROW_GROUP = 16_384


class Parts:
    """The parts of one OUT. The folder must be one that all processes, on all machines, see."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.parent / f"{out.name}.parts"  # `out` may be a folder, which `claim` refuses
        self._lock: BinaryIO | None = None

    def claim(self, resume: bool, overwrite: bool) -> None:
        """Make the folder, for this run alone. Raises RepoError when OUT is in the way or another run is at work on it."""
        if self.out.is_dir():
            raise RepoError(
                f"--out {self.out} is a folder: name a file, like {self.out / 'predictions.parquet'}"
            )
        if self.out.exists() and not (resume or overwrite or self.folder.exists()):
            raise RepoError(
                f"{self.out} is there already: pass --overwrite to replace it, or name another file"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("ab")
        except OSError as error:
            raise RepoError(f"{self.folder} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RepoError(f"another run is writing {self.out}: wait for its end") from None
        except OSError:
            pass  # a file system without locks

    def settle(self, manifest: dict[str, Any], resume: bool, overwrite: bool) -> bool:
        """Decide what is done with what is there. Returns whether OUT is these very predictions already.

        Raises RepoError: OUT or the parts were made with other settings, and --overwrite was not given.
        """
        if self.out.exists() and not overwrite:
            made_with = manifest_of(self.out)
            if made_with == manifest:
                if self.recorded() in (None, manifest):
                    self.remove()
                return True
            raise RepoError(
                f"{self.out} is there already{differing(made_with, manifest)}: pass --overwrite to replace it"
            )
        recorded = self.recorded()
        if recorded != manifest:
            if recorded is not None and not overwrite:
                raise RepoError(
                    f"{self.folder} holds an unfinished run{differing(recorded, manifest)}: repeat its settings, or pass "
                    "--overwrite to begin again"
                )
            for part in self.folder.glob("part-*"):
                part.unlink()
            self._write(self.folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        return False

    def recorded(self) -> dict[str, Any] | None:
        """What the parts were made with; None where there is no run to go on with."""
        try:
            return json.loads((self.folder / MANIFEST).read_text())
        except (OSError, ValueError):
            return None

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"

    def missing(self, pieces: int) -> list[int]:
        """The numbers of the pieces that have no part yet."""
        there = {entry.name for entry in os.scandir(self.folder)}
        return [number for number in range(pieces) if self.path(number).name not in there]

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

    def merge(self, pieces: int, images: int | None, manifest: dict[str, Any]) -> tuple[Counter, int]:
        """Make OUT of the parts. Returns how many images each class was predicted for, and how many could not be read.

        Raises RepoError: a part is damaged, or there are not `images` rows.
        """
        counts, unread, rows = Counter(), 0, 0
        unfinished = self.folder / "merged"
        with unfinished.open("wb") as file:
            writer, waiting = None, []
            for number in range(pieces):
                try:
                    table = pq.read_table(self.path(number))
                except (pa.ArrowException, OSError) as error:
                    raise RepoError(
                        f"{self.path(number)} is damaged ({error}): delete it, and the same command goes on"
                    ) from None
                counts.update(
                    {p["values"]: p["counts"] for p in pc.value_counts(table["predicted_label"]).to_pylist()}
                )
                unread += table.num_rows - table["error"].null_count
                rows += table.num_rows
                if writer is None:
                    schema = table.schema.with_metadata({KEY: json.dumps(manifest)})
                    writer = pq.ParquetWriter(file, schema, compression="zstd")
                waiting.append(table)
                if sum(map(len, waiting)) >= ROW_GROUP or number + 1 == pieces:
                    writer.write_table(pa.concat_tables(waiting), row_group_size=2 * ROW_GROUP)
                    waiting = []
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        if images is not None and rows != images:
            raise RepoError(
                f"{self.folder} holds {rows:,} rows for {images:,} images: begin again with --overwrite"
            )
        unfinished.replace(self.out)
        counts.pop(None, None)
        return counts, unread

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_if_unused(self) -> None:
        """Delete the folder unless it holds a run that can go on."""
        if self._lock is not None and self.recorded() is None:
            self.remove()


def manifest_of(out: Path) -> dict[str, Any] | None:
    """What a finished file of predictions was made with; None where it does not say."""
    with contextlib.suppress(pa.ArrowException, OSError, ValueError):
        return json.loads((pq.read_schema(out).metadata or {})[KEY])
    return None


def differing(before: dict[str, Any] | None, now: dict[str, Any]) -> str:
    """The first setting that differs, as a part of a sentence."""
    if before is None:
        return ""
    for key in now:
        if before.get(key) != now[key]:
            return f" with another {key.replace('_', ' ')} (was {before.get(key)}, now {now[key]})"
    return ""


def is_disk_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
