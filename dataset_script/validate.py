"""First pass over the raw files: every one is decoded to its last pixel in worker processes, and of copies one is kept.

In: a source and its class folders. Out: `Validated`, with what grouping needs: small records. Each worker reads the files that it
checks, one at a time. Their bytes are never changed.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import multiprocessing
import signal
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset_script.classes import ClassFolders, suffix
from dataset_script.near_duplicates import Spool, fingerprint
from dataset_script.records import Rejected, Row
from dataset_script.source import DatasetError
from dataset_script.splits import rank
from dataset_script.synthetic_cells import COMMENT
from hub_model.inference.errors import ImageError
from hub_model.inference.images import SUFFIXES, decode, open_picture, read_picture
from hub_model.inference.text import shown

CHUNK_FILES = 32  # that a worker process is given at a time
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h, see mallopt(3)
REASONS = {
    "empty": "zero bytes", "too_large": "absurd file size", "animated": "several pages",
    **dict.fromkeys(("too_small", "too_wide", "too_narrow", "bomb"), "absurd dimensions"),
    **dict.fromkeys(("unread", "needs_heif"), "format that is not read"), "depth": "samples of unknown scale",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Accepted:
    """A whole image."""

    row: Row
    pixels: bytes  # digest of the decoded picture, 16 bytes: equal for a copy with other metadata
    points: np.ndarray  # see near_duplicates.POINT


def luminance(picture: Image.Image) -> np.ndarray:
    """Return a picture as luminance, uint8 [H, W]."""
    return np.asarray(picture.convert("L"))


def read_luminance(data: bytes) -> np.ndarray:
    """Return the luminance, uint8 [H, W], of a file that was accepted."""
    return luminance(read_picture(data))


def check(path: str, data: bytes) -> Accepted | Rejected:
    """Decode one file completely. Never raises for what is in the file."""
    try:
        image = open_picture(data)
        kind = "JPEG" if image.format == "MPO" else image.format
        if suffix(path) and SUFFIXES.get(suffix(path)) != kind:
            return Rejected(path, "wrong extension", f"content is {kind}")
        synthetic = image.info.get("comment") == COMMENT
        picture = decode(image)
    except ImageError as error:
        return Rejected(path, REASONS.get(error.reason, error.reason.replace("_", " ")), str(error))
    row = Row(path, hashlib.sha256(data).digest(), len(data), picture.size, kind, synthetic)
    return Accepted(row, digest(picture), fingerprint(luminance(picture)))


def digest(picture: Image.Image) -> bytes:
    """Return a digest of size and pixels, a million pixels at a time: Pillow hands out all of them twice over."""
    hashed = hashlib.blake2b(repr(picture.size).encode(), digest_size=16)
    rows = max(1, 2**20 // picture.width)
    for top in range(0, picture.height, rows):
        hashed.update(picture.crop((0, top, picture.width, min(top + rows, picture.height))).tobytes())
    return hashed.digest()


_sources: list = []  # of a worker process: where it reads


def start_worker(source) -> None:
    """Prepare a worker process to read from this source."""
    keep_small_blocks()
    _sources[:] = [source]


def check_file(path: str) -> Accepted | Rejected:
    """Read and check a file of the source that this worker was started with."""
    try:
        data = _sources[0].read(path)
    except OSError as error:
        reason = "damaged" if "damaged" in str(error) else "cannot be read"
        return Rejected(path, reason, error.strerror or str(error))
    return check(path, data)


def keep_small_blocks() -> None:
    """Tell a worker's malloc, where it is glibc's, to keep up to 16 MB of what is freed, in blocks of up to 4 MB.

    By default it returns an image's buffers to the system, which maps and zeroes their 600 pages again for the next one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 4 * 2**20)
        mallopt(M_TRIM_THRESHOLD, 16 * 2**20)


