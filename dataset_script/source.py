"""Where the raw files come from: a folder, a zip of one, or a Kaggle dataset in; paths and bytes out.

Nothing is unpacked and no path is followed out of the source: an entry that climbs, links or lies is listed with the
reason why it is not read. Paths are relative to the source, with forward slashes.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_BYTES = 64 * 2**20  # no cell crop is larger; bounds what one file can take of the memory
BOMB_RATIO = 200  # image formats hardly compress; a zip entry that grows more than this is a bomb
SYSTEM_NAMES = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information"}


class DatasetError(ValueError):
    """Something about the input that the person at the keyboard can change, in one sentence."""


def shown(text: str) -> str:
    """Return a file name as valid Unicode: bytes that are none and control characters are written as \\xNN."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def base_name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


class FolderSource:
    """A folder on this machine."""

    def __init__(self, root: Path):
        self.root = self.place = Path(root).resolve()

    def listing(self) -> Iterator[tuple[str, str]]:
        """Yield (path, reason) of everything below the folder, in sorted order; the reason is "" for a plain file."""
        yield from self._walk("")

    def _walk(self, folder: str) -> Iterator[tuple[str, str]]:
        try:
            with os.scandir(self.root / folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            yield folder, f"cannot be read: {error.strerror}"
            return
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if is_hidden(entry.name):
                yield path, "hidden or system file"
            elif entry.is_symlink():
                yield path, self._judge_link(path)
            elif entry.is_dir(follow_symlinks=False):
                yield from self._walk(path)
            else:
                yield path, "" if entry.is_file(follow_symlinks=False) else "not a regular file"

    def _judge_link(self, path: str) -> str:
        try:
            target = (self.root / path).resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: a loop of links
            return "broken symlink"
        if not target.is_relative_to(self.root):
            return "symlink out of the folder"
        return "" if target.is_file() else "symlink to a folder"

    def read(self, path: str) -> bytes:
        """Return the bytes of a listed file, at most MAX_FILE_BYTES + 1 of them.

        Raises:
            OSError: the file cannot be read, or became a link out of the folder since it was listed.
        """
        full = self.root / path
        if full.is_symlink() and self._judge_link(path):
            raise OSError(f"{shown(path)} is a link out of the folder")
        with open(full, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            return file.read(MAX_FILE_BYTES + 1)


class ZipSource:
    """A zip file, read entry by entry, never unpacked."""

    def __init__(self, path: Path):
        self.place = path.resolve()
        try:
            self.archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise DatasetError(f"{path} is not a zip file that can be read: {error}") from error
        self.entries: dict[str, zipfile.ZipInfo] = {}

    def listing(self) -> Iterator[tuple[str, str]]:
        """Yield (path, reason) of every entry, in sorted order; the reason is "" for a plain file."""
        infos = [info for info in self.archive.infolist() if not info.is_dir()]
        for info in sorted(infos, key=lambda info: info.filename):
            path = info.filename.replace("\\", "/")
            reason = self._judge(path, info)
            if not reason:
                self.entries[path] = info
            yield path, reason

    def _judge(self, path: str, info: zipfile.ZipInfo) -> str:
        parts = path.split("/")
        if path.startswith("/") or re.match(r"[A-Za-z]:", path) or ".." in parts:
            return "path climbs out of the zip"
        if any(is_hidden(part) for part in parts):
            return "hidden or system file"
        if stat.S_ISLNK(info.external_attr >> 16):
            return "symlink in a zip"
        if info.flag_bits & 0x1:
            return "encrypted"
        if info.file_size > max(BOMB_RATIO * info.compress_size, 2**20):
            return "zip bomb"
        return "same path twice in the zip" if path in self.entries else ""

    def read(self, path: str) -> bytes:
        """Return the bytes of a listed entry, at most MAX_FILE_BYTES + 1 of them.

        Raises:
            OSError: the entry is damaged.
        """
        try:
            with self.archive.open(self.entries[path]) as file:
                return file.read(MAX_FILE_BYTES + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise OSError(f"damaged zip entry: {error}") from error


def fetch_from_kaggle(name: str) -> Path:
    """Download `OWNER/DATASET` with kagglehub (which keeps a cache) and return its folder.

    Raises:
        DatasetError: the package is missing, or Kaggle cannot be reached or refuses.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(/versions/\d+)?", name):
        raise DatasetError(f"kaggle:{name} should look like kaggle:OWNER/DATASET")
    try:
        import kagglehub
    except ImportError as error:
        raise DatasetError(
            'kaggle: needs the package kagglehub (pip install "bone-marrow-cells[kaggle]"); '
            "or download the dataset by hand and give its folder or zip"
        ) from error
    try:
        return Path(kagglehub.dataset_download(name))
    except Exception as error:  # kagglehub lets through whatever its transports raise
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DatasetError(
            f"Kaggle dataset {name} could not be downloaded ({text}); check the network and the name, "
            "or download it by hand and give its folder or zip"
        ) from error


def open_source(raw: str) -> FolderSource | ZipSource:
    """Open RAW: a folder, a zip file or `kaggle:OWNER/DATASET`.

    Raises:
        DatasetError: there is no such thing, or it cannot be read.
    """
    if not raw:
        raise DatasetError("RAW is empty: give a folder (one folder a class), a zip, or kaggle:OWNER/DATASET")
    if raw.startswith("kaggle:"):
        return FolderSource(fetch_from_kaggle(raw.removeprefix("kaggle:")))
    path = Path(raw)
    if path.is_dir():
        return FolderSource(path)
    if path.is_file():
        return ZipSource(path)
    raise DatasetError(
        f"{shown(raw)} does not exist: give a folder (one folder a class), a zip, or kaggle:OWNER/DATASET"
    )
