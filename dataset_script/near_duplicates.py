"""Near-duplicates: near copies, and overlapping crops of one slide. Luminance in, linked images out.

How. (1) Keypoints: the strongest extrema of the band-passed image (difference of Gaussians), at most 128 per image. The pattern
within 12 pixels of each is described by 48 bits, each a comparison of two band-passed values: independent of brightness and
contrast, and hardly affected by JPEG. Of the 8 descriptors of the rotated and mirrored patterns, the smallest is kept. (2) Two
images are candidates if at least two keypoints have equal bits and agree on one shift (and orientation). Bits shared by more
than 16 keypoints are no evidence and are skipped, so the work grows with the number of images, not with its square.
(3) Candidates are decoded again and aligned: they are near-duplicates if the correlation of the band-passed images over the
overlap is at least `SAME`, and the overlap is at least a tenth of the frame. Different cells of similar shape stay far below,
since their grain and edges do not match.

The keypoints of an image take about a kilobyte in a temporary file; one partition of them at a time is in memory.

On the 3,500 real images, 30 candidates are compared: 25 pairs correlate at 0.94 or more, over a seventh to three fifths of the
frame (checked by eye: neighbouring cells of one field, each with a crop of its own), the other 5 at 0.12 or less. Synthetic
cells with nothing in common but a similar background stay below 0.77.
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
MIN_CONTRAST = 1.5  # grey levels of the band-passed image
COMMON = 16  # bits shared by more keypoints are skipped
MIN_VOTES = 2
MIN_OVERLAP = 0.1  # of the smaller frame
SAME = 0.8  # correlation of the band-passed images over the overlap
WORKING_SIDES = (160, 480)  # pixels: smaller images are enlarged and larger ones reduced, by integer factors

POINT = np.dtype([("bits", "<u8"), ("node", "<u4"), ("y", "<i2"), ("x", "<i2"), ("turn", "u1")])
VOTE = np.dtype([("a", "<u4"), ("b", "<u4"), ("turn", "u1"), ("y", "<i2"), ("x", "<i2")])
PARTITION = 2_000_000  # keypoints or votes in memory at a time

# the 8 orientations as matrices on (row, column), [8, 2, 2]: k quarter turns, then the same after mirroring
QUARTER = np.array([[0, -1], [1, 0]])
TURNS = np.array([
    np.linalg.matrix_power(QUARTER, k) @ np.diag([1, mirror]) for mirror in (1, -1) for k in range(4)
])  # fmt: skip
# RELATIVE[s, t] is the orientation that maps a pattern in orientation s to orientation t
RELATIVE = np.array([
    [next(m for m in range(8) if (TURNS[m] == TURNS[t] @ TURNS[s].T).all()) for t in range(8)] for s in range(8)
])  # fmt: skip


def _comparisons() -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets [8, BITS, 2] of the first and second value of each comparison, in each orientation."""
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
    """Return luminance [H, W] as float32, scaled by the integer factor that brings its short side near WORKING_SIDES."""
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
    """Return luminance [H, W] as float32 without its high and low spatial frequencies."""
    fine = gaussian_filter(gray, 1.6, truncate=3, mode="nearest")
    coarse = fine
    for _ in range(2):  # two box filters approximate a Gaussian of sigma 5.3 at a fifth of its cost
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
    """Return the keypoints of luminance [H, W] as an array of `POINT` with node 0."""
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
    """Records in a temporary file, read back in partitions by the field `key`; the file is deleted on `close`."""

    def __init__(self, dtype: np.dtype, key: str, folder: Path | None = None):
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.dtype, self.key, self.count = dtype, key, 0

    def add(self, records: np.ndarray) -> None:
        """Append records [n]."""
        self.file.write(records.tobytes())
        self.count += len(records)

    def partitions(self) -> Iterator[np.ndarray]:
        """Yield arrays of about PARTITION records in insertion order; records of equal key are in the same array."""
        n = 1 + self.count // PARTITION
        for partition in range(n):
            self.file.seek(0)
            arrays = [np.empty(0, dtype=self.dtype)]
            while chunk := self.file.read(self.dtype.itemsize * 100_000):
                records = np.frombuffer(chunk, dtype=self.dtype)
                arrays.append(records[records[self.key] % n == partition])
            yield np.concatenate(arrays)

    def close(self) -> None:
        self.file.close()


