"""The card's figures: metrics.json and history.jsonl in, PNG files in `figures/` out. Colors are those of Okabe and Ito."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from hub_model.inference.classifier import Predictions
from hub_model.inference.images import ImageLike, to_rgb

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


def draw_figures(metrics: dict, history: list[dict], folder: Path) -> None:
    """Draw curves, confusion matrix and per-class bars."""
    folder.mkdir(parents=True, exist_ok=True)
    split = "test" if "test" in metrics["splits"] else "validation"
    figures = {
        "confusion_matrix": draw_confusion(metrics, split),
        "per_class": draw_per_class(metrics, split),
    }
    if history:
        figures["curves"] = draw_curves(history)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})


def draw_curves(history: list[dict]) -> Figure:
    """Loss, accuracy and macro-F1 of training and validation over the epochs."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    epochs = [entry["epoch"] + 1 for entry in history]
    titles = {"loss": "Loss", "accuracy": "Accuracy", "macro_f1": "Macro-F1"}
    for axes, (key, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for split, colour, marker in (("train", BLUE, "o"), ("validation", ORANGE, "s")):
            values = [entry[f"{split}_{key}"] for entry in history]
            axes.plot(epochs, values, marker=marker, markersize=3, color=colour, label=split)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def draw_confusion(metrics: dict, split: str) -> Figure:
    """The confusion matrix: true class down, answer across; colour is the share of the true class."""
    names, counts = metrics["label_names"], np.array(metrics["splits"][split]["confusion_matrix"])
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    side = max(4.0, 0.75 * len(names) + 1.5)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.55 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="answer", ylabel="true class", title=f"Confusion matrix, {split}")
    return figure


def draw_per_class(metrics: dict, split: str) -> Figure:
    """Precision, recall and F1 of each class."""
    names, classes = metrics["label_names"], metrics["splits"][split]["per_class"]
    figure = Figure(figsize=(max(6.0, 1.1 * len(names)), 3.8), layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(names))
    for i, (key, colour) in enumerate((("precision", BLUE), ("recall", ORANGE), ("f1", GREEN))):
        axes.bar(
            at + 0.27 * (i - 1), [classes[name][key] or 0 for name in names], 0.25, color=colour, label=key
        )
    axes.set_xticks(at, names)
    axes.set(ylim=(0, 1), title=f"Per class, {split}")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False)
    return figure


def draw_examples(images: list[ImageLike], labels: list[str], answers: Predictions, path: Path) -> None:
    """Write one row of images, each with its true class and the model's answer, green where they agree."""
    figure = Figure(figsize=(1.7 * len(images), 2.3), layout="constrained")
    for i, axes in enumerate(np.atleast_1d(figure.subplots(1, len(images)))):
        axes.imshow(to_rgb(images[i]))
        axes.set_axis_off()
        colour = GREEN if answers.labels[i] == labels[i] else ORANGE
        axes.set_title(
            f"{labels[i]}\n{answers.labels[i]} {answers.confidences[i]:.0%}", color=colour, fontsize=10
        )
    figure.savefig(path, dpi=100, metadata={"Software": None})
