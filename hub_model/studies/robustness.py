"""Robustness to other stains, cameras and microscopes: balanced accuracy under each of `PERTURBATIONS`.

Test-time adaptation (white balance, Reinhard, flips, magnifications, batch-norm statistics) was evaluated and is not part of the
model: see EXPERIMENTS.md.
"""

from __future__ import annotations

import argparse

import numpy as np
from matplotlib.axes import Axes
from sklearn.metrics import recall_score
from tqdm.auto import tqdm

from dataset_script.arguments import whole_number
from hub_model.evaluation import SEED, bootstrap, markdown_table, span
from hub_model.figures import BLUE
from hub_model.studies.crops import add_study, logits_of, open_study, perturbed
from hub_model.studies.perturbations import PERTURBATIONS

KEY, FIGURE_SIZE = "robustness", (8, 7)
RESAMPLES = 200


def add_command(commands: argparse._SubParsersAction) -> None:
    purpose = "measure accuracy under simulated stains, cameras and microscopes"
    command = add_study(commands, KEY, KEY, measure, section, purpose)
    images = "maximum number of test crops, drawn evenly over the classes (default: all)"
    command.add_argument("--images", type=whole_number(1), help=images)


def measure(arguments: argparse.Namespace) -> list[dict]:
    """One row per condition: {condition, images, accuracy, balanced_accuracy, interval, recall}."""
    classifier, [test] = open_study(arguments, "test")
    crops, rows = test.sample(arguments.images), []
    for condition, perturbation in tqdm(PERTURBATIONS.items(), desc="robustness", disable=None):
        predicted = logits_of(classifier, perturbed(crops, perturbation)).argmax(axis=1)
        rows.append({"condition": condition, **score(predicted, crops.labels, classifier.label_names)})
    return rows


def score(predicted: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> dict:
    """Accuracy, balanced accuracy with its 95 % bootstrap interval, and recall of each class that has images."""

    def recall(i: np.ndarray | slice) -> np.ndarray:
        classes = range(len(names))
        return recall_score(labels[i], predicted[i], labels=classes, average=None, zero_division=np.nan)

    interval = bootstrap(lambda i: np.nanmean(recall(i), keepdims=True), len(labels), RESAMPLES, SEED)
    by_class = recall(slice(None))
    return {
        "images": len(labels),
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(np.nanmean(by_class)),
        "interval": interval[:, 0].tolist(),
        "recall": {n: float(r) for n, r in zip(names, by_class, strict=True) if not np.isnan(r)},
    }


def section(rows: list[dict]) -> str:
    """The card's section."""
    cells = [[row["condition"], f"{row['balanced_accuracy']:.3f}{span(row['interval'])}"] for row in rows]
    return f"""### Other stains, cameras and microscopes

Balanced accuracy on {rows[0]["images"]:,} test crops under each alteration.

{markdown_table(["condition", "balanced accuracy"], cells)}

![robustness](figures/robustness.png)"""


def draw(axes: Axes, rows: list[dict]) -> None:
    """Balanced accuracy under each condition."""
    values = np.array([row["balanced_accuracy"] for row in rows])
    low, high = np.transpose([row["interval"] for row in rows])
    error = np.maximum([values - low, high - values], 0)
    positions = range(len(rows))
    axes.barh(positions, values, height=0.6, color=BLUE, xerr=error, error_kw={"elinewidth": 0.8})
    axes.set_yticks(positions, [row["condition"] for row in rows])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="balanced accuracy (95 % interval)")
    axes.set_title("Other stains, cameras and microscopes")
