"""First pass over the raw files: every one is decoded and judged in worker processes, and of copies one is kept.

In: a source and its layout. Out: a `Survey`. A few batches are in flight, never more: memory does not grow with the files.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

from tqdm import tqdm

from dataset_script.check import Accepted, check_batch, keep_small_blocks
from dataset_script.labels import looks_published
from dataset_script.layout import Layout, Rejected
from dataset_script.overlaps import PointStore
from dataset_script.parquet import Row
from dataset_script.source import DatasetError, base_name, shown
from dataset_script.splits import rank

BATCH_FILES, BATCH_BYTES = 32, 8 * 2**20
UNDER_WAY_BYTES = 64 * 2**20  # of files that workers have, or wait for one: few when files are large


@dataclass
class Survey:
    """What the first pass found."""

    rows: list[Row] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)  # for each row, which picture it shows
    pictures: dict[bytes, int] = field(default_factory=dict)  # digest of the pixels -> node
    paths: list[str] = field(default_factory=list)  # for each node, a file that shows it
    rejected: list[Rejected] = field(default_factory=list)
    contradicted: set[bytes] = field(default_factory=set)  # SHA-256 of files found under several labels

    def forget_pictures(self) -> None:
        """Make room: once the rows have their groups, nothing asks for the pictures any more."""
        self.nodes, self.pictures, self.paths = [], {}, []


def _batches(source, paths: Iterable[str]) -> Iterator[list[tuple[str, bytes] | Rejected]]:
    """Read files and yield them in batches of bounded size; a file that cannot be read is a `Rejected`."""
    batch, filled = [], 0
    for path in paths:
        try:
            data = source.read(path)
        except OSError as error:
            reason = "damaged" if "damaged" in str(error) else "cannot be read"
            batch.append(Rejected(path, reason, error.strerror or str(error)))
            data = b""
        else:
            batch.append((path, data))
        filled += len(data)
        if len(batch) >= BATCH_FILES or filled >= BATCH_BYTES:
            yield batch
            batch, filled = [], 0
    if batch:
        yield batch


def examine(source, paths: Sequence[str], workers: int, bar: tqdm) -> Iterator[Accepted | Rejected]:
    """Yield the verdict on each file, in the order of `paths`; a few batches are in flight, never more.

    Raises:
        DatasetError: a worker process died.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dataset_script.check"])
    with ProcessPoolExecutor(workers, mp_context=context, initializer=keep_small_blocks) as pool:
        waiting: deque = deque()
        under_way = 0

        def finish() -> Iterator[Accepted | Rejected]:
            nonlocal under_way
            batch, size, future = waiting.popleft()
            verdicts = iter(future.result())
            under_way -= size
            for item in batch:
                bar.update()
                yield item if isinstance(item, Rejected) else next(verdicts)

        try:
            for batch in _batches(source, paths):
                files = [item for item in batch if not isinstance(item, Rejected)]
                size = sum(len(data) for _, data in files)
                while waiting and (len(waiting) > 2 * workers or under_way + size > UNDER_WAY_BYTES):
                    yield from finish()
                future = pool.submit(check_batch, files)
                waiting.append(
                    ([item if isinstance(item, Rejected) else None for item in batch], size, future)
                )
                under_way += size
            while waiting:
                yield from finish()
        except BrokenProcessPool as error:
            raise DatasetError(
                "a worker process died while decoding (out of memory?): nothing was written"
            ) from error


def survey(
    source,
    layout: Layout,
    listed: set[str],
    store: PointStore,
    *,
    per_class: int | None,
    seed: int,
    workers: int,
) -> tuple[Survey, int]:
    """First pass: check files until each class has `per_class` good ones, or all; `listed` holds the paths on the test list.

    Returns what was found and how many files were not needed.
    """
    found = Survey(rejected=list(layout.rejected))
    label_of = {name: label for label, name in enumerate(layout.files)}
    queues = {}
    for name, paths in layout.files.items():
        if per_class is not None:
            paths = sorted(paths, key=lambda path: rank(shown(path), seed))
        queues[name] = deque(paths)
    total = sum(min(len(paths), per_class or len(paths)) for paths in layout.files.values())
    with tqdm(total=total, desc="checking", unit="image", disable=None) as bar:
        while True:
            wanted = []
            kept = Counter(row.label for row in found.rows)
            for name, queue in queues.items():
                need = len(queue) if per_class is None else per_class - kept[label_of[name]]
                wanted += [(queue.popleft(), name) for _ in range(min(max(need, 0), len(queue)))]
            if not wanted:
                return found, sum(map(len, queues.values()))
            names = iter([name for _, name in wanted])
            for verdict in examine(source, [path for path, _ in wanted], workers, bar):
                _take(found, verdict, next(names), label_of, listed, store)
            _settle_duplicates(found)


def _take(
    found: Survey,
    verdict: Accepted | Rejected,
    name: str,
    label_of: dict[str, int],
    listed: set[str],
    store: PointStore,
) -> None:
    if isinstance(verdict, Rejected):
        found.rejected.append(verdict)
        return
    node = found.pictures.setdefault(verdict.pixels, len(found.pictures))
    if node == len(found.paths):
        found.paths.append(verdict.path)
        store.add(node, verdict.points)
    published = looks_published(name, base_name(verdict.path), verdict.size, verdict.format)
    row = Row(verdict.path, verdict.sha256, verdict.length, label_of[name], verdict.drawn, published)
    row.listed = verdict.path in listed
    found.rows.append(row)
    found.nodes.append(node)


def _settle_duplicates(found: Survey) -> None:
    """Keep one of byte-identical files (one that the test list names, if any), and none where their labels differ."""
    copies: dict[bytes, list[int]] = defaultdict(list)
    for index, row in enumerate(found.rows):
        copies[row.sha256].append(index)
    dropped = set()
    for sha256, indices in copies.items():
        if len(indices) > 1 or sha256 in found.contradicted:
            indices.sort(key=lambda index: (not found.rows[index].listed, found.rows[index].path))
            paths = [found.rows[index].path for index in indices]
            if len({found.rows[index].label for index in indices}) > 1 or sha256 in found.contradicted:
                found.contradicted.add(sha256)
                dropped.update(indices)
                for path in paths:
                    others = ", ".join(other for other in paths if other != path)
                    detail = f"also {others}" if others else "also an earlier file"
                    found.rejected.append(Rejected(path, "same bytes under different labels", detail))
            else:
                dropped.update(indices[1:])
                found.rejected += [
                    Rejected(path, "duplicate", f"same bytes as {paths[0]}") for path in paths[1:]
                ]
    if dropped:
        found.nodes = [node for index, node in enumerate(found.nodes) if index not in dropped]
        found.rows = [row for index, row in enumerate(found.rows) if index not in dropped]
