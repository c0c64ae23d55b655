"""Figures of a split: logits and labels in, the dict that `metrics.json` holds for the split out.

The figures are those of the metric module in `metrics/cell_classification/`, which is also published as a Space,
with bootstrap intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hub_model.metrics.cell_classification.cell_classification import measure

SCALARS = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "log_loss", "ece")
PER_CLASS = ("precision", "recall", "f1", "auc")
RESAMPLES, SEED = 1000, 0


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], images: int, resamples: int = RESAMPLES, seed: int = SEED
) -> np.ndarray:
    """95 % percentile intervals [2, S] of `statistic`, which makes S figures of an index array over the images.

    Images are drawn with replacement `resamples` times (Efron & Tibshirani 1993, ch. 13); the same seed gives
    the same interval. A figure that a resample does not define (NaN) is left out of its interval; one that none
    defines stays NaN.
    """
    generator = np.random.default_rng(seed)
    drawn = np.stack([statistic(generator.integers(0, images, images)) for _ in range(resamples)])
    drawn = np.asarray(drawn, dtype=np.float64)
    undefined = np.isnan(drawn).all(axis=0)
    drawn[:, undefined] = 0
    tail = (1 - 0.95) / 2
    interval = np.nanquantile(drawn, [tail, 1 - tail], axis=0)
    interval[:, undefined] = np.nan
    return interval


def _flat(figures: dict, label_names: Sequence[str]) -> np.ndarray:
    values = [figures[key] for key in SCALARS]
    values += [figures["per_class"][name][key] for name in label_names for key in PER_CLASS]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def evaluate_split(
    logits: np.ndarray, labels: np.ndarray, label_names: Sequence[str], resamples: int = RESAMPLES
) -> dict:
    """Figures of a split with 95% bootstrap intervals, from logits [N, C] and labels int [N].

    The metric module's dict, plus `intervals`: figure → [low, high], and `intervals["per_class"]` in the
    same way for precision, recall, F1 and AUC of each class. `None` stands for what is not defined.
    """
    figures = measure(logits, labels, label_names, kind="logits")
    interval = bootstrap(
        lambda index: _flat(measure(logits[index], labels[index], label_names, kind="logits"), label_names),
        len(labels),
        resamples,
    )
    pairs = [None if np.isnan(pair).any() else [float(value) for value in pair] for pair in interval.T]
    intervals: dict = dict(zip(SCALARS, pairs, strict=False))
    rest = iter(pairs[len(SCALARS) :])
    intervals["per_class"] = {name: {key: next(rest) for key in PER_CLASS} for name in label_names}
    return {**figures, "intervals": intervals}


def span(interval: list | None) -> str:
    """An interval as the card writes it behind a figure."""
    return "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """Cells as a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])
