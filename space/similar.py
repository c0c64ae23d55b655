"""The most similar labelled cells: nearest features among training images, for comparison by eye.

In: samples of the dataset repo. Out: the nearest of them to a visitor's cell. The index is filled in the
background after start-up, a class-balanced sample of the training split, and can be asked from its first
batch on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from itertools import islice

import numpy as np

from hub_model.inference.errors import ImageError
from hub_model.inference.images import read_picture
from space.batching import Batcher
from space.dataset_repo import Sample

CHUNK = 8  # small, so that a visitor's cell is not kept waiting


class SimilarCells:
    """Cosine neighbours among samples (their bytes and unit features are kept: about 20 kB each)."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._known: tuple[list[Sample], np.ndarray] = ([], np.zeros((0, 0), np.float32))

    def __len__(self) -> int:
        return len(self._known[0])

    def fill_in_background(self, samples: Iterable[Sample]) -> threading.Thread:
        """Start the thread that computes the samples' features."""
        thread = threading.Thread(target=self.fill, args=(samples,), name="similar cells", daemon=True)
        thread.start()
        return thread

    def fill(self, samples: Iterable[Sample]) -> None:
        """Compute the samples' features, chunk by chunk; a reader sees whole chunks."""
        samples = iter(samples)
        while chunk := list(islice(samples, CHUNK)):
            readable, pictures = [], []
            for sample in chunk:
                try:
                    pictures.append(read_picture(sample.image))
                    readable.append(sample)
                except ImageError:
                    continue
            if readable:
                unit = _unit(self._batcher.predict(pictures).features)
                known, features = self._known
                self._known = (known + readable, np.concatenate([features, unit]) if known else unit)

    def nearest(self, features: np.ndarray, k: int = 6) -> list[tuple[Sample, float]]:
        """The k nearest samples to features [D] with their cosine similarity, nearest first."""
        known, index = self._known
        if not known:
            return []
        similarity = index @ _unit(features[None])[0]
        return [(known[i], float(similarity[i])) for i in np.argsort(-similarity)[:k]]


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
