"""The review desk: classified cells, what the visitor corrects, and the differential count of both together.

In: cells with the model's answers, corrections, cells counted by hand. Out: the count a class, "by the model" and "by
you"; and the desk as the values that `review.js` shows.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hub_model.inference.appearance import Shift
from hub_model.inference.calibration import Calibration, Verdict, names_in
from hub_model.inference.classifier import Predictions
from hub_model.inference.counts import wilson_interval
from hub_model.inference.errors import ImageError
from space.archives import read_slide
from space.fields import Box, cut

UNDECIDED, EXCLUDED = "?", "-"
SHOWN_SIDE = 256  # of the pictures on the page; the originals are what is exported
EXTRA = {  # cells of a marrow differential that the seven classes leave out: name in English and Indonesian
    "proerythroblast": "proeritroblas", "erythroblast": "eritroblas", "myelocyte": "mielosit", "metamyelocyte": "metamielosit",
    "band neutrophil": "neutrofil batang", "basophil": "basofil", "plasma cell": "sel plasma", "megakaryocyte": "megakariosit",
}  # fmt: skip


@lru_cache(maxsize=1)  # all boxes of a field are cut out one after the other
def open_field(path: str) -> Image.Image:
    """The picture of a field as its boxes measure it."""
    return read_slide(path)


@dataclass(frozen=True)
class Source:
    """Where the original bytes of a cell are: an upload, an entry of a zip, or a box of a field."""

    path: str
    entry: str | None = None
    box: Box | None = None

    def read(self) -> bytes:
        """The bytes as they were sent; for a box, its crop as PNG."""
        if self.box is not None:
            cut(open_field(self.path), self.box).save(buffer := io.BytesIO(), "PNG")
            return buffer.getvalue()
        if self.entry is not None:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.entry)
        return Path(self.path).read_bytes()


@dataclass(frozen=True)
class Cell:
    """`picture` is a small JPEG for the page; `sample` the zip, folder or field that it came in."""

    number: int
    sample: str
    file: str
    picture: Path
    source: Source
    label: str
    verdict: Verdict
    probabilities: np.ndarray
    sets: dict[str, list[str]]
    ood_score: float | None

    @property
    def folder(self) -> str:
        """The folder within a zip, which may be its class."""
        return self.file.rpartition("/")[0]

    @property
    def counted(self) -> str | None:
        """The class that the model's answer counts as; None for what the model does not know."""
        return None if self.verdict.kind == "unknown" else self.label


@dataclass(frozen=True)
class Row:
    """One class of a count; shares in 0…1, intervals 95%. `corrected` is None for classes that the model does not have."""

    label: str
    by_model: int
    by_you: int
    share: float
    interval: tuple[float, float]
    corrected: float | None
    corrected_interval: tuple[float, float] | None

    @property
    def cells(self) -> int:
        return self.by_model + self.by_you