@dataclass
class Validated:
    """What the first pass found."""

    rows: list[Row] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)  # for each node, a file that shows it
    rejected: list[Rejected] = field(default_factory=list)
    spare: int = 0  # files that were not needed
    _nodes: dict[bytes, int] = field(default_factory=dict)  # digest of the pixels -> node
    _contradicted: set[bytes] = field(default_factory=set)  # SHA-256 of files found under several labels

    def add(self, item: Accepted, label: int, listed: bool, store: Spool) -> None:
        item.row.label, item.row.listed = label, listed
        node = item.row.node = self._nodes.setdefault(item.pixels, len(self.paths))
        if node == len(self.paths):
            self.paths.append(item.row.path)
            item.points["node"] = node
            store.add(item.points)
        self.rows.append(item.row)

    def settle_copies(self) -> None:
        """Keep one of byte-identical files (one that the test list names, if any), and none where their labels differ."""
        copies: dict[bytes, list[Row]] = defaultdict(list)
        for row in self.rows:
            copies[row.sha256].append(row)
        dropped: set[str] = set()
        for sha256, rows in copies.items():
            paths = [row.path for row in sorted(rows, key=lambda row: (not row.listed, row.path))]
            if len({row.label for row in rows}) > 1 or sha256 in self._contradicted:
                self._contradicted.add(sha256)
                dropped.update(paths)
                for path in paths:
                    others = ", ".join(other for other in paths if other != path) or "an earlier file"
                    self.rejected.append(
                        Rejected(path, "same bytes under different labels", f"also {others}")
                    )
            else:
                dropped.update(paths[1:])
                self.rejected += [Rejected(p, "duplicate", f"same bytes as {paths[0]}") for p in paths[1:]]
        self.rows = [row for row in self.rows if row.path not in dropped]


def validate(
    source, folders: ClassFolders, listed: set[str], store: Spool, *, per_class: int | None, seed: int, workers: int
) -> Validated:  # fmt: skip
    """Check files until each class has `per_class` good ones, or all; `listed` holds the paths on the test list.

    Raises:
        DatasetError: a worker process died.
    """
    found = Validated(rejected=list(folders.rejected))
    queues = [deque(paths) for paths in folders.files.values()]
    if per_class is not None:
        queues = [deque(sorted(queue, key=lambda path: rank(shown(path), seed))) for queue in queues]
    total = sum(min(len(queue), per_class or len(queue)) for queue in queues)
    with tqdm(total=total, desc="checking", unit="image", disable=None) as bar:
        while True:
            kept = Counter(row.label for row in found.rows)
            wanted = [
                (queue.popleft(), label)
                for label, queue in enumerate(queues)
                for _ in range(min(len(queue), (per_class or len(queue)) - kept[label]))
            ]
            if not wanted:
                found.spare = sum(map(len, queues))
                return found
            verdicts = _check_all(source, [path for path, _ in wanted], workers, bar)
            for (path, label), verdict in zip(wanted, verdicts, strict=True):
                if isinstance(verdict, Rejected):
                    found.rejected.append(verdict)
                else:
                    found.add(verdict, label, path in listed, store)
            found.settle_copies()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals to stop back until the end of the block: a worker that loses its parent while it starts prints a traceback."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _check_all(source, paths: Sequence[str], workers: int, bar: tqdm) -> Iterator[Accepted | Rejected]:
    """Yield the verdict on each file, in the order of `paths`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dataset_script.validate"])
    chunk = max(1, min(CHUNK_FILES, len(paths) // (4 * workers)))
    with ProcessPoolExecutor(workers, context, start_worker, (source,)) as pool:
        try:
            with uninterrupted():
                verdicts = pool.map(check_file, paths, chunksize=chunk)  # starts the workers
            for verdict in verdicts:
                bar.update()
                yield verdict
        except BrokenProcessPool as error:
            raise DatasetError(
                "a worker process died while decoding (out of memory?): nothing was written"
            ) from error
