"""Many cells at once: uploads in, rows and a differential count out. The page and the API both use this.

Pictures are decoded, classified and dropped batch by batch; only the answers are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hub_model.inference.classifier import Predictions
from hub_model.inference.counts import Count
from hub_model.inference.errors import ImageError
from space.archives import count_uploads, read_uploads
from space.batching import MAX_BATCH
from space.resources import Resources
from space.texts import say

DOUBT = {"unknown": 0, "between": 1, "uncalibrated": 2, "sure": 3}


@dataclass(frozen=True)
class BulkAnswer:
    """`names[i]` belongs to row i of `predictions`; `predictions` is None when no picture could be used."""

    names: list[str]
    predictions: Predictions | None
    bad: list[tuple[str, ImageError]]
    counts: list[Count]

    @property
    def unknown(self) -> int:
        return sum(v.kind == "unknown" for v in self.predictions.verdicts) if self.predictions else 0

    @property
    def doubtful(self) -> int:
        return sum(v.kind == "between" for v in self.predictions.verdicts) if self.predictions else 0

    def doubtful_first(self) -> list[int]:
        """Row numbers: OOD images, then open questions, then the sure; the least confident first in each."""
        if self.predictions is None:
            return []
        confidences = self.predictions.confidences
        kinds = [DOUBT[verdict.kind] for verdict in self.predictions.verdicts]
        return sorted(range(len(self.names)), key=lambda row: (kinds[row], confidences[row]))


def answer_uploads(
    resources: Resources, paths: list[str], progress: Callable[[int, int], None] = lambda done, total: None
) -> BulkAnswer:
    """Classify every picture of files and zips (at most 500); `progress(done, total)` after each batch."""
    total = count_uploads(paths)
    names: list[str] = []
    bad: list[tuple[str, ImageError]] = []
    answers: list[Predictions] = []
    waiting: list[Image.Image] = []

    def flush() -> None:
        if waiting:
            answers.append(resources.batcher.predict(waiting))
            waiting.clear()
        progress(min(total, len(names) + len(bad)), total)

    for entry in read_uploads(paths):
        if entry.picture is None:
            bad.append((entry.name, entry.error))
            continue
        names.append(entry.name)
        waiting.append(entry.picture)
        if len(waiting) == MAX_BATCH:
            flush()
    flush()
    if not answers:
        return BulkAnswer([], None, bad, [])
    logits = np.concatenate([answer.logits for answer in answers])
    features = np.concatenate([answer.features for answer in answers])
    predictions = resources.classifier.interpret(logits, features)
    return BulkAnswer(names, predictions, bad, count_known(resources, predictions))


def count_known(resources: Resources, predictions: Predictions) -> list[Count]:
    """The differential count of the cells that the model knows."""
    return resources.classifier.calibration.count(predictions.probabilities, predictions.ood_score)


def summary(language: str, answer: BulkAnswer) -> str:
    """One line: counted, doubtful, unknown, bad."""
    counted = sum(count.cells for count in answer.counts)
    parts = [say(language, "count_cells", counted=counted)]
    if answer.doubtful:
        parts.append(say(language, "count_doubtful", doubtful=answer.doubtful))
    if answer.unknown:
        parts.append(say(language, "count_unknown", unknown=answer.unknown))
    if answer.bad:
        parts.append(say(language, "count_bad", bad=len(answer.bad)))
    return " · ".join(parts)


def prior_note(language: str, resources: Resources) -> str:
    """What the corrected shares are corrected for."""
    prior = say(language, "prior_flat" if resources.classifier.calibration.prior is None else "prior_known")
    return say(language, "count_note", prior=prior)