@dataclass
class Desk:
    """`identity` changes with the cells: the page then forgets what it undid and filtered."""

    label_names: tuple[str, ...]
    cells: list[Cell] = field(default_factory=list)
    corrections: dict[int, str] = field(default_factory=dict)
    by_hand: dict[str, int] = field(default_factory=dict)
    without: set[str] = field(default_factory=set)  # classes out of the denominator
    bad: list[tuple[str, ImageError]] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)  # class folder -> pictures beyond the limit
    taken: set[str] = field(default_factory=set)  # uploads that are in it
    turn: float = 0.0  # of the latest corrections
    shift: Shift | None = None  # of the latest batch that looked unlike the training images
    field: dict[str, Any] | None = None  # url, width and height of a field's picture
    stopped: bool = False  # before all pictures were classified
    repo: str = ""  # of the visitor's, where it was pushed

    def add(
        self, sample: str, file: str, picture: Path, source: Source, predictions: Predictions, row: int
    ) -> Cell:
        """Put one answered cell on the desk."""
        names = predictions.label_names
        sets = {level: names_in(members[[row]], names)[0] for level, members in predictions.sets.items()}
        score = None if predictions.ood_score is None else float(predictions.ood_score[row])
        cell = Cell(len(self.cells), sample, file, picture, source, predictions.labels[row],
                    predictions.verdicts[row], predictions.probabilities[row], sets, score)  # fmt: skip
        self.cells.append(cell)
        return cell

    def label_of(self, cell: Cell) -> str | None:
        """What a cell counts as: the visitor's word, else the model's; None when it is not counted."""
        label = self.corrections.get(cell.number, cell.counted)
        return None if label in (UNDECIDED, EXCLUDED) else label

    def correct(self, corrections: dict[Any, Any], allowed: Collection[str], turn: float = 0.0) -> None:
        """Take over the page's corrections, all at once, unless later ones are here already.

        What is no cell or no class of this desk is dropped.
        """
        if turn < self.turn:
            return
        self.turn = turn
        numbers = range(len(self.cells))
        self.corrections = {
            int(n): str(label)
            for n, label in corrections.items()
            if str(n).isdecimal() and int(n) in numbers and str(label) in {UNDECIDED, EXCLUDED, *allowed}
        }

    def of_sample(self, sample: str = "") -> list[Cell]:
        return [cell for cell in self.cells if not sample or sample in (cell.sample, cell.folder)]

    def count(self, calibration: Calibration, sample: str = "") -> list[Row]:
        """The differential count of a sample, or of all of them with what was counted by hand.

        What the visitor said is certain, what the model said is corrected as `calibration` does: the corrected shares are the
        mean of both by their numbers of cells, and the deviations of their intervals add up in quadrature.
        """
        model, you, answers = Counter(), Counter(), []
        for cell in self.of_sample(sample):
            label = self.label_of(cell)
            if label is not None and cell.number in self.corrections:
                you[label] += 1
            elif label is not None:
                model[label] += 1
                answers.append(cell.probabilities)
        if not sample:
            you.update({label: n for label, n in self.by_hand.items() if n > 0})
        labels = [*self.label_names, *sorted({*model, *you} - set(self.label_names))]
        labels = [label for label in labels if label not in self.without]
        total = sum(model[label] + you[label] for label in labels)
        if not total:
            return []
        counts = {c.label: c for c in calibration.count(np.array(answers))} if answers else {}
        by_you, by_model = sum(you.values()), len(answers)
        estimates = {}  # of all cells, those of classes that are left out among them: share, low, high
        for label in labels:
            parts = [(by_you, you[label] / max(1, by_you), wilson_interval(you[label], by_you))]
            if label in counts:
                parts.append((by_model, counts[label].corrected, counts[label].corrected_interval))
            share = sum(n * part for n, part, _ in parts)
            low, high = (math.hypot(*(n * (part - ends[i]) for n, part, ends in parts)) for i in (0, 1))
            estimates[label] = share, max(0.0, share - low), share + high
        known = sum(share for share, *_ in estimates.values()) or 1.0
        rows = []
        for label in labels:
            n, corrected, corrected_interval = model[label] + you[label], None, None
            if label in self.label_names:
                corrected, *ends = (min(1.0, value / known) for value in estimates[label])
                corrected_interval = tuple(ends)
            interval = wilson_interval(n, total)
            rows.append(
                Row(label, model[label], you[label], n / total, interval, corrected, corrected_interval)
            )
        return rows

    def samples(self) -> list[str]:
        return sorted({cell.sample for cell in self.cells})

    def kinds(self) -> Counter:
        """How many cells of each kind of verdict are still as the model left them."""
        return Counter(cell.verdict.kind for cell in self.cells if cell.number not in self.corrections)

    def values(self, words: dict[str, str], labels: Sequence[dict[str, str]], extra: Sequence[tuple[str, str]],
               verdict: Any, select: int | None = None) -> dict[str, Any] | None:  # fmt: skip
        """What `review.js` shows; `verdict(cell)` is its sentence."""
        if not self.cells:
            return None
        cells = []
        for cell in self.cells:
            order = np.argsort(-cell.probabilities, kind="stable")[:3]
            shown = {
                "n": cell.number, "file": cell.file, "sample": cell.sample, "folder": cell.folder,
                "url": str(cell.picture), "label": cell.label, "kind": cell.verdict.kind, "verdict": verdict(cell),
                "p": round(float(cell.probabilities.max()), 4),
                "top": [[self.label_names[i], round(float(cell.probabilities[i]), 4)] for i in order],
            }  # fmt: skip
            if cell.source.box is not None:
                box = cell.source.box
                shown["box"] = [box.left, box.top, box.side]
            cells.append(shown)
        return {
            "id": f"{id(self)}-{self.field and self.field['url']}", "cells": cells, "labels": list(labels),
            "extra": [{"code": code, "name": name} for code, name in extra],
            "corrections": {str(n): label for n, label in self.corrections.items()}, "words": words,
            "field": self.field, "select": select,
        }  # fmt: skip


def reduced(picture: Image.Image, side: int) -> Image.Image:
    """The picture with its longer side at most `side`; the picture itself is not copied."""
    scale = side / max(picture.size)
    if scale >= 1:
        return picture
    size = [max(1, round(length * scale)) for length in picture.size]
    return picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2)


def save_small(picture: Image.Image, path: Path) -> Path:
    """The picture as the page shows it."""
    reduced(picture, SHOWN_SIDE).save(path, "JPEG", quality=85)
    return path


def rejected_list(title: str, sentences: Sequence[tuple[str, str]]) -> str:
    """Files that could not be used, each with its reason; empty when all were fine."""
    items = "".join(f"<li><b>{escape(name)}</b>: {escape(reason)}</li>" for name, reason in sentences)
    return f'<section class="bad-files"><h3>{escape(title)}</h3><ul>{items}</ul></section>' if items else ""
