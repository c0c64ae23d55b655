"""Many cells at once: uploads in, rows and a differential count out. The page and the API both use this."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from hub_model.inference.classifier import Predictions
from hub_model.inference.errors import ImageError
from space.archives import Entry, count_uploads, read_uploads
from space.batching import MAX_BATCH
from space.resources import Resources
from space.texts import say


@dataclass(frozen=True)
class BulkAnswer:
    """`entries[i]` belongs to row i of `predictions`, which is None when no picture could be used.

    `left_out` counts the pictures beyond the limit by their folder.
    """

    entries: list[Entry]
    predictions: Predictions | None
    bad: list[tuple[str, ImageError]]
    left_out: Counter

    @property
    def unknown(self) -> int:
        return sum(v.kind == "unknown" for v in self.predictions.verdicts) if self.predictions else 0


def answer_uploads(
    resources: Resources,
    paths: list[str],
    progress: Callable[[int, int], None] = lambda done, total: None,
    stops: Callable[[], bool] = lambda: False,
    keep: Callable[[int, Image.Image], None] = lambda number, picture: None,
) -> BulkAnswer:
    """Classify every picture of files and zips, batch by batch: only the answers stay in memory.

    `progress(done, total)` and `stops()` are called before each batch; `keep(number, picture)` for each picture.
    """
    total = count_uploads(paths)
    entries: list[Entry] = []
    bad: list[tuple[str, ImageError]] = []
    left_out: Counter = Counter()
    answers: list[Predictions] = []
    waiting: list[Image.Image] = []

    def flush() -> None:
        if waiting:
            answers.append(resources.batcher.predict(waiting))
            waiting.clear()
        progress(min(total, len(entries) + len(bad)), total)

    for entry in read_uploads(paths):
        if entry.error is not None and entry.error.reason == "too_many":
            left_out[entry.name.rpartition("/")[0]] += 1
        elif entry.error is not None:
            bad.append((entry.name, entry.error))
        else:
            keep(len(entries), entry.picture)
            waiting.append(entry.picture)
            entries.append(replace(entry, picture=None))
            if len(waiting) == MAX_BATCH:
                flush()
                if stops():
                    break
    flush()
    if not answers:
        return BulkAnswer([], None, bad, left_out)
    logits = np.concatenate([answer.logits for answer in answers])
    features = np.concatenate([answer.features for answer in answers])
    statistics = np.concatenate([answer.appearance for answer in answers])
    return BulkAnswer(entries, resources.classifier.interpret(logits, features, statistics), bad, left_out)


def prior_note(language: str, resources: Resources) -> str:
    """What the corrected shares are corrected for."""
    prior = say(language, "prior_flat" if resources.classifier.calibration.prior is None else "prior_known")
    return say(language, "count_note", prior=prior)
