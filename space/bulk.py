"""Classify many uploads at once; used by the page and the API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from hub_model.inference.classifier import Predictions
from hub_model.inference.errors import ImageError
from space.archives import Entry, Place, count_uploads, read_uploads
from space.batching import MAX_BATCH
from space.resources import Resources
from space.texts import say


@dataclass(frozen=True)
class BulkPredictions:
    """`entries[i]` is row i of `predictions`, which is None if no picture could be used.

    `left_out` is the number of pictures beyond the limit, by folder; `stopped`: whether pictures may be left to read; `done`:
    those that were read.
    """

    entries: list[Entry]
    predictions: Predictions | None
    bad: list[tuple[str, ImageError]]
    left_out: Counter
    stopped: bool = False
    done: set[Place] = field(default_factory=set)

    @property
    def unknown(self) -> int:
        """Number of out-of-distribution cells."""
        return sum(v.kind == "unknown" for v in self.predictions.verdicts) if self.predictions else 0


def classify_uploads(
    resources: Resources,
    paths: list[str],
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
    on_picture: Callable[[int, Image.Image], None] = lambda row, picture: None,
    skip: Collection[Place] = (),
) -> BulkPredictions:
    """Classify every picture of the files and zip files in batches, without keeping the pictures in memory.

    `on_picture(row, picture)` is called for each picture, `progress(done, total)` and `should_stop()` after each batch. Pictures
    in `skip`, which a stopped job has read, are passed over.
    """
    total, stopped = count_uploads(paths, skip), False
    entries: list[Entry] = []
    bad: list[tuple[str, ImageError]] = []
    left_out: Counter = Counter()
    done: set[Place] = set()
    outputs: list[tuple[np.ndarray, ...]] = []
    batch: list[Image.Image] = []

    def flush() -> None:
        if batch:
            predictions = resources.batcher.predict(batch)
            outputs.append((predictions.logits, predictions.features, predictions.appearance))
            batch.clear()
        progress(min(total, len(entries) + len(bad)), total)

    for entry in read_uploads(paths, skip):
        done.add((entry.path, entry.entry))
        if entry.error is not None and entry.error.reason == "too_many":
            left_out[entry.name.rpartition("/")[0]] += 1
        elif entry.error is not None:
            bad.append((entry.name, entry.error))
        else:
            on_picture(len(entries), entry.picture)
            batch.append(entry.picture)
            entries.append(replace(entry, picture=None))
            if len(batch) == MAX_BATCH:
                flush()
                if stopped := should_stop():
                    break
    flush()
    if not outputs:
        return BulkPredictions([], None, bad, left_out, stopped, done)
    predictions = resources.classifier.interpret(*map(np.concatenate, zip(*outputs, strict=True)))
    return BulkPredictions(entries, predictions, bad, left_out, stopped, done)


def prior_note(language: str, resources: Resources) -> str:
    """The note on the prior that the corrected fractions are relative to."""
    prior = say(language, "prior_flat" if resources.classifier.calibration.prior is None else "prior_known")
    return say(language, "count_note", prior=prior)
