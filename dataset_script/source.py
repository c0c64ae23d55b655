"""Sources of raw files: folders, zips or Kaggle datasets in; paths and bytes out.

Zips are not unpacked, and nothing outside a source is read unless --follow_links is given: entries that lead outside and zip
bombs are listed with the reason why they are not read. Paths are relative to the source, with forward slashes; a zip inside a
folder counts as a folder. With several sources, each path begins with the name of its source.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from dataset_script.records import READ_THROUGH_LINK
from hub_model.inference.errors import first_line
from hub_model.inference.images import MAX_BYTES
from hub_model.inference.text import SYSTEM_NAMES, printable

BOMB_RATIO = 200  # maximum compression ratio of a zip entry, except in these formats
UNCOMPRESSED = (".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".csv", ".tsv", ".txt")
# only zips are read, and only outside other zips
ARCHIVES = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".rar", ".7z", ".zip")
PACKED = "archive that is not read"
OUT_OF_FOLDER = "symlink out of the folder"
Listing = Iterator[tuple[str, str]]  # (path, reason why it is not read, "" if it is)


class DatasetError(ValueError):
    """An error in the input that the user can fix; the message is one sentence."""


def base_name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


class FolderSource:
    """A local folder, including the zips in it."""

    def __init__(self, root: Path, follow_links: bool = False, zip_encoding: str | None = None):
        self.root = self.place = Path(root).resolve()
        self.follow_links, self.zip_encoding = follow_links, zip_encoding
        self.zips: dict[str, ZipSource] = {}
        self._targets: set[Path] = set()  # of symlinks in the folder: read through these

    def listing(self) -> Listing:
        """Yield everything below the folder, in sorted order."""
        for path, reason in list(self._walk("")):
            full = self.root / path
            if not reason and self._targets and full.resolve() == full:  # not reached through a symlink
                reason = "" if self._targets.isdisjoint((full, *full.parents)) else READ_THROUGH_LINK
            yield path, reason

    def _walk(self, folder: str) -> Listing:
        try:
            with os.scandir(self.root / folder) as iterator:
                entries = sorted(iterator, key=lambda entry: entry.name)
        except OSError as error:
            yield folder, f"cannot be read: {error.strerror}"
            return
        for entry in entries:
            path, name = f"{folder}/{entry.name}".lstrip("/"), entry.name.lower()
            if is_hidden(name):
                yield path, "hidden or system file"
            elif entry.is_symlink():
                yield from self._follow(path)
            elif entry.is_dir():
                yield from self._walk(path)
            elif not entry.is_file():
                yield path, "not a regular file"
            elif name.endswith(".zip"):
                yield from self._open_zip(path)
            else:
                yield path, PACKED if name.endswith(ARCHIVES) else ""

    def _follow(self, path: str) -> Listing:
        link = self.root / path
        try:
            target = link.resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: a loop of links
            yield path, "broken symlink"
            return
        if not (self.follow_links or target.is_relative_to(self.root)):
            yield path, OUT_OF_FOLDER
        elif target.is_dir() and (target in self._targets or link.parent.resolve().is_relative_to(target)):
            yield path, "symlink to a folder that is read already"
        elif target.is_dir():
            self._targets.add(target)
            yield from self._walk(path)
        else:
            self._targets.add(target)
            yield path, "" if target.is_file() else "not a regular file"

    def _open_zip(self, path: str) -> Listing:
        try:
            archive = self.zips[path] = ZipSource(self.root / path, self.zip_encoding)
        except (DatasetError, OSError) as error:
            yield path, f"damaged zip: {error}"
            return
        for inner, reason in archive.listing():
            yield f"{path}/{inner}", reason

    def read(self, path: str) -> bytes:
        """Return the bytes of a listed file, at most MAX_BYTES + 1 of them.

        Raises:
            OSError: the file cannot be read, or has become a symlink out of the folder since it was listed.
        """
        for name, archive in self.zips.items():
            if path.startswith(f"{name}/"):
                return archive.read(path[len(name) + 1 :])
        full = self.root / path
        if not self.follow_links and not Path(os.path.realpath(full)).is_relative_to(self.root):
            raise OSError(f"{printable(path)} is a link out of the folder")
        with open(full, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            return file.read(MAX_BYTES + 1)


class ZipSource:
    """A zip file, read entry by entry without unpacking it."""

    def __init__(self, path: Path, encoding: str | None = None):
        self.place, self.encoding = path.resolve(), encoding
        try:
            self.archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise DatasetError(f"{path} is not a zip file that can be read: {error}") from error
        self.entries: dict[str, zipfile.ZipInfo] = {}

    def __getstate__(self) -> dict:
        return vars(self) | {"archive": None}  # reopened in another process

    def listing(self) -> Listing:
        """Yield every entry, in sorted order.

        Raises:
            DatasetError: the names of its folders are in an unknown code page.
        """
        entries = [(self._path(info), info) for info in self.archive.infolist()]
        for path, info in sorted(entries, key=lambda entry: entry[0]):
            if not path.endswith("/"):
                reason = self._judge(path, info)
                if not reason:
                    self.entries[path] = info
                yield path, reason

    def _path(self, info: zipfile.ZipInfo) -> str:
        """Return an entry's path without redundant dots and slashes."""
        return re.sub(r"(?<![^/])\./|(?<=/)/+", "", self._name(info).replace("\\", "/"))

    def _name(self, info: zipfile.ZipInfo) -> str:
        """Return an entry's name, decoded as UTF-8 (which macOS writes without the flag) or in a code page."""
        if info.flag_bits & 0x800:
            return info.filename
        raw = info.filename.encode("cp437")  # zipfile decodes names without the UTF-8 flag as cp437
        for encoding in filter(None, ("utf-8", self.encoding)):
            try:
                return raw.decode(encoding)
            except (UnicodeDecodeError, LookupError):
                continue
        folder = info.filename.replace("\\", "/").rpartition("/")[0]
        if not all(char.isascii() or char.isalpha() for char in folder):
            raise DatasetError(
                f"{self.place.name} has folder names in an unknown code page ({printable(folder)}): pass --zip_encoding, "
                "for example cp866, gbk or shift_jis"
            )
        return info.filename

    def _judge(self, path: str, info: zipfile.ZipInfo) -> str:
        """Return the reason why an entry is not read, "" if it is."""
        parts, name = path.split("/"), path.lower()
        compressible = name.endswith(UNCOMPRESSED) and info.file_size <= MAX_BYTES
        reasons = {
            "path climbs out of the zip": re.match(r"/|[A-Za-z]:", path) or ".." in parts,
            "hidden or system file": any(map(is_hidden, parts)),
            "symlink in a zip: unpack the zip and give its folder": stat.S_ISLNK(info.external_attr >> 16),
            "encrypted: unpack the zip and give its folder": info.flag_bits & 0x1,
            PACKED: name.endswith(ARCHIVES),
            "zip bomb": info.file_size > max(BOMB_RATIO * info.compress_size, 2**20) and not compressible,
            "same path twice in the zip": path in self.entries,
        }
        return next((reason for reason, applies in reasons.items() if applies), "")

    def read(self, path: str) -> bytes:
        """Return the bytes of a listed entry, at most MAX_BYTES + 1 of them.

        Raises:
            OSError: the entry is damaged.
        """
        self.archive = self.archive or zipfile.ZipFile(self.place)
        try:
            with self.archive.open(self.entries[path]) as file:
                return file.read(MAX_BYTES + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise OSError(f"damaged zip entry: {error}") from error


class Sources:
    """Several sources read as one: each path begins with the source's name, `NAME-2` for the second one of a name."""

    def __init__(self, raws: Sequence[str], follow_links: bool = False, zip_encoding: str | None = None):
        """Open `NAME=RAW` arguments, or a single RAW without a name.

        Raises:
            DatasetError: a source does not exist or cannot be read, or one of several has no name.
        """
        self.parts: dict[str, FolderSource | ZipSource] = {}
        for raw in raws:
            match = None if Path(raw).exists() else re.fullmatch(r"([A-Za-z]\w*)=(.*)", raw, re.DOTALL)
            name, location = match.groups() if match else ("", raw)
            if not name and len(raws) > 1:
                raise DatasetError(
                    f"several sources need a name each, as in bone_marrow=FOLDER: {printable(raw)} has none"
                )
            earlier = sum(part == name or part.startswith(f"{name}-") for part in self.parts)
            key = f"{name}-{earlier + 1}" if earlier else name
            self.parts[key] = open_source(location, follow_links, zip_encoding)

    def read(self, path: str) -> bytes:
        """Return the bytes of a listed file, at most MAX_BYTES + 1 of them; OSError if it cannot be read."""
        if "" in self.parts:
            return self.parts[""].read(path)
        name, _, inner = path.partition("/")
        return self.parts[name].read(inner)

    def name_of(self, path: str) -> str:
        """Return the name of a file's source, "" if it has none."""
        return "" if "" in self.parts else re.sub(r"-\d+$", "", path.partition("/")[0])


def open_source(
    raw: str, follow_links: bool = False, zip_encoding: str | None = None
) -> FolderSource | ZipSource:
    """Open RAW: a folder, a zip file or `kaggle:OWNER/DATASET`.

    Raises:
        DatasetError: it does not exist or cannot be read.
    """
    path = fetch_from_kaggle(raw.removeprefix("kaggle:")) if raw.startswith("kaggle:") else Path(raw)
    if raw and path.is_dir():
        return FolderSource(path, follow_links, zip_encoding)
    if path.is_file():
        return ZipSource(path, zip_encoding)
    problem = f"{printable(raw)} does not exist" if raw else "RAW is empty"
    raise DatasetError(f"{problem}: pass a folder (one subfolder per class), a zip, or kaggle:OWNER/DATASET")


def fetch_from_kaggle(name: str) -> Path:
    """Download `OWNER/DATASET` with kagglehub (which caches it) and return its folder.

    Raises:
        DatasetError: the package is missing, or Kaggle cannot be reached or refuses.
    """
    by_hand = "or download the dataset manually and pass its folder or zip"
    try:
        import kagglehub

        return Path(kagglehub.dataset_download(name))
    except ImportError as error:
        install = 'pip install "bone-marrow-cells[kaggle]"'
        raise DatasetError(f"kaggle: needs the package kagglehub ({install}), {by_hand}") from error
    except Exception as error:  # kagglehub does not wrap the errors of its HTTP client
        raise DatasetError(
            f"Kaggle dataset {name} could not be downloaded ({first_line(error)}); check the network and the name "
            f"(OWNER/DATASET), {by_hand}"
        ) from error
