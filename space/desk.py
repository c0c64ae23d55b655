"""The review desk: classified cells, the visitor's corrections, and the differential count over both.

In: cells with their predictions, corrections, manual counts. Out: the count of each class, split by who labelled the cells.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hub_model.inference.appearance import Shift
from hub_model.inference.calibration import Calibration, Verdict, names_in
from hub_model.inference.classifier import Predictions
from hub_model.inference.counts import wilson_interval
from hub_model.inference.errors import ImageError
from space.archives import Place, read_slide
from space.fields import Box, cut

UNDECIDED, EXCLUDED = "?", "-"
THUMBNAIL_SIDE = 256  # pixels; exports contain the original files
EXTRA_CLASSES = {  # cells of a marrow differential that the model has no class for: English and Indonesian name
    "proerythroblast": "proeritroblas", "erythroblast": "eritroblas", "myelocyte": "mielosit", "metamyelocyte": "metamielosit",
    "band neutrophil": "neutrofil batang", "basophil": "basofil", "plasma cell": "sel plasma", "megakaryocyte": "megakariosit",
}  # fmt: skip
open_field = lru_cache(maxsize=1)(read_slide)  # a field is decoded once for all its boxes


@dataclass(frozen=True)
class Source:
    """Where the original bytes of a cell are: a file, an entry of a zip file, or a box of a field."""

    path: str
    entry: str | None = None
    box: Box | None = None

    def read(self) -> bytes:
        """The original bytes; for a box, its crop as PNG."""
        if self.box is not None:
            cut(open_field(self.path), self.box).save(buffer := io.BytesIO(), "PNG")
            return buffer.getvalue()
        if self.entry is not None:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.entry)
        return Path(self.path).read_bytes()


@dataclass(frozen=True)
class Cell:
    """One classified cell. `sample` is the zip file, folder or field it came from, `thumbnail` a small JPEG."""

    number: int
    sample: str
    file: str
    thumbnail: Path
    source: Source
    label: str
    verdict: Verdict
    probabilities: np.ndarray
    sets: dict[str, list[str]]
    ood_score: float | None

    @property
    def folder(self) -> str:
        """The folder within a zip file, often named after the class."""
        return self.file.rpartition("/")[0]

    @property
    def model_label(self) -> str | None:
        """The predicted class; None for an out-of-distribution cell."""
        return None if self.verdict.kind == "unknown" else self.label


@dataclass(frozen=True)
class Row:
    """One class of a count: fractions in 0…1 with 95% intervals. `corrected` is None for classes the model does not have."""

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
    """The cells of a visit, with what the visitor said about them."""

    label_names: tuple[str, ...]
    cells: list[Cell] = field(default_factory=list)
    corrections: dict[int, str] = field(default_factory=dict)  # cell number -> class, UNDECIDED or EXCLUDED
    by_hand: dict[str, int] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)  # classes left out of the denominator
    bad: list[tuple[str, ImageError]] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)  # class folder -> pictures beyond the limit
    uploads: set[str] = field(default_factory=set)  # paths that are read, or being read
    done: set[Place] = field(default_factory=set)  # pictures that were read by a job that was stopped
    version: float = 0.0  # of the corrections, so that late ones can be told from newer ones
    shift: Shift | None = None  # of the latest batch that looked unlike the training images
    field: dict[str, Any] | None = None  # url, width and height of the picture of a field
    stopped: bool = False  # cancelled before all pictures were classified
    repo: str = ""  # the visitor's dataset repo, once pushed

    def add(
        self, sample: str, file: str, thumbnail: Path, source: Source, predictions: Predictions, row: int
    ) -> Cell:
        """Add row `row` of `predictions` as a cell."""
        names = predictions.label_names
        sets = {level: names_in(members[[row]], names)[0] for level, members in predictions.sets.items()}
        score = None if predictions.ood_score is None else float(predictions.ood_score[row])
        cell = Cell(len(self.cells), sample, file, thumbnail, source, predictions.labels[row],
                    predictions.verdicts[row], predictions.probabilities[row], sets, score)  # fmt: skip
        self.cells.append(cell)
        return cell

    def label_of(self, cell: Cell) -> str | None:
        """The class a cell counts as: corrected, else predicted; None when it is not counted."""
        label = self.corrections.get(cell.number, cell.model_label)
        return None if label in (UNDECIDED, EXCLUDED) else label

    def counted(self) -> list[Cell]:
        """The cells that have a class."""
        return [cell for cell in self.cells if self.label_of(cell) is not None]

    def correct(self, corrections: dict[Any, Any], allowed: Collection[str], version: float = 0.0) -> None:
        """Replace all corrections by those the page sent, unless newer ones have arrived.

        Entries that do not name a cell of this desk and an allowed class are dropped.
        """
        if version < self.version:
            return
        self.version = version
        numbers = {str(cell.number) for cell in self.cells}
        self.corrections = {
            int(n): str(label)
            for n, label in corrections.items()
            if str(n) in numbers and str(label) in {UNDECIDED, EXCLUDED, *allowed}
        }

    def count(self, calibration: Calibration, sample: str = "") -> list[Row]:
        """The differential count of one sample, or of all samples together with the manual counts.

        Labels given by the visitor are taken as certain; predictions are corrected by `calibration`. The corrected fractions
        average both, weighted by their numbers of cells, and the half-widths of their intervals add in quadrature.
        """
        model, you, probabilities = Counter(), Counter(), []
        for cell in self.cells:
            label = self.label_of(cell)
            if label is None or (sample and sample not in (cell.sample, cell.folder)):
                continue
            if cell.number in self.corrections:
                you[label] += 1
            else:
                model[label] += 1
                probabilities.append(cell.probabilities)
        if not sample:
            you.update({label: n for label, n in self.by_hand.items() if n > 0})
        labels = [*self.label_names, *sorted({*model, *you} - set(self.label_names))]
        labels = [label for label in labels if label not in self.ignored]
        total = sum(model[label] + you[label] for label in labels)
        if not total:
            return []
        counts = {c.label: c for c in calibration.count(np.array(probabilities))} if probabilities else {}
        by_you, by_model = sum(you.values()), len(probabilities)
        estimates = {}  # label -> number of cells, lower and upper end; ignored classes are part of the weights
        for label in labels:
            terms = [(by_you, you[label] / max(1, by_you), wilson_interval(you[label], by_you))]
            if label in counts:
                terms.append((by_model, counts[label].corrected, counts[label].corrected_interval))
            cells = sum(n * share for n, share, _ in terms)
            below, above = (math.hypot(*(n * (share - ends[i]) for n, share, ends in terms)) for i in (0, 1))
            estimates[label] = cells, max(0.0, cells - below), cells + above
        known = sum(cells for cells, *_ in estimates.values()) or 1.0
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
        """The names of the samples, sorted."""
        return sorted({cell.sample for cell in self.cells})

    def kinds(self) -> Counter:
        """Number of uncorrected cells by kind of verdict."""
        return Counter(cell.verdict.kind for cell in self.cells if cell.number not in self.corrections)


def downscaled(picture: Image.Image, side: int) -> Image.Image:
    """The picture resized so that its longer side is at most `side`; the same object if it is small enough."""
    scale = side / max(picture.size)
    if scale >= 1:
        return picture
    size = [max(1, round(length * scale)) for length in picture.size]
    return picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2)


def save_thumbnail(picture: Image.Image, path: Path) -> Path:
    """Save the thumbnail of a cell as JPEG and return its path."""
    downscaled(picture, THUMBNAIL_SIDE).save(path, "JPEG", quality=85)
    return path
