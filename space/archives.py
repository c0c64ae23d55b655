"""Many uploads, among them zip files: one stream of named pictures, bad ones with their reason.

In: paths of uploaded files. Out: `Entry(name, picture or error)`, at most `MAX_PICTURES` of them. Nothing is
unpacked to disk; names with path tricks, links, encrypted and oversized entries are answered with their
reason.
"""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from hub_model.inference.errors import ImageError
from hub_model.inference.images import CELL_SIDE, MAX_BYTES, read_picture

MAX_PICTURES = 500
MAX_ENTRIES = 5_000
MAX_UNPACKED = 512 * 2**20  # bytes of one zip, as its directory declares them
MAX_RATIO = 200  # of unpacked to packed size: photographs hardly shrink
DAMAGED = (  # what zipfile and its decoders stumble over
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    OSError,
    ValueError,
)


@dataclass(frozen=True)
class Entry:
    """One upload: exactly one of `picture` and `error` is set."""

    name: str
    picture: Image.Image | None = None
    error: ImageError | None = None


def read_uploads(paths: Iterable[str], names: Iterable[str] | None = None) -> Iterator[Entry]:
    """Every picture of the files and zips, in order, decoded one at a time."""
    paths = list(paths)
    taken = 0
    for path, name in zip(paths, names or [Path(path).name for path in paths], strict=True):
        for entry in _zip_entries(path, name) if _is_zip(path) else [_read(name, path)]:
            if entry.picture is not None and taken == MAX_PICTURES:
                yield Entry(entry.name, error=ImageError("too_many", limit=MAX_PICTURES))
                return
            taken += entry.picture is not None
            yield entry


def count_uploads(paths: Iterable[str]) -> int:
    """About how many pictures `read_uploads` will come to: for a progress bar."""
    count = 0
    for path in paths:
        if _is_zip(path):
            try:
                with zipfile.ZipFile(path) as archive:
                    count += sum(not _is_litter(info) for info in archive.infolist())
            except DAMAGED:
                count += 1
        else:
            count += 1
    return min(count, MAX_PICTURES)


def _is_zip(path: str) -> bool:
    """Whether it is a zip file, or the beginning of one."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04" or zipfile.is_zipfile(file)
    except OSError:
        return False


def _read(name: str, source: bytes | str) -> Entry:
    try:
        return Entry(name, picture=read_picture(source, CELL_SIDE))
    except ImageError as error:
        return Entry(name, error=error)


def _zip_entries(path: str, zip_name: str) -> Iterator[Entry]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not _is_litter(info)]
            unpacked = sum(info.file_size for info in infos)
            packed = max(1, sum(info.compress_size for info in infos))
            if len(infos) > MAX_ENTRIES:
                raise ImageError("zip_crowded", entries=len(infos), limit=MAX_ENTRIES)
            if unpacked > MAX_UNPACKED or unpacked > MAX_RATIO * packed + 2**20:
                raise ImageError("zip_bomb")
            for info in infos:
                try:
                    yield _read(info.filename, _unpack(archive, info))
                except ImageError as error:
                    yield Entry(info.filename, error=error)
    except ImageError as error:
        yield Entry(zip_name, error=error)
    except DAMAGED:
        yield Entry(zip_name, error=ImageError("bad_zip"))


def _is_litter(info: zipfile.ZipInfo) -> bool:
    """Folders, and what file managers leave behind."""
    name = PurePosixPath(info.filename).name
    return (
        info.filename.endswith("/")
        or info.filename.startswith("__MACOSX/")
        or name in {".DS_Store", "Thumbs.db"}
    )


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    parts = info.filename.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or ":" in parts[0] or stat.S_ISLNK(info.external_attr >> 16):
        raise ImageError("zip_path")
    if info.flag_bits & 0x1:
        raise ImageError("zip_locked")
    if info.file_size > MAX_BYTES:
        raise ImageError("too_large", megabytes=info.file_size // 2**20, limit=MAX_BYTES // 2**20)
    try:
        with archive.open(info) as file:
            data = file.read(info.file_size + 1)  # the directory may lie about the size
    except DAMAGED:
        raise ImageError("damaged") from None
    if len(data) > info.file_size:
        raise ImageError("zip_bomb")
    return data
