"""Evaluate the logits of a split: the metrics of `metrics/cell_classification/` with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hub_model.metrics.cell_classification.cell_classification import measure

SCALARS = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "log_loss", "ece")
PER_CLASS = ("precision", "recall", "f1", "auc")
RESAMPLES, SEED = 1000, 0


def reported_split(metrics: dict) -> str:
    """Return the split that card and figures report: test, or validation if the dataset has no test split."""
    return "test" if "test" in metrics["splits"] else "validation"


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], images: int, resamples: int = RESAMPLES, seed: int = SEED
) -> np.ndarray:
    """Return 95% percentile intervals [2, S] of `statistic`, which maps an index array over the images to S values.

    Images are drawn with replacement `resamples` times (Efron & Tibshirani 1993, ch. 13); the same seed gives the same
    intervals. An interval leaves out the resamples in which its value is undefined (NaN), and is NaN if all are.
    """
    generator = np.random.default_rng(seed)
    values = np.array([statistic(generator.integers(0, images, images)) for _ in range(resamples)], float)
    undefined = np.isnan(values).all(axis=0)
    values[:, undefined] = 0
    tail = (1 - 0.95) / 2
    interval = np.nanquantile(values, [tail, 1 - tail], axis=0)
    interval[:, undefined] = np.nan
    return interval


def evaluate_split(
    logits: np.ndarray, labels: np.ndarray, label_names: Sequence[str], resamples: int = RESAMPLES
) -> dict:
    """Return the metrics of a split with 95% bootstrap intervals, from logits [N, C] and labels int [N].

    The dict has the metric module's keys and `intervals`, which maps each metric to [low, high] and `per_class` to those of
    precision, recall, F1 and AUC of each class. Undefined values are None.
    """
    figures = measure(logits, labels, label_names, kind="logits")

    def values(index: np.ndarray) -> np.ndarray:
        sample = measure(logits[index], labels[index], label_names, kind="logits")
        per_class = [sample["per_class"][name][key] for name in label_names for key in PER_CLASS]
        return np.array([sample[key] for key in SCALARS] + per_class, dtype=np.float64)  # None becomes NaN

    interval = bootstrap(values, len(labels), resamples)
    pairs = [None if np.isnan(pair).any() else pair.tolist() for pair in interval.T]
    remaining = iter(pairs)
    intervals: dict = {key: next(remaining) for key in SCALARS}
    intervals["per_class"] = {name: {key: next(remaining) for key in PER_CLASS} for name in label_names}
    return {**figures, "intervals": intervals}


def span(interval: list | None) -> str:
    """Format an interval for the card, with a leading space; empty for None."""
    return "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])