def _votes(points: np.ndarray) -> np.ndarray:
    """Return a VOTE for each pair of keypoints with equal bits in different images: the orientation and shift from a to b."""
    points = points[np.argsort(points["bits"], kind="stable")]
    _, counts = np.unique(points["bits"], return_counts=True)
    points = points[np.repeat((counts > 1) & (counts <= COMMON), counts)]
    result = []
    for step in range(1, COMMON):
        a, b = points[:-step], points[step:]
        same = (a["bits"] == b["bits"]) & (a["node"] != b["node"])
        a, b = a[same], b[same]
        turn = RELATIVE[a["turn"], b["turn"]]
        moved = np.einsum("nij,nj->ni", TURNS[turn], np.stack([a["y"], a["x"]], axis=1).astype(np.int64))
        votes = np.empty(len(a), dtype=VOTE)
        votes["a"], votes["b"], votes["turn"] = a["node"], b["node"], turn
        votes["y"], votes["x"] = b["y"] - moved[:, 0], b["x"] - moved[:, 1]
        result.append(votes)  # nodes were added in ascending order and the sort is stable: a < b
    return np.concatenate(result)


def candidates(points: Spool) -> Iterator[tuple[int, int, int, tuple[int, int]]]:
    """Yield (a, b, turn, (y, x)): two nodes with at least MIN_VOTES equal votes, and the orientation and shift from a to b."""
    with contextlib.closing(Spool(VOTE, "a")) as spool:
        for partition in points.partitions():
            spool.add(_votes(partition))
        for votes in spool.partitions():
            agreed, counts = np.unique(votes, return_counts=True)
            order = np.argsort(-counts, kind="stable")
            for vote in agreed[order[: np.count_nonzero(counts >= MIN_VOTES)]]:
                yield int(vote["a"]), int(vote["b"]), int(vote["turn"]), (int(vote["y"]), int(vote["x"]))


def agreement(a: np.ndarray, b: np.ndarray, turn: int, shift: tuple[int, int]) -> float:
    """Return the correlation (-1…1) of band-passed luminances [H, W] over the overlap of `b` and the transformed `a`.

    It is 0 if the overlap is less than MIN_OVERLAP of the smaller frame.
    """
    a, b = working_size(a), working_size(b)
    matrix = TURNS[turn]
    height, width = a.shape
    # pixel (row, column) of a maps to matrix @ (row, column) + shift
    corner = np.minimum(matrix @ [height - 1, width - 1], 0) + shift
    if matrix[0, 0] == 0:
        a, matrix = a.T, matrix[:, ::-1]
    a = a[:: matrix[0, 0], :: matrix[1, 1]]
    top, left = max(corner[0], 0), max(corner[1], 0)
    bottom, right = min(corner[0] + a.shape[0], b.shape[0]), min(corner[1] + a.shape[1], b.shape[1])
    height, width = bottom - top, right - left
    if min(height, width) < 8 or height * width < MIN_OVERLAP * min(a.size, b.size):
        return 0.0
    x = band_pass(a)[top - corner[0] : bottom - corner[0], left - corner[1] : right - corner[1]]
    y = band_pass(b)[top:bottom, left:right]
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / max(np.sqrt((x * x).sum() * (y * y).sum()), 1e-6))


def link(points: Spool, luminance: Callable[[int], np.ndarray]) -> tuple[DisjointSet, int, int]:
    """Merge near-duplicate nodes.

    Args:
        points: the `POINT`s of all nodes.
        luminance: returns the luminance [H, W] of a node; called only for candidates.

    Returns:
        The sets of near-duplicates among the candidates, the number of pairs compared, and of near-duplicates among these.
    """
    sets, compared, confirmed = DisjointSet(), 0, 0
    for a, b, turn, shift in candidates(points):
        sets.add(a)
        sets.add(b)
        if not sets.connected(a, b):
            compared += 1
            if agreement(luminance(a), luminance(b), turn, shift) >= SAME:
                confirmed += 1
                sets.merge(a, b)
    return sets, compared, confirmed
