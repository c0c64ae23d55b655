"""Read uploads, zip files among them, as one stream of named pictures and errors.

In: paths of uploads. Out: one `Entry` per picture. The first `MAX_PICTURES` are decoded; the rest are reported with an error.
Nothing is unpacked to disk. Entries with an unsafe path, links, encrypted and oversized entries are rejected with their
reason. Files that operating systems add to folders are skipped.
"""

from __future__ import annotations

import contextlib
import lzma
import stat
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image

from hub_model.inference.errors import ImageError
from hub_model.inference.images import CELL_SIDE, MAX_BYTES, MAX_PIXELS, decode, open_image, read_image
from hub_model.inference.text import is_system_file

MAX_PICTURES = 5_000  # classified per request
LARGEST = 144_000_000  # pixels of a slide, or of a JPEG that is downscaled while decoding
LONGEST = 65_535  # pixels of a slide's side: the most that JPEG can hold
MAX_ENTRIES = 50_000  # of one zip file
MAX_UNPACKED = 2 * 2**30  # bytes of one zip file in total, as declared; one entry at a time is in memory
# raised by zipfile and its decoders for damaged files
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError, ValueError)
Place = tuple[str, str | None]  # path of an upload, and entry of a zip file


def read_cell(source: bytes | str) -> Image.Image:
    """Decode the picture of one cell, downscaled to `CELL_SIDE`. Raises ImageError.

    A JPEG of more than `MAX_PIXELS`, such as a phone photograph, is downscaled while decoding.
    """
    image = open_image(source, LARGEST)
    if image.format != "JPEG" or image.width * image.height <= MAX_PIXELS:
        return read_image(source, CELL_SIDE)
    factor = next((f for f in (2, 4, 8) if image.width * image.height <= MAX_PIXELS * f * f), 8)
    image.draft("RGB", (image.width // factor, image.height // factor))
    return decode(image, CELL_SIDE)


def read_slide(source: bytes | str) -> Image.Image:
    """Decode the picture of a field or slide at full size, up to `LARGEST` pixels. Raises ImageError."""
    try:
        image = open_image(source, LARGEST, LONGEST)
    except ImageError as error:
        if error.reason != "bomb":
            raise
        raise ImageError("slide", **error.values) from None
    return decode(image)


@dataclass(frozen=True)
class Entry:
    """One picture: either `picture` or `error` is set. `entry` is its name within the zip file at `path`."""

    name: str
    path: str
    entry: str | None = None
    picture: Image.Image | None = None
    error: ImageError | None = None
    sample: str = ""


def read_uploads(paths: Iterable[str], skip: Collection[Place] = ()) -> Iterator[Entry]:
    """Yield every picture of the files and zip files that is not in `skip`, in order, decoding one at a time."""
    left = MAX_PICTURES
    for path in paths:
        name = getattr(path, "name", None) or Path(path).name
        if _is_zip(path):
            entries = _zip_entries(path, name, left, skip)
        elif is_system_file(name) or (path, None) in skip:
            continue
        else:
            entries = [_decoded(Entry(name, path), left, partial(read_cell, path))]
        for entry in entries:
            left -= entry.picture is not None
            yield entry


def count_uploads(paths: Iterable[str], skip: Collection[Place] = ()) -> int:
    """Approximate number of entries that `read_uploads` yields, for a progress bar; at most `MAX_PICTURES`."""
    count = 0
    for path in paths:
        files: list[str | None] = [None]
        if _is_zip(path):
            with contextlib.suppress(*DAMAGED), zipfile.ZipFile(path) as archive:
                files = [info.filename for info in _files(archive)]
        count += sum((path, file) not in skip for file in files)
    return min(count, MAX_PICTURES)


def _is_zip(path: str) -> bool:
    """Whether a file is a zip file, truncated ones included."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04" or zipfile.is_zipfile(file)
    except OSError:
        return False


def _decoded(entry: Entry, left: int, read: Callable[[], Image.Image]) -> Entry:
    """The entry with its picture, or with an error if it cannot be read or `MAX_PICTURES` were decoded already."""
    try:
        if not left:
            raise ImageError("too_many", limit=MAX_PICTURES)
        return replace(entry, picture=read())
    except ImageError as error:
        return replace(entry, error=error)


def _zip_entries(path: str, zip_name: str, left: int, skip: Collection[Place]) -> Iterator[Entry]:
    """The entries of a zip file without those in `skip`; at most `left` are decoded."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = _files(archive)
            if len(infos) > MAX_ENTRIES:
                raise ImageError("zip_crowded", entries=len(infos), limit=MAX_ENTRIES)
            if sum(info.file_size for info in infos) > MAX_UNPACKED:
                raise ImageError("zip_bomb")
            sample = PurePosixPath(zip_name).stem
            for info in infos:
                if (path, info.filename) in skip:
                    continue
                entry = Entry(f"{zip_name}/{_name(info)}", path, info.filename, sample=sample)
                entry = _decoded(entry, left, partial(_read_entry, archive, info))
                left -= entry.picture is not None
                yield entry
    except ImageError as error:
        yield Entry(zip_name, path, error=error)
    except DAMAGED:
        yield Entry(zip_name, path, error=ImageError("bad_zip"))


def _name(info: zipfile.ZipInfo) -> str:
    """The intended name of an entry: macOS writes UTF-8 without setting its flag, Windows writes backslashes."""
    name = info.filename
    if not info.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _files(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The entries that are neither folders nor files that an operating system adds to them."""
    infos = archive.infolist()
    return [info for info in infos if not (_name(info).endswith("/") or is_system_file(_name(info)))]


def _read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Image.Image:
    """Read and decode an entry. Raises ImageError."""
    names = _name(info).split("/")
    if ".." in names or names[0] == "" or ":" in names[0] or stat.S_ISLNK(info.external_attr >> 16):
        raise ImageError("zip_path")
    if info.flag_bits & 0x1:
        raise ImageError("zip_locked")
    if info.file_size > MAX_BYTES:
        raise ImageError("too_large", megabytes=info.file_size // 2**20, limit=MAX_BYTES // 2**20)
    try:
        with archive.open(info) as file:
            data = file.read(info.file_size + 1)  # the declared size may be wrong
    except DAMAGED:
        raise ImageError("damaged") from None
    if len(data) > info.file_size:
        raise ImageError("zip_bomb")
    return read_cell(data)
