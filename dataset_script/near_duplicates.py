"""Near-duplicates: near copies, and overlapping crops cut from one slide with a shift. Luminance in, links out.

How. (1) Points: the strongest extrema of a band-passed picture (difference of Gaussians), at most 128 an image. The pattern
within 12 pixels of each is written as 48 bits, each the comparison of two band-passed values: brightness and contrast do not
change them, JPEG hardly does. Of the 8 bit patterns that turning and mirroring give, the smallest stands for all. (2) Two
images are candidates when two points or more have equal bits and agree on one shift (and turn). Bits that more than 16 points
share are no evidence and are passed over, so the work grows with the number of images, not with its square. (3) Candidates
are decoded again and laid over each other: a link needs a correlation of the band-passed pictures of at least `SAME` over the
overlap, of at least a tenth of the frame. Different cells alike in shape stay far below, since grain and edges do not agree.

An image leaves about a kilobyte of points in a file on disk; in memory there is one partition of them at a time.

On the 3,500 real images 30 candidates are compared; 25 pairs agree with 0.94 or more, over a seventh to three fifths of the frame
(looked at: neighbouring cells of one field, each with a crop of its own), the other 5 with 0.12 or less. Synthetic cells that
share nothing but a similar background stay below 0.77.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from scipy.cluster.hierarchy import DisjointSet
from scipy.ndimage import gaussian_filter, uniform_filter

RADIUS, STEP, BITS = 12, 2, 48
MAX_POINTS = 128
MIN_CONTRAST = 1.5  # grey levels of the band-passed picture
COMMON = 16  # bits that more points than this share say nothing
MIN_VOTES = 2
MIN_OVERLAP = 0.1  # of the smaller frame
SAME = 0.8  # correlation of the band-passed pictures over the overlap
WORKING_SIDES = (160, 480)  # pixels: smaller images are enlarged and larger ones reduced, by whole factors

POINT = np.dtype([("bits", "<u8"), ("node", "<u4"), ("y", "<i2"), ("x", "<i2"), ("turn", "u1")])
VOTE = np.dtype([("a", "<u4"), ("b", "<u4"), ("turn", "u1"), ("y", "<i2"), ("x", "<i2")])
PARTITION = 2_000_000  # points or votes that are held in memory at a time


def _turns() -> np.ndarray:
    """Return the 8 turns and mirrorings as matrices on (row, column), [8, 2, 2]: k quarter turns, then the same mirrored."""
    quarter = np.array([[0, -1], [1, 0]])
    return np.array([
        np.linalg.matrix_power(quarter, k) @ np.diag([1, mirror]) for mirror in (1, -1) for k in range(4)
    ])  # fmt: skip


TURNS = _turns()
# RELATIVE[s, t] is the turn that leads from a pattern seen in turn s to the same seen in turn t
RELATIVE = np.array([
    [next(m for m in range(8) if (TURNS[m] == TURNS[t] @ TURNS[s].T).all()) for t in range(8)] for s in range(8)
])  # fmt: skip


def _comparisons() -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets [8, BITS, 2] of the first and of the second value of each comparison, in each turn."""
    rng = np.random.default_rng(20211)
    span = np.arange(-RADIUS, RADIUS + 1, STEP)
    grid = np.stack(np.meshgrid(span, span, indexing="ij"), axis=-1).reshape(-1, 2)
    grid = grid[np.hypot(*grid.T) <= RADIUS]
    pairs = grid[rng.integers(len(grid), size=(4 * BITS, 2))]
    pairs = pairs[np.hypot(*(pairs[:, 0] - pairs[:, 1]).T) >= RADIUS / 2][:BITS]
    turned = np.einsum("tij,npj->tnpi", TURNS, pairs)
    return turned[:, :, 0], turned[:, :, 1]


FIRST, SECOND = _comparisons()


