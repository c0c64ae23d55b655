"""Accuracy against cost: the same weights at several input sizes, on `validation`.

The input size is chosen by this curve, so it never sees `test`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes

from dataset_script.arguments import whole_number
from hub_model.contract import multiply_adds
from hub_model.figures import BLUE
from hub_model.inference.classifier import Classifier
from hub_model.inference.preprocessing import Preprocessing
from hub_model.studies.calibration import markdown_table
from hub_model.studies.crops import (
    Crops,
    add_model_and_data,
    check_classes,
    logits_of,
    open_classifier,
    read_crops,
    write_measurement,
)
from hub_model.studies.robustness import recalls

KEY, FIGURE_SIZE = "input_size", (6, 4)
SIZES = (96, 112, 128, 144, 160, 192, 224)
TIMINGS = 9  # the median of so many


def add_command(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("input-size", help="measure accuracy on validation against cost")
    add_model_and_data(command)
    command.add_argument(
        "--sizes",
        type=whole_number(32),
        nargs="+",
        default=SIZES,
        help=f"pixels a side (default: {' '.join(map(str, SIZES))})",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and write `input_size`."""
    classifier = open_classifier(arguments.folder, "timm")  # the ONNX graph has one size
    crops = read_crops(arguments.dataset, "validation", revision=arguments.revision)
    check_classes(classifier, crops)
    rows = measure_input_sizes(classifier, crops, arguments.sizes)
    print(_table(rows))
    print(f"wrote {write_measurement(arguments.folder, KEY, rows)}")
    return 0


def _milliseconds(model: torch.nn.Module, size: int) -> float:
    """What one image takes on one thread."""
    image, threads, seconds = torch.zeros(1, 3, size, size), torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in range(TIMINGS):
                start = time.perf_counter()
                model(image)
                seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1000 * float(np.median(seconds))


def measure_input_sizes(classifier: Classifier, crops: Crops, sizes: Sequence[int] = SIZES) -> list[dict]:
    """One row a size: {size, accuracy, balanced_accuracy, gmacs, milliseconds}, smallest first."""
    rows, labels = [], crops.labels
    for size in sorted(set(sizes)):
        preprocess = Preprocessing({**classifier.preprocess.config, "input_size": (3, size, size)})
        predicted = logits_of(classifier, crops, preprocess).argmax(axis=1)
        recall = recalls(predicted, labels, len(classifier.label_names))
        rows.append(
            {
                "size": size,
                "accuracy": float((predicted == labels).mean()),
                "balanced_accuracy": float(np.nanmean(recall)),
                "gmacs": round(multiply_adds(classifier.model, (3, size, size)) / 1e9, 4),
                "milliseconds": round(_milliseconds(classifier.model, size), 2),
            }
        )
    return rows


def _table(rows: list[dict]) -> str:
    body = [
        [f"{r['size']} px", f"{r['accuracy']:.3f}", f"{r['gmacs']:.3f}", f"{r['milliseconds']:.1f}"]
        for r in rows
    ]
    return markdown_table(["size", "accuracy", "GMAC", "ms per image"], body)


def section(rows: list[dict]) -> str:
    """The card's text on the result."""
    return f"""### Input size

These weights on the validation split at other sizes; one thread of a CPU.

{_table(rows)}

![accuracy against cost](figures/input_size.png)"""


def draw(axes: Axes, rows: list[dict]) -> None:
    """Accuracy on validation against multiply-adds, a point a size."""
    axes.plot([row["gmacs"] for row in rows], [row["accuracy"] for row in rows], color=BLUE, marker="o")
    for number, row in enumerate(rows):  # below and above in turn, so that close sizes stay apart
        offset = (-14, 8) if number % 2 else (4, -13)
        axes.annotate(
            f"{row['size']} px", (row["gmacs"], row["accuracy"]), offset, textcoords="offset points"
        )
    axes.set(xlabel="multiply-adds of one image (10⁹)", ylabel="accuracy (validation)")
    axes.margins(x=0.15, y=0.2)
    axes.set_title("Accuracy against cost")
