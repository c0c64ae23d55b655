"""The honest estimate for a new patient's slide: whole slides held out, as far as colours tell slides apart.

No patient or slide ids are public, but the colour of the empty field and of the stain differ from slide to slide. In:
crops of `train` and `validation`. They are clustered by colour, clusters take the part of slides, and a small model
(`frozen_features`) is cross-validated twice: with whole clusters held out, and with images held out at random. Out: the
`new_slide` key of `metrics.json`; the difference is what new slides cost. Clusters are slides only roughly, and a class
that sits on few slides leaves with them: the drop is an estimate of its size, no more.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from skimage.color import rgb2gray, rgb2lab
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler

from dataset_script.arguments import seed, whole_number
from hub_model.evaluation import SEED, bootstrap
from hub_model.frozen_features import balanced_accuracies, out_of_fold
from hub_model.perturbations import BACKGROUND_SHARE

CLUSTERS, FOLDS, REPEATS, RESAMPLES = 40, 5, 3, 200


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("folder", type=Path, help="run folder or model repo folder that takes the result")
    parser.add_argument("--clusters", type=whole_number(2), default=CLUSTERS)
    parser.add_argument("--seed", type=seed, default=SEED)


def background_statistics(image: np.ndarray) -> np.ndarray:
    """Median [3] and spread [3] in L*a*b* of the brightest tenth of a crop: the empty field and its light."""
    grey = rgb2gray(image)
    bright = rgb2lab(image)[grey >= np.quantile(grey, 1 - BACKGROUND_SHARE)]
    return np.concatenate([np.median(bright, axis=0), bright.std(axis=0)])


def cluster(images: Iterable[np.ndarray], clusters: int = CLUSTERS, seed: int = SEED) -> np.ndarray:
    """Cluster number [N] of each crop by its background's colour (k-means on standardised statistics)."""
    statistics = StandardScaler().fit_transform(np.stack([background_statistics(i) for i in images]))
    return KMeans(clusters, n_init=10, random_state=seed).fit_predict(statistics)


def _cross_validate(features, labels, classes, splits) -> tuple[np.ndarray, list[float]]:
    splits = list(splits)
    predicted = out_of_fold(features, labels, splits, classes).argmax(axis=1)
    return predicted, balanced_accuracies(predicted, labels, [held for _, held in splits])


def _mean_recall(predicted: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([(predicted[labels == c] == c).mean() for c in np.unique(labels)]))


def measure_new_slide(
    features: np.ndarray, labels: np.ndarray, clusters: np.ndarray, classes: int, seed: int = SEED
) -> dict:
    """Balanced accuracy with clusters held out against images held out at random.

    Args:
        features, labels, clusters: [N, D], int [N], int [N].
        classes: number of classes.
        seed: of the folds; `REPEATS` seeds from it on are averaged.

    Returns:
        `random` and `grouped` {balanced_accuracy, folds: one figure a fold and repeat}, `drop`, its 95 % bootstrap
        `interval` over images, `clusters`, and `mutual_information`: how much clusters tell of classes, 0…1.
    """
    predicted: dict[str, list[np.ndarray]] = {"random": [], "grouped": []}
    folds: dict[str, list[float]] = {"random": [], "grouped": []}
    for repeat in range(seed, seed + REPEATS):
        plain = StratifiedKFold(FOLDS, shuffle=True, random_state=repeat).split(features, labels)
        whole = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=repeat).split(
            features, labels, clusters
        )
        for name, splits in (("random", plain), ("grouped", whole)):
            answers, accuracies = _cross_validate(features, labels, classes, splits)
            predicted[name].append(answers)
            folds[name] += accuracies

    def figures(i: np.ndarray) -> np.ndarray:
        random, grouped = (
            np.mean([_mean_recall(answers[i], labels[i]) for answers in predicted[name]])
            for name in ("random", "grouped")
        )
        return np.array([random, grouped, random - grouped])

    random, grouped, drop = figures(np.arange(len(labels))).tolist()
    return {
        "images": len(labels),
        "clusters": len(np.unique(clusters)),
        "mutual_information": float(normalized_mutual_info_score(labels, clusters)),
        "random": {"balanced_accuracy": random, "folds": folds["random"]},
        "grouped": {"balanced_accuracy": grouped, "folds": folds["grouped"]},
        "drop": drop,
        "interval": bootstrap(figures, len(labels), RESAMPLES, SEED)[:, 2].tolist(),
    }
