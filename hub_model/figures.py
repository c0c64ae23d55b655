"""Draw the figures of the card from `metrics.json` and `history.jsonl`, in the colors of Okabe and Ito."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from hub_model.evaluation import reported_split
from hub_model.inference.classifier import Predictions
from hub_model.inference.images import ImageLike, to_rgb

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


def draw_figures(metrics: dict, history: list[dict], folder: Path) -> None:
    """Write the training curves, the confusion matrix and the per-class bars as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    split = reported_split(metrics)
    figures = {
        "confusion_matrix": draw_confusion(metrics, split),
        "per_class": draw_per_class(metrics, split),
    }
    if history:
        figures["curves"] = draw_curves(history)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})


def draw_curves(history: list[dict]) -> Figure:
    """Plot loss, accuracy and macro-F1 of training and validation by epoch."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    epochs = [entry["epoch"] + 1 for entry in history]
    titles = {"loss": "Loss", "accuracy": "Accuracy", "macro_f1": "Macro-F1"}
    for axes, (key, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for split, color, marker in (("train", BLUE, "o"), ("validation", ORANGE, "s")):
            values = [entry[f"{split}_{key}"] for entry in history]
            axes.plot(epochs, values, marker=marker, markersize=3, color=color, label=split)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def draw_confusion(metrics: dict, split: str) -> Figure:
    """Plot the confusion matrix, true classes in rows; colors are fractions of the true class."""
    names, counts = metrics["label_names"], np.array(metrics["splits"][split]["confusion_matrix"])
    fractions = counts / counts.sum(axis=1, keepdims=True).clip(1)
    side = max(4.0, 0.75 * len(names) + 1.5)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if fractions[row, column] > 0.55 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=color)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="answer", ylabel="true class", title=f"Confusion matrix, {split}")
    return figure


def draw_per_class(metrics: dict, split: str) -> Figure:
    """Plot precision, recall and F1 of each class."""
    names, classes = metrics["label_names"], metrics["splits"][split]["per_class"]
    figure = Figure(figsize=(max(6.0, 1.1 * len(names)), 3.8), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(len(names))
    for i, (key, color) in enumerate((("precision", BLUE), ("recall", ORANGE), ("f1", GREEN))):
        heights = [classes[name][key] or 0 for name in names]
        axes.bar(positions + 0.27 * (i - 1), heights, 0.25, color=color, label=key)
    axes.set_xticks(positions, names)
    axes.set(ylim=(0, 1), title=f"Per class, {split}")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False)
    return figure


def draw_examples(images: list[ImageLike], labels: list[str], predictions: Predictions, path: Path) -> None:
    """Write a row of images, each with its true and predicted class, green where they agree."""
    figure = Figure(figsize=(1.7 * len(images), 2.3), layout="constrained")
    for i, axes in enumerate(np.atleast_1d(figure.subplots(1, len(images)))):
        axes.imshow(to_rgb(images[i]))
        axes.set_axis_off()
        title = f"{labels[i]}\n{predictions.labels[i]} {predictions.confidences[i]:.0%}"
        axes.set_title(title, color=GREEN if predictions.labels[i] == labels[i] else ORANGE, fontsize=10)
    figure.savefig(path, dpi=100, metadata={"Software": None})
