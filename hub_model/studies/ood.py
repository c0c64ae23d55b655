"""Fit and measure the out-of-distribution (OOD) rule, which answers "not a cell I know".

The rule combines two distances from the training images: of the network's features, and of the appearance of the image
(`inference.appearance`). Means and covariances are fitted on `train`; weights and the threshold on `validation`, for a false
positive rate of `FALSE_POSITIVE_RATE`. It is measured on `test` and the inputs of `ood_inputs`. Writes `out_of_distribution` and
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
from hub_model.studies.crops import add_study, open_study, perturbed
from hub_model.studies.ood_inputs import MAKERS, background_patches, make_inputs
from hub_model.studies.perturbations import other_laboratory

KEY, FIGURE_SIZE = "out_of_distribution", (6, 4)
FALSE_POSITIVE_RATE = 0.05  # fraction of true cells that may be rejected
INPUTS = 100  # of each kind
DIRECTIONS = 128  # principal components of the features with a variance of their own
BINS = 40  # of the histogram
RESAMPLES = 200
PATCHES, OTHER_LABORATORY = "background patches", "cells of another laboratory (simulated)"


def add_command(commands: argparse._SubParsersAction) -> None:
    purpose = "fit and measure the out-of-distribution (OOD) rule"
    command = add_study(commands, "ood", KEY, measure, section, purpose)
    each = f"number of OOD inputs of each kind (default: {INPUTS})"
    command.add_argument("--each", type=whole_number(1), default=INPUTS, help=each)


def measure(arguments: argparse.Namespace) -> dict:
    """Fit and write the rule, and return the `report` on it."""
    folder = arguments.folder
    if not (folder / CALIBRATION).is_file():
        raise RepoError(f"{folder} has no {CALIBRATION}: run `python -m hub_model calibrate` first")
    classifier, [train, validation, test] = open_study(arguments, "train", "validation", "test")
    classifier.measures_appearance = True  # the reference is fitted here
    training, held_out = classifier.predict(train), classifier.predict(validation)
    rule = set_threshold(fit_rule(training.features, train.labels), held_out.features)
    feature_scores = rule.score(held_out.features) / rule.threshold
    one_hot = np.eye(len(train.label_names))[train.labels]
    appearance = fit_appearance(
        training.appearance, one_hot, train.sources, held_out.appearance, feature_scores
    )
    write_rule(folder, rule, appearance)
    calibration = Calibration.from_folder(folder, classifier.label_names)

    def scores(images: Iterable[np.ndarray]) -> np.ndarray:
        predictions = classifier.predict(images)
        return calibration.ood_score(predictions.features, predictions.appearance)

    sample = test.sample(arguments.each)
    cells = list(sample)
    inputs = {kind: scores(make_inputs(kind, arguments.each, cells)) for kind in MAKERS}
    if patches := background_patches(test, arguments.each):
        inputs[PATCHES] = scores(patches)
    inputs[OTHER_LABORATORY] = scores(perturbed(sample, other_laboratory))
    return report(scores(test), inputs) | {"thresholds": ood_thresholds(read_json(folder / CALIBRATION))}


def fit_rule(features: np.ndarray, labels: np.ndarray, directions: int = DIRECTIONS) -> OodRule:
    """The rule from training features [N, D] and labels [N], without a threshold yet: it is infinite (see `set_threshold`)."""
    features = features.astype(np.float64)
    present = np.unique(labels)
    means = np.stack([features[labels == c].mean(axis=0) for c in present])
    centred = features - means[np.searchsorted(present, labels)]
    dof = max(len(features) - len(present), 1)
    _, singular, components = np.linalg.svd(centred / math.sqrt(dof), full_matrices=False)
    variances, k = singular**2, min(directions, len(singular) - 1)
    residual = max(float(variances[k:].sum() / max(features.shape[1] - k, 1)), 1e-12)
    arrays = (means, np.ascontiguousarray(components[:k].T), np.maximum(variances[:k], residual))
    arrays = [array.astype(np.float32).astype(np.float64) for array in arrays]  # the precision of the file
    return OodRule(*arrays, residual, math.inf)


def set_threshold(rule: OodRule, held_out: np.ndarray) -> OodRule:
    """The rule with its threshold (see `threshold_of`) from features [N, D] of cells that it was not fitted to."""
    return replace(rule, threshold=threshold_of(rule.score(held_out)))


def threshold_of(scores: np.ndarray) -> float:
    """The conformal quantile of held-out scores [N] that a new cell exceeds with probability of at most `FALSE_POSITIVE_RATE`.

    Raises RepoError if there are too few scores.
    """
    threshold = conformal_threshold(scores, 1 - FALSE_POSITIVE_RATE)
    if threshold == math.inf:
        raise RepoError(
            f"{len(scores)} validation images are too few for a false positive rate of {FALSE_POSITIVE_RATE}"
        )
    return threshold


def fit_appearance(
    statistics: np.ndarray,
    labels: np.ndarray,
    sources: Sequence[str],
    held_out: np.ndarray,
    feature_scores: np.ndarray,
) -> dict:
    """`appearance` of `calibration.json`: statistics of each laboratory's training images, and threshold and weight.

    statistics: [N, K] of the training images; labels: one-hot, [N, C]; a class without images in a laboratory gets the mean of
    the laboratory. held_out: statistics [M, K] of images that were not trained on; feature_scores [M]: the distance of their
    features divided by its threshold. The OOD score is a product of the two distances, each weighted by the inverse standard
    deviation of its logarithm: an input may be rejected for being moderately far in both.
    """
    by_source = {}
    for name in sorted(set(sources)):
        rows = np.asarray(sources) == name
        values, members = statistics[rows], labels[rows]
        mean, counts = values.mean(axis=0), members.sum(axis=0)[:, None]
        class_means = np.where(counts > 0, members.T @ values / np.maximum(counts, 1), mean)
        by_source[name] = {
            "mean": mean.tolist(),
            "covariance": (np.cov(values.T) + 1e-6 * np.eye(len(mean))).tolist(),
            "class_means": class_means.tolist(),
            "deviation": np.sqrt(((values - members @ class_means) ** 2).mean(axis=0) + 1e-6).tolist(),
        }
    fitted = {"statistics": list(STATISTICS), "sources": by_source, "fitted_on": "train"}
    reference = AppearanceReference.read(fitted | {"threshold": math.inf, "weight": 0})
    features, appearance = np.log(feature_scores), np.log(reference.score(held_out))
    spreads = features.std(), appearance.std()
    weight = float(spreads[0] / sum(spreads)) if all(spreads) else 0.5
    threshold = math.exp(threshold_of((1 - weight) * features + weight * appearance) / weight)
    return fitted | {"weight": weight, "threshold": threshold, "threshold_fitted_on": "validation"}


def ood_thresholds(calibration: dict) -> dict[str, float | None]:
    """Both thresholds of `calibration.json`, which identify the rule that was measured."""
    keys = {"features": "out_of_distribution", "appearance": "appearance"}
    return {name: (calibration.get(key) or {}).get("threshold") for name, key in keys.items()}


def write_rule(folder: Path, rule: OodRule, appearance: dict | None = None) -> None:
    """Set `out_of_distribution` and `appearance` of `folder/calibration.json`, after writing the arrays beside it."""
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
    temporary = (folder / OOD_ARRAYS).with_suffix(".unfinished")
    names = ("class_means", "directions", "variances")
    save_file({name: np.ascontiguousarray(getattr(rule, name), np.float32) for name in names}, temporary)
    temporary.replace(folder / OOD_ARRAYS)
    write_json(folder / CALIBRATION, calibration)


def detection(cells: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """AUROC of the scores of OOD inputs against those of cells, and detection rate of the inputs: [2]."""
    truth = np.r_[np.zeros(len(cells)), np.ones(len(inputs))]
    return np.array([roc_auc_score(truth, np.r_[cells, inputs]), (inputs > 1).mean()])


def report(cells: np.ndarray, inputs: Mapping[str, np.ndarray]) -> dict:
    """AUROC and detection rate of each kind of input, with 95 % bootstrap intervals, and the false positive rate on cells.

    cells: scores [N] of test cells, where above 1 is rejected; inputs: scores of OOD inputs by kind.
    """
    kinds = {}
    for kind, scores in inputs.items():

        def resampled(i: np.ndarray, scores: np.ndarray = scores) -> np.ndarray:
            return detection(cells[i], np.random.default_rng(i[:4]).choice(scores, len(scores)))

        spans = bootstrap(resampled, len(cells), RESAMPLES, SEED).T.tolist()
        auroc, detection_rate = detection(cells, scores).tolist()
        kinds[kind] = {
            "inputs": len(scores),
            "auroc": auroc,
            "detection_rate": detection_rate,
            "intervals": {"auroc": spans[0], "detection_rate": spans[1]},
        }
    return {
        "cells": len(cells),
        "false_positive_rate": float((cells > 1).mean()),
        "kinds": kinds,
        "histogram": histogram(cells, inputs),
    }


def histogram(cells: np.ndarray, inputs: Mapping[str, np.ndarray]) -> dict:
    """Histograms of the scores of cells and of each kind of OOD input, with common bins: {edges, cells, ood}.

    The bins span the scores of cells and the middle 98 % of those of inputs; the outermost bins count all beyond.
    """
    low, high = np.quantile(np.concatenate(list(inputs.values())), [0.01, 0.99])
    edges = np.linspace(min(low, cells.min()), max(high, cells.max()), BINS + 1)
    return {
        "edges": edges.tolist(),
        "cells": np.histogram(cells, edges)[0].tolist(),
        "ood": {k: np.histogram(s.clip(edges[0], edges[-1]), edges)[0].tolist() for k, s in inputs.items()},
    }


def section(result: dict) -> str:
    """The card's section."""
    rows = [
        [kind, f"{of['auroc']:.3f}{span(of['intervals']['auroc'])}", f"{of['detection_rate']:.1%}"]
        for kind, of in result["kinds"].items()
    ]
    return f"""### Out-of-distribution inputs

An input gets the verdict "not a cell I know" if the network's features, together with the image's colour, sharpness and noise,
are further from those of the training images than a threshold fitted on validation. The false positive rate on
{result["cells"]:,} test cells is {result["false_positive_rate"]:.1%}. OOD inputs, none of them used to fit the score:

{markdown_table(["input", "AUROC", "detection rate"], rows)}

![scores](figures/out_of_distribution.png)"""


def draw(axes: Axes, result: dict) -> None:
    """Histograms of the scores of test cells and of OOD inputs, and the threshold."""
    bins = result["histogram"]
    ood = np.sum([counts for kind, counts in bins["ood"].items() if kind != OTHER_LABORATORY], axis=0)
    for counts, color, label in ((bins["cells"], BLUE, "test cells"), (ood, ORANGE, "OOD inputs")):
        fractions = np.array(counts) / max(sum(counts), 1)
        axes.stairs(fractions, bins["edges"], fill=True, color=color, alpha=0.6, label=label)
    axes.axvline(1, color="black", linestyle="--", linewidth=1, label="threshold")
    axes.set(xlabel="OOD score", ylabel="share")
    axes.set_title(f"False positive rate {result['false_positive_rate']:.1%}")
    axes.legend(frameon=False)
