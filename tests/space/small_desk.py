"""A review desk of synthetic cells, for the tests of the desk and its exports."""

from __future__ import annotations

from pathlib import Path

from dataset_script.synthetic_cells import draw_cell
from hub_model.inference.calibration import Verdict
from hub_model.inference.classifier import Classifier
from space.desk import Desk, Source, save_thumbnail
from space.export import Origin
from tests.small_model_repo import LABELS

ORIGIN = Origin("localdev/model", "0" * 40, "2026-11-26T00:00:00+00:00")


def filled(classifier: Classifier, folder: Path, per_class: int = 2) -> Desk:
    """A desk of `per_class` synthetic cells of each class, all with the verdict "sure"."""
    desk = Desk(classifier.label_names)
    for i, label in enumerate(LABELS * per_class):
        cell, path = draw_cell(label, 700 + i), folder / f"{label}-{i}.png"
        cell.save(path)
        predictions = classifier.predict(cell)
        predictions.verdicts[:] = [Verdict("sure", (predictions.labels[0],))]
        thumbnail = save_thumbnail(cell, folder / f"{i}.jpg")
        desk.add(f"slide {i % 2}", f"{label}/{path.name}", thumbnail, Source(str(path)), predictions, 0)
    return desk
