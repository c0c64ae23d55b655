"""What other stains, cameras and microscopes do to the model: balanced accuracy under each condition of `perturbations`.

Test-time adaptation (white balance, Reinhard, flips, magnifications, batch-norm statistics) was compared here once and is not
part of the model: see EXPERIMENTS.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from tqdm.auto import tqdm

from dataset_script.arguments import whole_number
from hub_model.evaluation import SEED, bootstrap
from hub_model.figures import BLUE
from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import RepoError
from hub_model.studies.calibration import markdown_table, span
from hub_model.studies.crops import (
    Crops,
    add_model_and_data,
    altered,
    check_classes,
    logits_of,
    open_classifier,
    read_crops,
    write_measurement,
)
from hub_model.studies.perturbations import PERTURBATIONS, Perturbation

KEY, FIGURE_SIZE = "robustness", (8, 7)
RESAMPLES = 200


def add_command(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("robustness", help="measure on other stains, cameras and microscopes")
    add_model_and_data(command)
    command.add_argument("--split", default="test", help="split that is altered (default: test)")
    command.add_argument(
        "--images", type=whole_number(1), help="at most so many crops, evenly over the classes (default: all)"
    )
    command.add_argument(
        "--classes", nargs="+", help="only crops of these classes; answers may be any class (default: all)"
    )
    command.add_argument(
        "--conditions",
        nargs="+",
        help=f"some of: {', '.join(PERTURBATIONS).replace('%', '%%')} (default: all)",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and write `robustness`, and print it as a table."""
    conditions = {name: PERTURBATIONS.get(name) for name in arguments.conditions or PERTURBATIONS}
    if unknown := [name for name, change in conditions.items() if change is None]:
        raise RepoError(f"unknown condition {unknown[0]!r} (known: {', '.join(PERTURBATIONS)})")
    classifier = open_classifier(arguments.folder)
    crops = read_crops(arguments.dataset, arguments.split, revision=arguments.revision)
    check_classes(classifier, crops)
    if arguments.classes:
        if unknown := sorted(set(arguments.classes) - set(crops.label_names)):
            raise RepoError(f"no class {unknown[0]!r} (there are: {', '.join(crops.label_names)})")
        wanted = [crops.label_names.index(name) for name in arguments.classes]
        crops = crops.take(np.flatnonzero(np.isin(crops.labels, wanted)))
    rows = measure_robustness(classifier, crops.sample(arguments.images), conditions)
    print(_table(rows))
    print(f"wrote {write_measurement(arguments.folder, KEY, rows)}")
    return 0


def recalls(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Share of each class's images that are predicted as it, [C]; NaN for a class without images."""
    hits = np.bincount(labels[predicted == labels], minlength=classes)
    support = np.bincount(labels, minlength=classes)
    return np.divide(hits, support, out=np.full(classes, np.nan), where=support > 0)


def score(logits: np.ndarray, labels: np.ndarray, label_names: tuple[str, ...]) -> dict:
    """Accuracy, balanced accuracy with its 95 % bootstrap interval, and recall of each class that has images."""
    predicted, classes = logits.argmax(axis=1), len(label_names)
    recall = recalls(predicted, labels, classes)
    interval = bootstrap(
        lambda i: np.nanmean(recalls(predicted[i], labels[i], classes), keepdims=True),
        len(labels),
        RESAMPLES,
        SEED,
    )
    return {
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(np.nanmean(recall)),
        "interval": interval[:, 0].tolist(),
        "recall": {n: float(r) for n, r in zip(label_names, recall, strict=True) if not np.isnan(r)},
    }


def measure_robustness(
    classifier: Classifier,
    crops: Crops,
    conditions: Mapping[str, Perturbation] = PERTURBATIONS,
    seed: int = SEED,
) -> list[dict]:
    """One row a condition: {condition, images, accuracy, balanced_accuracy, interval, recall}."""
    labels, rows = crops.labels, []
    for condition in tqdm(conditions, desc="robustness", unit="condition", disable=None):
        logits = logits_of(classifier, altered(crops, conditions[condition], seed))
        figures = score(logits, labels, classifier.label_names)
        rows.append({"condition": condition, "images": len(labels), **figures})
    return rows


def _table(rows: list[dict]) -> str:
    body = [[row["condition"], f"{row['balanced_accuracy']:.3f}{span(row['interval'])}"] for row in rows]
    return markdown_table(["condition", "balanced accuracy"], body)


def section(rows: list[dict]) -> str:
    """The card's text on the result."""
    return f"""### Other stains, cameras and microscopes

Balanced accuracy on {rows[0]["images"]:,} test crops, altered as each row says.

{_table(rows)}

![robustness](figures/robustness.png)"""


def draw(axes: Axes, rows: list[dict]) -> None:
    """Balanced accuracy under each condition."""
    values = [row["balanced_accuracy"] for row in rows]
    error = [
        [max(v - row["interval"][0], 0) for v, row in zip(values, rows, strict=True)],
        [max(row["interval"][1] - v, 0) for v, row in zip(values, rows, strict=True)],
    ]
    positions = range(len(rows))
    axes.barh(positions, values, height=0.6, color=BLUE, xerr=error, error_kw={"elinewidth": 0.8})
    axes.set_yticks(positions, [row["condition"] for row in rows])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="balanced accuracy (95 % interval)")
    axes.set_title("Other stains, cameras and microscopes")
