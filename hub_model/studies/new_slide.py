"""What a new patient's slide costs: whole slides held out, as far as colours tell slides apart.

No patient or slide ids are public, but the colour of the empty field and of the stain differ from slide to slide. Crops of
`train` and `validation` are clustered by colour, clusters stand in for slides, and a small model (`frozen_features`) is
cross-validated twice: with whole clusters held out, and with images held out at random. The difference is what new slides
cost. Clusters are slides only roughly, and a class that sits on few slides leaves with them: the drop is an estimate of
its size, no more.
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
from hub_model.studies.calibration import span
from hub_model.studies.crops import write_measurement
from hub_model.studies.frozen_features import add_data_and_backbone, out_of_fold, read_features
from hub_model.studies.perturbations import BACKGROUND_SHARE
from hub_model.studies.robustness import recalls

KEY = "new_slide"
CLUSTERS, FOLDS, REPEATS, RESAMPLES = 40, 5, 3, 200


def add_command(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("new-slide", help="estimate the loss on slides that were not trained on")
    command.add_argument("folder", type=Path, help="run folder or model repo folder that takes the result")
    add_data_and_backbone(command)
    command.add_argument(
        "--clusters", type=whole_number(2), default=CLUSTERS, help=f"clusters (default: {CLUSTERS})"
    )
    command.add_argument("--seed", type=seed, default=SEED, help=f"of clusters and folds (default: {SEED})")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and write `new_slide`."""
    crops, features = read_features(arguments)
    clusters = cluster(crops, arguments.clusters, arguments.seed)
    result = measure_new_slide(features, crops.labels, clusters, len(crops.label_names), arguments.seed)
    print(section(result))
    print(f"wrote {write_measurement(arguments.folder, KEY, result)}")
    return 0


def background_statistics(image: np.ndarray) -> np.ndarray:
    """Median [3] and spread [3] in L*a*b* of the brightest tenth of a crop: the empty field and its light."""
    grey = rgb2gray(image)
    bright = rgb2lab(image)[grey >= np.quantile(grey, 1 - BACKGROUND_SHARE)]
    return np.concatenate([np.median(bright, axis=0), bright.std(axis=0)])


def cluster(images: Iterable[np.ndarray], clusters: int = CLUSTERS, seed: int = SEED) -> np.ndarray:
    """Cluster number [N] of each crop by its background's colour (k-means on standardised statistics)."""
    statistics = StandardScaler().fit_transform(np.stack([background_statistics(i) for i in images]))
    return KMeans(clusters, n_init=10, random_state=seed).fit_predict(statistics)


def measure_new_slide(
    features: np.ndarray, labels: np.ndarray, clusters: np.ndarray, classes: int, seed: int = SEED
) -> dict:
    """Balanced accuracy with clusters held out against images held out at random.

    Args:
        features, labels, clusters: [N, D], int [N], int [N].
        classes: number of classes.
        seed: of the folds; `REPEATS` seeds from it on are averaged.

    Returns:
        `random` and `grouped` {balanced_accuracy}, `drop`, its 95 % bootstrap `interval` over images, `images`,
        `clusters`, and `mutual_information`: how much clusters tell of classes, 0…1.
    """
    predicted: dict[str, list[np.ndarray]] = {"random": [], "grouped": []}
    for repeat in range(seed, seed + REPEATS):
        folds = {
            "random": StratifiedKFold(FOLDS, shuffle=True, random_state=repeat).split(features, labels),
            "grouped": StratifiedGroupKFold(FOLDS, shuffle=True, random_state=repeat).split(
                features, labels, clusters
            ),
        }
        for name, splits in folds.items():
            predicted[name].append(out_of_fold(features, labels, splits, classes).argmax(axis=1))

    def figures(i: np.ndarray) -> np.ndarray:
        random, grouped = (
            np.mean([np.nanmean(recalls(answers[i], labels[i], classes)) for answers in predicted[name]])
            for name in ("random", "grouped")
        )
        return np.array([random, grouped, random - grouped])

    random, grouped, drop = figures(np.arange(len(labels))).tolist()
    return {
        "images": len(labels),
        "clusters": len(np.unique(clusters)),
        "mutual_information": float(normalized_mutual_info_score(labels, clusters)),
        "random": {"balanced_accuracy": random},
        "grouped": {"balanced_accuracy": grouped},
        "drop": drop,
        "interval": bootstrap(figures, len(labels), RESAMPLES, SEED)[:, 2].tolist(),
    }


def section(found: dict) -> str:
    """The card's text on the result."""
    random, grouped = (found[name]["balanced_accuracy"] for name in ("random", "grouped"))
    return f"""### New slides

No patient identifiers are public. With whole groups of similar background colour held out in place of random images, a
small model on frozen features falls from {random:.3f} to {grouped:.3f} balanced accuracy
(difference {found["drop"]:.3f}{span(found["interval"])}): expect a loss of that order on new slides."""
