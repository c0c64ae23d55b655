"""Accuracy against cost: the same weights at several input sizes, on `validation`, because the size is selected by this curve."""

from __future__ import annotations

import argparse
import timeit

import numpy as np
import torch
from matplotlib.axes import Axes
from sklearn.metrics import balanced_accuracy_score
from threadpoolctl import threadpool_limits

from dataset_script.arguments import whole_number
from hub_model.contract import multiply_adds
from hub_model.evaluation import markdown_table
from hub_model.figures import BLUE
from hub_model.inference.preprocessing import Preprocessing
from hub_model.studies.crops import add_study, logits_of, open_study

KEY, FIGURE_SIZE = "input_size", (6, 4)
SIZES = (96, 112, 128, 144, 160, 192, 224)
TIMINGS = 9  # runs per size, of which the median is reported


def add_command(commands: argparse._SubParsersAction) -> None:
    purpose = "measure validation accuracy against cost at several input sizes"
    command = add_study(commands, "input-size", KEY, measure, section, purpose)
    sizes = f"side lengths in pixels (default: {' '.join(map(str, SIZES))})"
    command.add_argument("--sizes", type=whole_number(32), nargs="+", default=SIZES, help=sizes)


def measure(arguments: argparse.Namespace) -> list[dict]:
    """One row per size, smallest first: {size, accuracy, balanced_accuracy, gmacs, milliseconds}."""
    # not the ONNX graph, which has a fixed size
    classifier, [crops] = open_study(arguments, "validation", backend="timm")
    rows, labels, model = [], crops.labels, classifier.model
    for size in sorted(set(arguments.sizes)):
        preprocess = Preprocessing({**classifier.preprocess.config, "input_size": (3, size, size)})
        predicted = logits_of(classifier, crops, preprocess).argmax(axis=1)
        image = torch.zeros(1, 3, size, size)
        with threadpool_limits(1), torch.inference_mode():
            seconds = timeit.repeat(lambda image=image: model(image), number=1, repeat=TIMINGS)
        rows.append(
            {
                "size": size,
                "accuracy": float((predicted == labels).mean()),
                "balanced_accuracy": float(balanced_accuracy_score(labels, predicted)),
                "gmacs": round(multiply_adds(model, (3, size, size)) / 1e9, 4),
                "milliseconds": round(1000 * float(np.median(seconds)), 2),
            }
        )
    return rows


def section(rows: list[dict]) -> str:
    """The card's section."""
    cells = [
        [f"{r['size']} px", f"{r['accuracy']:.3f}", f"{r['gmacs']:.3f}", f"{r['milliseconds']:.1f}"]
        for r in rows
    ]
    return f"""### Input size

The same weights on the validation split at other input sizes; times are for one CPU thread.

{markdown_table(["size", "accuracy", "GMACs", "ms per image"], cells)}

![accuracy against cost](figures/input_size.png)"""


def draw(axes: Axes, rows: list[dict]) -> None:
    """Accuracy on validation against multiply-adds, one point per size."""
    axes.plot([row["gmacs"] for row in rows], [row["accuracy"] for row in rows], color=BLUE, marker="o")
    for number, row in enumerate(rows):
        # alternately below and above, so that labels of close sizes do not overlap
        offset = (-14, 8) if number % 2 else (4, -13)
        axes.annotate(
            f"{row['size']} px", (row["gmacs"], row["accuracy"]), offset, textcoords="offset points"
        )
    axes.set(xlabel="multiply-adds of one image (10⁹)", ylabel="accuracy (validation)")
    axes.margins(x=0.15, y=0.2)
    axes.set_title("Accuracy against cost")
