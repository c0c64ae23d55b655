"""First pass over the raw files: decodes every file completely in worker processes, and keeps one of identical files.

Sources and class folders in; `Validated`, with the small records that grouping needs, out. Each worker reads the files that it
checks, one at a time.
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
from dataset_script.source import DatasetError, Sources
from dataset_script.splits import rank
from dataset_script.synthetic_cells import COMMENT
from hub_model.inference.errors import ImageError
from hub_model.inference.images import SUFFIXES, decode, open_image
from hub_model.inference.text import printable

CHUNK_FILES = 32  # sent to a worker process at a time
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h, see mallopt(3)
REASONS = {
    "empty": "zero bytes", "too_large": "absurd file size", "animated": "several pages",
    **dict.fromkeys(("too_small", "too_wide", "too_narrow", "bomb"), "absurd dimensions"),
    **dict.fromkeys(("unread", "needs_heif"), "unsupported format"), "depth": "samples of unknown scale",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Accepted:
    """An image that decodes completely."""

    row: Row
    pixels: bytes  # digest of the decoded image, 16 bytes: equal for files that differ only in metadata
    points: np.ndarray  # see near_duplicates.POINT


def luminance(picture: Image.Image) -> np.ndarray:
    """Return the luminance of an image, uint8 [H, W]."""
    return np.asarray(picture.convert("L"))


def check(path: str, data: bytes) -> Accepted | Rejected:
    """Decode one file completely; no content of the file raises an error."""
    try:
        image = open_image(data)
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
    """Return a 16-byte digest of size and pixels, hashed a million pixels at a time: `tobytes` takes twice their memory."""
    hashed = hashlib.blake2b(repr(picture.size).encode(), digest_size=16)
    rows = max(1, 2**20 // picture.width)
    for top in range(0, picture.height, rows):
        hashed.update(picture.crop((0, top, picture.width, min(top + rows, picture.height))).tobytes())
    return hashed.digest()


_worker: dict = {}  # of a worker process: its "sources"


def start_worker(sources: Sources) -> None:
    """Prepare a worker process: keep its sources, and let glibc's malloc keep up to 16 MB of freed blocks of up to 4 MB.

    By default, malloc returns an image's buffers to the system, which maps and zeroes their 600 pages again for the next one.
    """
    _worker["sources"] = sources
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, 4 * 2**20)
        mallopt(M_TRIM_THRESHOLD, 16 * 2**20)


def check_file(path: str) -> Accepted | Rejected:
    """Read and check a file of this worker's sources."""
    try:
        data = _worker["sources"].read(path)
    except OSError as error:
        reason = "damaged" if "damaged" in str(error) else "cannot be read"
        return Rejected(path, reason, error.strerror or str(error))
    return check(path, data)


@dataclass
class Validated:
    """The outcome of the first pass."""

    rows: list[Row] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)  # of a file for each node
    rejected: list[Rejected] = field(default_factory=list)
    spare: int = 0  # unchecked files beyond --per_class
    _nodes: dict[bytes, int] = field(default_factory=dict)  # digest of the pixels -> node
    _conflicting: set[bytes] = field(default_factory=set)  # SHA-256 of files with several labels

    def add(self, item: Accepted, label: int, listed: bool, points: Spool) -> None:
        """Add an accepted file, and its keypoints if its pixels are new."""
        item.row.label, item.row.listed = label, listed
        node = item.row.node = self._nodes.setdefault(item.pixels, len(self.paths))
        if node == len(self.paths):
            self.paths.append(item.row.path)
            item.points["node"] = node
            points.add(item.points)
        self.rows.append(item.row)

    def remove_duplicates(self) -> None:
        """Keep one of byte-identical files (one on the test list, if any), or none if their labels differ."""
        copies: dict[bytes, list[Row]] = defaultdict(list)
        for row in self.rows:
            copies[row.sha256].append(row)
        dropped: set[str] = set()
        for sha256, rows in copies.items():
            paths = [row.path for row in sorted(rows, key=lambda row: (not row.listed, row.path))]
            if len({row.label for row in rows}) > 1 or sha256 in self._conflicting:
                self._conflicting.add(sha256)
                dropped.update(paths)
                for path in paths:
                    others = ", ".join(other for other in paths if other != path) or "an earlier file"
                    item = Rejected(path, "same bytes under different labels", f"also {others}")
                    self.rejected.append(item)
            else:
                dropped.update(paths[1:])
                self.rejected += [Rejected(p, "duplicate", f"same bytes as {paths[0]}") for p in paths[1:]]
        self.rows = [row for row in self.rows if row.path not in dropped]


def validate(
    sources: Sources, folders: ClassFolders, listed: set[str], points: Spool, *, per_class: int | None, seed: int, workers: int
) -> Validated:  # fmt: skip
    """Check files until each class has `per_class` good ones, or all of them; `listed` has the paths on the test list.

    Raises:
        DatasetError: a worker process died.
    """
    validated = Validated(rejected=list(folders.rejected))
    queues = [deque(paths) for paths in folders.files.values()]
    if per_class is not None:
        queues = [deque(sorted(queue, key=lambda path: rank(printable(path), seed))) for queue in queues]
    total = sum(min(len(queue), per_class or len(queue)) for queue in queues)
    with tqdm(total=total, desc="checking", unit="image", disable=None) as bar:
        while True:
            kept = Counter(row.label for row in validated.rows)
            batch = [
                (queue.popleft(), label)
                for label, queue in enumerate(queues)
                for _ in range(min(len(queue), (per_class or len(queue)) - kept[label]))
            ]
            if not batch:
                validated.spare = sum(map(len, queues))
                return validated
            results = check_all(sources, [path for path, _ in batch], workers, bar)
            for (path, label), result in zip(batch, results, strict=True):
                if isinstance(result, Rejected):
                    validated.rejected.append(result)
                else:
                    validated.add(result, label, path in listed, points)
            validated.remove_duplicates()


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Defer SIGINT and SIGTERM to the end of the block: a worker that loses its parent while it starts prints a traceback."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {n: signal.signal(n, lambda n, _: received.append(n)) for n in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt


def check_all(
    sources: Sources, paths: Sequence[str], workers: int, bar: tqdm
) -> Iterator[Accepted | Rejected]:
    """Yield the result of each file, in the order of `paths`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dataset_script.validate"])
    chunk = max(1, min(CHUNK_FILES, len(paths) // (4 * workers)))
    with contextlib.ExitStack() as stack:
        try:
            with signals_deferred():
                pool = ProcessPoolExecutor(workers, context, start_worker, (sources,))
                stack.callback(pool.shutdown, cancel_futures=True)
                results = pool.map(check_file, paths, chunksize=chunk)  # starts the workers
            for result in results:
                bar.update()
                yield result
        except BrokenProcessPool as error:
            raise DatasetError("a worker process died (out of memory?): nothing was written") from error
