"""Many uploads, among them zip files: one stream of named pictures, bad ones with their reason.

In: uploads. Out: `Entry(name, picture or error)`, the first `MAX_PICTURES` of them decoded; those beyond are named, so that
nothing is left out in silence. Nothing is unpacked to disk; names with path tricks, links, encrypted and oversized entries
are answered with their reason. What macOS and Windows add by themselves is skipped.
"""

from __future__ import annotations

import contextlib
import lzma
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from PIL import Image

from hub_model.inference.errors import ImageError
from hub_model.inference.images import CELL_SIDE, MAX_BYTES, MAX_PIXELS, decode, open_picture, read_picture

MAX_PICTURES = 5_000  # of one request that are classified
LARGEST = 144_000_000  # pixels of a JPEG that is reduced while it is decoded, or of a slide
LONGEST = 65_535  # pixels of a slide's side: more than its formats hold
MAX_ENTRIES = 50_000  # of one zip
MAX_UNPACKED = 2 * 2**30  # bytes of one zip, as its directory declares them; an entry at a time is in memory
LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", "icon\r"}
DAMAGED = (  # what zipfile and its decoders stumble over
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    OSError,
    ValueError,
)


def read_cell(source: bytes | str) -> Image.Image:
    """Decode the picture of one cell, reduced to `CELL_SIDE`; a JPEG of more than 24 megapixels, as phones send it, is reduced
    while it is decoded. Raises ImageError."""
    image = open_picture(source, LARGEST)
    if image.format != "JPEG" or image.width * image.height <= MAX_PIXELS:
        return read_picture(source, CELL_SIDE)
    factor = next((f for f in (2, 4, 8) if image.width * image.height <= MAX_PIXELS * f * f), 8)
    image.draft("RGB", (image.width // factor, image.height // factor))
    return decode(image, CELL_SIDE)


def read_slide(source: bytes | str) -> Image.Image:
    """Decode an upload whole, at up to `LARGEST` pixels, to be searched tile by tile. Raises ImageError."""
    try:
        image = open_picture(source, LARGEST, LONGEST)
    except ImageError as error:
        if error.reason != "bomb":
            raise
        raise ImageError("slide", **error.values) from None
    return decode(image)


@dataclass(frozen=True)
class Entry:
    """One picture: exactly one of `picture` and `error` is set. `entry` is its name within the zip at `path`."""

    name: str
    path: str
    entry: str | None = None
    picture: Image.Image | None = None
    error: ImageError | None = None
    sample: str = ""


def read_uploads(paths: Iterable[str], limit: int = MAX_PICTURES) -> Iterator[Entry]:
    """Every picture of the files and zips, in order, decoded one at a time; an entry of a zip is named after both."""
    taken = 0

    def full() -> bool:
        return taken >= limit

    for path in paths:
        name = getattr(path, "name", None) or Path(path).name
        if _is_zip(path):
            found = _zip_entries(path, name, full)
        elif is_litter(name):
            continue
        elif full():
            found = [Entry(name, path, error=ImageError("too_many", limit=limit))]
        else:
            found = [_read(Entry(name, path), path)]
        for entry in found:
            taken += entry.picture is not None
            yield entry


def count_uploads(paths: Iterable[str]) -> int:
    """About how many pictures `read_uploads` will come to: for a progress bar."""
    count = 0
    for path in paths:
        if _is_zip(path):
            try:
                with zipfile.ZipFile(path) as archive:
                    count += sum(not is_litter(_name(info)) for info in archive.infolist())
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


def _read(entry: Entry, source: bytes | str) -> Entry:
    try:
        return replace(entry, picture=read_cell(source))
    except ImageError as error:
        return replace(entry, error=error)


def _zip_entries(path: str, zip_name: str, full: Callable[[], bool]) -> Iterator[Entry]:
    whole = Entry(zip_name, path)
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not is_litter(_name(info))]
            if len(infos) > MAX_ENTRIES:
                raise ImageError("zip_crowded", entries=len(infos), limit=MAX_ENTRIES)
            if sum(info.file_size for info in infos) > MAX_UNPACKED:
                raise ImageError("zip_bomb")
            sample = PurePosixPath(zip_name).stem
            for info in infos:
                entry = Entry(f"{zip_name}/{_name(info)}", path, info.filename, sample=sample)
                if full():
                    yield replace(entry, error=ImageError("too_many", limit=MAX_PICTURES))
                    continue
                try:
                    yield _read(entry, _unpack(archive, info))
                except ImageError as error:
                    yield replace(entry, error=error)
    except ImageError as error:
        yield replace(whole, error=error)
    except DAMAGED:
        yield replace(whole, error=ImageError("bad_zip"))


def _name(info: zipfile.ZipInfo) -> str:
    """The name of an entry as it was meant: UTF-8 without its flag (macOS), backslashes (Windows)."""
    name = info.filename
    if not info.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def is_litter(name: str) -> bool:
    """Folders, and what macOS and Windows leave beside pictures."""
    *folders, last = name.split("/")
    return (
        (not last and len(folders) > 0)
        or "__MACOSX" in folders
        or last.startswith("._")
        or last.lower() in LITTER
    )


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    parts = _name(info).split("/")
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
