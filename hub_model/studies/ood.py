"""When to answer "not a cell I know": the out-of-distribution (OOD) rule, fitted and measured.

Two distances from the training images: of the network's features, and of how the picture looks (`inference.appearance`).
`train` gives means and covariances, `validation` the weights and the threshold of the two together, which a true cell exceeds
with a chance of `FALSE_POSITIVE_RATE`; `test` and the inputs of `ood_inputs` measure it. Out: `out_of_distribution` and
`appearance` of `calibration.json`, arrays in `out_of_distribution.safetensors`, and `out_of_distribution` of `metrics.json`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from safetensors.numpy import save_file
from sklearn.metrics import roc_auc_score

from dataset_script.arguments import whole_number
from hub_model.contract import CALIBRATION, OOD_ARRAYS, weights_digest
from hub_model.evaluation import SEED, bootstrap, markdown_table, span
from hub_model.figures import BLUE, ORANGE
from hub_model.inference.appearance import STATISTICS, AppearanceReference
from hub_model.inference.calibration import Calibration, conformal_threshold
from hub_model.inference.errors import RepoError
from hub_model.inference.model_repo import read_json
from hub_model.inference.ood import OodRule
from hub_model.studies.calibration import write_json
from hub_model.studies.crops import add_study, altered, open_study
from hub_model.studies.ood_inputs import MAKERS, background_patches, make_inputs
from hub_model.studies.perturbations import other_laboratory

KEY, FIGURE_SIZE = "out_of_distribution", (6, 4)
FALSE_POSITIVE_RATE = 0.05  # share of true cells that may be rejected
INPUTS = 100  # of each kind
DIRECTIONS = 128  # of the features' covariance that are kept one by one
RESAMPLES = 200
PATCHES, OTHER_LABORATORY = "background patches", "cells of another laboratory (simulated)"


def add_command(commands: argparse._SubParsersAction) -> None:
    purpose = "fit and measure the out-of-distribution rule"
    command = add_study(commands, "ood", KEY, measure, section, purpose)
    each = f"OOD inputs of each kind (default: {INPUTS})"
    command.add_argument("--each", type=whole_number(1), default=INPUTS, help=each)


def measure(arguments: argparse.Namespace) -> dict:
    """Fit and write the rule; AUROC and detection rate by kind of input (see `report`)."""
    folder = arguments.folder
    if not (folder / CALIBRATION).is_file():
        raise RepoError(f"{folder} has no {CALIBRATION}: run `python -m hub_model calibrate` first")
    classifier, [train, validation, test] = open_study(arguments, "train", "validation", "test")
    classifier.measures_appearance = True  # the reference is fitted here
    fitted_to, held_out = classifier.predict(train), classifier.predict(validation)
    rule = set_threshold(fit_rule(fitted_to.features, train.labels), held_out.features)
    share = rule.score(held_out.features) / rule.threshold
    members = np.eye(len(train.label_names))[train.labels]
    reference = fit_appearance(fitted_to.appearance, members, train.sources, held_out.appearance, share)
    write_rule(folder, rule, reference)
    calibration = Calibration.from_folder(folder, classifier.label_names)

    def scores(images: Iterable[np.ndarray]) -> np.ndarray:
        found = classifier.predict(images)
        return calibration.ood_score(found.features, found.appearance)

    sample = test.sample(arguments.each)
    cells = list(sample)
    inputs = {kind: scores(make_inputs(kind, arguments.each, cells)) for kind in MAKERS}
    if patches := background_patches(test, arguments.each):
        inputs[PATCHES] = scores(patches)
    inputs[OTHER_LABORATORY] = scores(altered(sample, other_laboratory))
    return report(scores(test), inputs) | {"thresholds": thresholds_of(read_json(folder / CALIBRATION))}


def fit_rule(features: np.ndarray, labels: np.ndarray, directions: int = DIRECTIONS) -> OodRule:
    """The rule from training features [N, D] and labels [N], its threshold still infinite (see `set_threshold`)."""
    features = features.astype(np.float64)
    present = np.unique(labels)
    means = np.stack([features[labels == c].mean(axis=0) for c in present])
    centred = features - means[np.searchsorted(present, labels)]
    freedom = max(len(features) - len(present), 1)
    _, singular, rows = np.linalg.svd(centred / math.sqrt(freedom), full_matrices=False)
    kept = min(directions, len(singular) - 1)
    residual = float((singular[kept:] ** 2).sum() / max(features.shape[1] - kept, 1))
    residual = max(residual, 1e-12)
    arrays = (means, np.ascontiguousarray(rows[:kept].T), np.maximum(singular[:kept] ** 2, residual))
    arrays = [array.astype(np.float32).astype(np.float64) for array in arrays]  # as they are stored
    return OodRule(*arrays, residual, math.inf)


def set_threshold(rule: OodRule, held_out: np.ndarray, rate: float = FALSE_POSITIVE_RATE) -> OodRule:
    """The rule with the threshold that a new cell exceeds with a chance of at most `rate`: a conformal quantile.

    held_out: features [N, D] of cells that the rule was not fitted to. Raises RepoError when they are too few.
    """
    threshold = conformal_threshold(rule.score(held_out), 1 - rate)
    if threshold == math.inf:
        raise RepoError(f"{len(held_out)} validation images are too few for a false positive rate of {rate}")
    return replace(rule, threshold=threshold)


def fit_appearance(
    statistics: np.ndarray,
    labels: np.ndarray,
    sources: Sequence[str],
    held_out: np.ndarray,
    share: np.ndarray,
) -> dict:
    """`appearance` of `calibration.json`: statistics [N, K] of training images by laboratory; threshold and weight from others.

    labels: one-hot, [N, C]; where a laboratory has no image of a class, its mean stands in for the class's. held_out: statistics
    [M, K] of images that were not trained on; share [M]: their features' distance as a share of its threshold. In the product of
    the two distances each counts in standard deviations of its logarithm, so that an input that is somewhat far in both is
    rejected as one that is very far in one is.
    """
    found = {"statistics": list(STATISTICS), "sources": {}, "fitted_on": "train"}
    for name in sorted(set(sources)):
        chosen = np.asarray(sources) == name
        of, members = statistics[chosen], labels[chosen]
        mean, images = of.mean(axis=0), members.sum(axis=0)[:, None]
        class_means = np.where(images > 0, members.T @ of / np.maximum(images, 1), mean)
        found["sources"][name] = {
            "mean": mean.tolist(),
            "covariance": (np.cov(of.T) + 1e-6 * np.eye(len(mean))).tolist(),
            "class_means": class_means.tolist(),
            "deviation": np.sqrt(((of - members @ class_means) ** 2).mean(axis=0) + 1e-6).tolist(),
        }
    scores = np.log(AppearanceReference.read({**found, "threshold": math.inf, "weight": 0}).score(held_out))
    share = np.log(share)
    spreads = share.std(), scores.std()
    weight = float(spreads[0] / sum(spreads)) if all(spreads) else 0.5
    limit = conformal_threshold((1 - weight) * share + weight * scores, 1 - FALSE_POSITIVE_RATE)
    if limit == math.inf:
        raise RepoError(f"{len(held_out)} validation images are too few for a false positive rate")
    fitted = {"weight": weight, "threshold": math.exp(limit / weight), "threshold_fitted_on": "validation"}
    return found | fitted


def thresholds_of(calibration: dict) -> dict[str, float | None]:
    """Both thresholds of `calibration.json`, by which a measurement is known to be of this rule."""
    keys = {"features": "out_of_distribution", "appearance": "appearance"}
    return {name: (calibration.get(key) or {}).get("threshold") for name, key in keys.items()}


def write_rule(folder: Path, rule: OodRule, appearance: dict | None = None) -> None:
    """Set `out_of_distribution` and `appearance` of `folder/calibration.json`, and write the arrays beside it, arrays first."""
    calibration = read_json(folder / CALIBRATION)
    calibration["out_of_distribution"] = {
        "score": "mahalanobis",
        "residual_variance": rule.residual_variance,
        "threshold": rule.threshold,
        "fitted_on": "validation",
        "weights_sha256": weights_digest(folder),
        "arrays_fitted_on": "train",
    }
    if appearance:
        calibration["appearance"] = appearance
    path = folder / OOD_ARRAYS
    names = ("class_means", "directions", "variances")
    unfinished = path.with_suffix(".unfinished")
    save_file({name: np.ascontiguousarray(getattr(rule, name), np.float32) for name in names}, unfinished)
    unfinished.replace(path)
    write_json(folder / CALIBRATION, calibration)


def auroc(cells: np.ndarray, inputs: np.ndarray) -> float:
    """Chance that an OOD input scores above a cell, ties halved."""
    truth = np.r_[np.zeros(len(cells)), np.ones(len(inputs))]
    return float(roc_auc_score(truth, np.r_[cells, inputs]))


def report(cells: np.ndarray, inputs: Mapping[str, np.ndarray]) -> dict:
    """AUROC and detection rate of each kind of input, with 95 % bootstrap intervals, and the false positive rate on cells.

    cells: scores [N] of test cells, above 1 for rejected; inputs: scores of OOD inputs by kind.
    """
    kinds = {}
    for kind, scores in inputs.items():
        rejected = (scores > 1).astype(float)

        def resampled(i: np.ndarray, s: np.ndarray = scores, r: np.ndarray = rejected) -> np.ndarray:
            chosen = np.random.default_rng(i[:4]).integers(0, len(s), len(s))
            return np.array([auroc(cells[i], s[chosen]), r[chosen].mean()])

        spans = bootstrap(resampled, len(cells), RESAMPLES, SEED).T.tolist()
        kinds[kind] = {
            "inputs": len(scores),
            "auroc": auroc(cells, scores),
            "detection_rate": float(rejected.mean()),
            "intervals": {"auroc": spans[0], "detection_rate": spans[1]},
        }
    return {
        "cells": len(cells),
        "false_positive_rate": float((cells > 1).mean()),
        "kinds": kinds,
        "histogram": histogram(cells, inputs),
    }


def histogram(cells: np.ndarray, inputs: Mapping[str, np.ndarray], bins: int = 40) -> dict:
    """Counts of cells and of each kind of OOD input in common bins of score: {edges, cells, ood}.

    The bins span the scores of cells and the middle 98 % of the inputs'; what lies beyond is in the end bins.
    """
    low, high = np.quantile(np.concatenate(list(inputs.values())), [0.01, 0.99])
    edges = np.linspace(min(low, cells.min()), max(high, cells.max()), bins + 1)
    return {
        "edges": edges.tolist(),
        "cells": np.histogram(cells, edges)[0].tolist(),
        "ood": {k: np.histogram(s.clip(edges[0], edges[-1]), edges)[0].tolist() for k, s in inputs.items()},
    }


def section(found: dict) -> str:
    """The card's text on the result."""
    rows = [
        [kind, f"{of['auroc']:.3f}{span(of['intervals']['auroc'])}", f"{of['detection_rate']:.1%}"]
        for kind, of in found["kinds"].items()
    ]
    return f"""### Out-of-distribution inputs

An input is answered with "not a cell I know" where the network's features and the picture's colour, sharpness and grain
together lie further from the training images than a threshold fitted on validation. The false positive rate on
{found["cells"]:,} test cells is {found["false_positive_rate"]:.1%}. OOD inputs, none of them used to fit the score:

{markdown_table(["input", "AUROC", "detection rate"], rows)}

![scores](figures/out_of_distribution.png)"""


def draw(axes: Axes, found: dict) -> None:
    """Scores of test cells and of OOD inputs, as shares of each, and the threshold between them."""
    bins = found["histogram"]
    ood = [
        sum(counts)
        for counts in zip(*(c for k, c in bins["ood"].items() if k != OTHER_LABORATORY), strict=True)
    ]
    for counts, colour, label in ((bins["cells"], BLUE, "test cells"), (ood, ORANGE, "OOD inputs")):
        shares = [count / max(sum(counts), 1) for count in counts]
        axes.stairs(shares, bins["edges"], fill=True, color=colour, alpha=0.6, label=label)
    axes.axvline(1, color="black", linestyle="--", linewidth=1, label="threshold")
    axes.set(xlabel="OOD score", ylabel="share")
    axes.set_title(f"False positive rate {found['false_positive_rate']:.1%}")
    axes.legend(frameon=False)