def working_size(gray: np.ndarray) -> np.ndarray:
    """Return luminance [H, W] enlarged or reduced by the whole factor that brings its short side near WORKING_SIDES, float32."""
    side, (low, high) = min(gray.shape), WORKING_SIDES
    if side > high:
        factor = -(-side // high)
        rows, columns = (n // factor * factor for n in gray.shape)
        blocks = gray[:rows, :columns].reshape(rows // factor, factor, columns // factor, factor)
        return blocks.mean(axis=(1, 3), dtype=np.float32)
    if side < low / 2 and max(gray.shape) <= high:
        return np.kron(gray, np.ones((round(low / side),) * 2, dtype=np.float32))
    return np.asarray(gray, dtype=np.float32)


def band_pass(gray: np.ndarray) -> np.ndarray:
    """Return luminance [H, W] without its fine noise and its slow changes, float32."""
    fine = gaussian_filter(gray, 1.6, truncate=3, mode="nearest")
    coarse = fine
    for _ in range(2):  # two boxes are near a Gaussian of 5.3 pixels, at a fifth of its cost
        coarse = uniform_filter(coarse, 13, mode="nearest")
    return fine - coarse


def _largest_around(values: np.ndarray) -> np.ndarray:
    """Return the maximum over the 7×7 pixels around each inner pixel, [H, W] to [H - 6, W - 6]."""
    for _ in range(2):  # along the rows, then along the columns
        two = np.maximum(values[:-1], values[1:])
        four = np.maximum(two[:-2], two[2:])
        values = np.maximum(four[:-3], four[3:]).T
    return values


def fingerprint(gray: np.ndarray) -> np.ndarray:
    """Return the points of a picture given as luminance, float32 [H, W]: an array of `POINT` (node 0)."""
    band = band_pass(working_size(gray))
    if min(band.shape) <= 2 * RADIUS:
        return np.zeros(0, dtype=POINT)
    around = np.abs(band)[RADIUS - 3 : 3 - RADIUS, RADIUS - 3 : 3 - RADIUS]
    strength = around[3:-3, 3:-3]
    rows, columns = np.nonzero((strength == _largest_around(around)) & (strength > MIN_CONTRAST))
    if len(rows) > MAX_POINTS:
        best = np.argsort(-strength[rows, columns], kind="stable")[:MAX_POINTS]
        rows, columns = rows[best], columns[best]
    rows, columns = rows + RADIUS, columns + RADIUS
    flat, width = band.ravel(), band.shape[1]
    centres = (rows * width + columns)[:, None, None]
    larger = flat[centres + FIRST @ [width, 1]] > flat[centres + SECOND @ [width, 1]]  # [points, 8, BITS]
    packed = np.zeros((len(rows), 8, 8), dtype=np.uint8)
    packed[..., : BITS // 8] = np.packbits(larger, axis=-1)
    words = packed.view("<u8")[..., 0]
    points = np.zeros(len(rows), dtype=POINT)
    points["turn"] = words.argmin(axis=1)
    points["bits"] = words.min(axis=1)
    points["y"], points["x"] = rows, columns
    return points


class Spool:
    """Records in a temporary file, which is gone when it is closed: those of equal `key` come back together."""

    def __init__(self, dtype: np.dtype, key: str, folder: Path | None = None):
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.dtype, self.key, self.count = dtype, key, 0

    def add(self, records: np.ndarray) -> None:
        """Append records [n]."""
        self.file.write(records.tobytes())
        self.count += len(records)

    def partitions(self) -> Iterator[np.ndarray]:
        """Yield all records, those of equal key in one array, about PARTITION at a time, in the order of adding."""
        parts = 1 + self.count // PARTITION
        for part in range(parts):
            self.file.seek(0)
            kept = [np.empty(0, dtype=self.dtype)]
            while chunk := self.file.read(self.dtype.itemsize * 100_000):
                records = np.frombuffer(chunk, dtype=self.dtype)
                kept.append(records[records[self.key] % parts == part])
            yield np.concatenate(kept)

    def close(self) -> None:
        self.file.close()


def _votes(points: np.ndarray) -> np.ndarray:
    """Return a VOTE for each two points of equal bits in different images: the turn and shift that lays a over b."""
    points = points[np.argsort(points["bits"], kind="stable")]
    bits = points["bits"]
    starts = np.flatnonzero(np.r_[True, bits[1:] != bits[:-1]]) if len(bits) else np.empty(0, dtype=int)
    sizes = np.diff(np.r_[starts, len(bits)])
    rare = np.repeat((sizes > 1) & (sizes <= COMMON), sizes)
    points = points[rare]
    found = []
    for step in range(1, COMMON):
        a, b = points[:-step], points[step:]
        same = (a["bits"] == b["bits"]) & (a["node"] != b["node"])
        a, b = a[same], b[same]
        turn = RELATIVE[a["turn"], b["turn"]]
        moved = np.einsum("nij,nj->ni", TURNS[turn], np.stack([a["y"], a["x"]], axis=1).astype(np.int64))
        votes = np.empty(len(a), dtype=VOTE)
        votes["a"], votes["b"], votes["turn"] = a["node"], b["node"], turn
        votes["y"], votes["x"] = b["y"] - moved[:, 0], b["x"] - moved[:, 1]
        found.append(votes)  # nodes were added in rising order and the sort is stable: a < b
    return np.concatenate(found)


def candidates(points: Spool) -> Iterator[tuple[int, int, int, tuple[int, int]]]:
    """Yield (a, b, turn, (y, x)): two nodes that MIN_VOTES points or more agree on, and how a is to be laid over b."""
    with contextlib.closing(Spool(VOTE, "a")) as spool:
        for some in points.partitions():
            spool.add(_votes(some))
        for votes in spool.partitions():
            agreed, counts = np.unique(votes, return_counts=True)
            order = np.argsort(-counts, kind="stable")
            for vote in agreed[order[: np.count_nonzero(counts >= MIN_VOTES)]]:
                yield int(vote["a"]), int(vote["b"]), int(vote["turn"]), (int(vote["y"]), int(vote["x"]))


def agreement(a: np.ndarray, b: np.ndarray, turn: int, shift: tuple[int, int]) -> float:
    """Return the correlation (-1…1) of two luminances [H, W] where a, turned and shifted, lies over b.

    It is taken between the band-passed pictures; 0 where the overlap is less than MIN_OVERLAP of the smaller frame.
    """
    a, b = working_size(a), working_size(b)
    matrix = TURNS[turn]
    height, width = a.shape
    # the pixel (row, column) of a goes to matrix @ (row, column) + shift: array axes follow, then the corner is found
    corner = np.minimum(matrix @ [height - 1, width - 1], 0) + shift
    if matrix[0, 0] == 0:
        a, matrix = a.T, matrix[:, ::-1]
    a = a[:: matrix[0, 0], :: matrix[1, 1]]
    top, left = max(corner[0], 0), max(corner[1], 0)
    bottom, right = min(corner[0] + a.shape[0], b.shape[0]), min(corner[1] + a.shape[1], b.shape[1])
    if (
        bottom - top < 8
        or right - left < 8
        or (bottom - top) * (right - left) < MIN_OVERLAP * min(a.size, b.size)
    ):
        return 0.0
    x = band_pass(a)[top - corner[0] : bottom - corner[0], left - corner[1] : right - corner[1]]
    y = band_pass(b)[top:bottom, left:right]
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / max(np.sqrt((x * x).sum() * (y * y).sum()), 1e-6))


def link(points: Spool, luminance: Callable[[int], np.ndarray]) -> tuple[DisjointSet, int, int]:
    """Join the nodes that show the same place.

    Args:
        points: the `POINT`s of all nodes.
        luminance: gives the luminance, float32 [H, W], of a node; called for candidates only.

    Returns:
        The sets of the nodes that were candidates, how many pairs were compared, and how many of them were the same place.
    """
    sets, compared, same = DisjointSet(), 0, 0
    for a, b, turn, shift in candidates(points):
        sets.add(a)
        sets.add(b)
        if not sets.connected(a, b):
            compared += 1
            if agreement(luminance(a), luminance(b), turn, shift) >= SAME:
                same += 1
                sets.merge(a, b)
    return sets, compared, same
