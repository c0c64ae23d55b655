"""The labelled training cells most similar to a visitor's cell: nearest neighbours in feature space.

In: samples of the dataset repo and features of a cell. Out: its nearest samples. The index is a class-balanced sample of the
training split, filled in the background after start-up; it can be queried while it grows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice

import numpy as np

from hub_model.inference.errors import ImageError
from hub_model.inference.images import read_image
from space.batching import Batcher
from space.dataset_repo import Sample

CHUNK = 8  # images per batch: small, so that visitors do not wait long


class SimilarCells:
    """Nearest samples by cosine similarity. Stores their bytes and unit features, about 20 kB each."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._index: tuple[list[Sample], np.ndarray] = ([], np.zeros((0, 0), np.float32))

    def __len__(self) -> int:
        return len(self._index[0])

    def fill_in_background(self, samples: Iterable[Sample]) -> threading.Thread:
        """Start and return the thread that runs `fill`."""
        thread = threading.Thread(target=self.fill, args=(samples,), name="similar cells", daemon=True)
        thread.start()
        return thread

    def fill(self, samples: Iterable[Sample]) -> None:
        """Add the samples with their features, chunk by chunk; skips images that cannot be decoded."""
        samples = iter(samples)
        while chunk := list(islice(samples, CHUNK)):
            readable, pictures = [], []
            for sample in chunk:
                with suppress(ImageError):
                    pictures.append(read_image(sample.image))
                    readable.append(sample)
            if readable:
                new = _unit(self._batcher.predict(pictures).features)
                indexed, features = self._index
                self._index = (indexed + readable, np.concatenate([features, new]) if indexed else new)

    def nearest(self, features: np.ndarray, k: int = 6) -> list[tuple[Sample, float]]:
        """The `k` samples nearest to features [D] with their cosine similarities, nearest first."""
        indexed, unit_features = self._index
        if not indexed:
            return []
        similarity = unit_features @ _unit(features[None])[0]
        return [(indexed[i], float(similarity[i])) for i in np.argsort(-similarity)[:k]]


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
