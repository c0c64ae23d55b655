"""What `python -m hub_model.score` reads: a dataset repo or a folder of images in, pieces of encoded pictures out.

A source is cut into `Piece`s in a fixed order that depends on the input alone, so any number of processes, and a run that goes
on after a kill, divide the same work. What is in memory does not grow with the input: the pieces are at most a few thousand, a
folder's listing lies in a file, and pictures are read one after the other.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hub_model.inference.errors import RepoError

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".ppm")
PIECE_ROWS = 256  # a kill costs each process at most this many images, or a 4096th of all
MAX_PIECES = 4096
SORTED_AT_ONCE = 100_000  # paths of a listing that are held in memory


@dataclass(frozen=True)
class Picture:
    """An encoded picture: its bytes, or the path or URL that it is read from; None where the source has none."""

    file_name: str
    data: bytes | str | None
    split: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Piece:
    """A part of the work that can be read alone. `rows` is None where only reading tells; `place` is the source's own note."""

    rows: int | None
    place: tuple


class Source(Protocol):
    """`known`: which of the columns split and label it has. `settings` pins it: equal settings, equal pictures."""

    known: tuple[str, ...]
    settings: dict[str, Any]
    pieces: list[Piece]

    def read(self, piece: Piece) -> Iterator[Picture]: ...


def rows_a_piece(total: int) -> int:
    """How many images a piece should have: `PIECE_ROWS`, or more where that would give too many pieces."""
    return max(PIECE_ROWS, -(-total // MAX_PIECES))


def shown(text: str) -> str:
    """A file name as valid Unicode: bytes that are none are written as \\xNN."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class FolderImages:
    """A folder of images at any depth, in the order of their paths. Hidden files and folders are passed over."""

    known = ()

    def __init__(self, folder: Path, listing: Path, settings: dict[str, Any], pieces: list[Piece]) -> None:
        self.folder, self.listing, self.settings, self.pieces = folder, listing, settings, pieces

    @classmethod
    def open(cls, folder: Path, scratch: Path) -> FolderImages:
        """List the folder into a file below `scratch`, which the pieces are read from later on.

        Raises RepoError where there is no image.
        """
        digest, total, others = hashlib.sha256(), 0, [0]
        with tempfile.NamedTemporaryFile(dir=scratch, delete=False) as file:
            for path in in_order(images_below(folder, others), scratch):
                line = json.dumps(path).encode() + b"\n"
                digest.update(line + state(os.path.join(folder, path)))
                file.write(line)
                total += 1
        if not total:
            seen = f" ({others[0]:,} files of other kinds)" if others[0] else ""
            raise RepoError(f"there is no image below {folder}{seen}; {', '.join(SUFFIXES)} are looked for")
        listing = scratch / f"listing-{digest.hexdigest()[:16]}.jsonl"
        os.replace(file.name, listing)
        settings = {"folder": str(folder), "images": total, "listing_sha256": digest.hexdigest()}
        rows, pieces = rows_a_piece(total), []
        with listing.open("rb") as file:
            for first in range(0, total, rows):
                count = min(rows, total - first)
                pieces.append(Piece(count, (file.tell(),)))
                for _ in range(count):
                    file.readline()
        return cls(folder, listing, settings, pieces)

    def read(self, piece: Piece) -> Iterator[Picture]:
        with self.listing.open("rb") as file:
            file.seek(piece.place[0])
            for _ in range(piece.rows):
                path = json.loads(file.readline())
                yield Picture(shown(path), os.path.join(self.folder, path))


def state(path: str) -> bytes:
    """What differs when a file is replaced by another of the same name: size and time; nothing for one that is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return b"\n"
    return f"{found.st_size} {found.st_mtime_ns}\n".encode()


def images_below(folder: Path, others: list[int]) -> Iterator[str]:
    """Paths of image files below a folder, relative, in no order; `others[0]` counts what else there is.

    Links to files are followed, links to folders are not. Raises RepoError for a folder that cannot be listed.
    """
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            with os.scandir(os.path.join(folder, inside)) as entries:
                for entry in entries:
                    path = f"{inside}/{entry.name}" if inside else entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(path)
                    elif entry.name.lower().endswith(SUFFIXES) and not entry.is_dir():
                        yield path
                    else:
                        others[0] += 1
        except OSError as error:
            raise RepoError(f"{shown(str(folder / inside))} cannot be listed: {error.strerror}") from None


def in_order(paths: Iterator[str], scratch: Path) -> Iterator[str]:
    """The paths, sorted; more than `SORTED_AT_ONCE` of them are sorted in files below `scratch`."""
    runs, batch = [], []
    for path in paths:
        batch.append(path)
        if len(batch) == SORTED_AT_ONCE:
            run = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115
            run.writelines(json.dumps(path).encode() + b"\n" for path in sorted(batch))
            run.seek(0)
            runs.append(json.loads(line) for line in run)
            batch = []
    yield from heapq.merge(*runs, iter(sorted(batch)))
