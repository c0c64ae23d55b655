"""When to answer "not a cell I know": a score of ood_score and its threshold, chosen and measured.

In: a model and its dataset repo. `train` gives class means, covariance and neighbours; `validation` sets each score's
threshold, above which `ALARM` of the true cells lie; the `choosing` half of the strangers picks the score; `test` and the
`reporting` half measure it. Out: `out_of_distribution` of `calibration.json`, its arrays in
`out_of_distribution.safetensors`, and `out_of_distribution` of `metrics.json`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sklearn.metrics import roc_auc_score

from hub_model.calibration import write_json
from hub_model.contract import STRANGER_ARRAYS, weights_digest
from hub_model.crops import Crops, altered
from hub_model.evaluation import SEED, bootstrap
from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import RepoError
from hub_model.inference.ood import SCORES
from hub_model.perturbations import other_laboratory
from hub_model.strangers import MAKERS, Half, background_patches, make_strangers
from hub_model.trust_report import read_calibration

ALARM = 0.02  # share of true cells that may be called strangers
STRANGERS = 100  # inputs of each kind and half
DIRECTIONS = 128  # of the features' covariance that are kept one by one
NEIGHBOUR = 10
TRAINING_IMAGES = 3000  # features of training images that are kept at most
PATCHES, OTHER_LABORATORY = "background patches", "cells of another laboratory (simulated)"


@dataclass(frozen=True)
class Answers:
    """What the model says of a batch: logits [N, C] and pooled features [N, D]."""

    logits: np.ndarray
    features: np.ndarray


@dataclass(frozen=True)
class Rule:
    """A score that can be computed: its parameters (JSON) and its arrays (safetensors)."""

    parameters: dict
    arrays: dict[str, np.ndarray]

    def __call__(self, answers: Answers) -> np.ndarray:
        """Strangeness [N], higher = stranger."""
        score = SCORES[self.parameters["score"]]
        return score(answers.logits, answers.features, self.parameters, self.arrays)


def ask(classifier: Classifier, images: Iterable[np.ndarray]) -> Answers:
    """Logits and features of images."""
    predictions = classifier.predict(images)
    return Answers(predictions.logits, predictions.features)


def fit_mahalanobis(features: np.ndarray, labels: np.ndarray, directions: int = DIRECTIONS) -> Rule:
    """Class means and the covariance within classes, as probabilistic PCA (see `hub_model.inference.ood.mahalanobis`)."""
    features = features.astype(np.float64)
    present = np.unique(labels)
    means = np.stack([features[labels == c].mean(axis=0) for c in present])
    centred = features - means[np.searchsorted(present, labels)]
    freedom = max(len(features) - len(present), 1)
    _, singular, rows = np.linalg.svd(centred / math.sqrt(freedom), full_matrices=False)
    kept = min(directions, len(singular) - 1)
    dimensions = features.shape[1] - kept
    residual = max(float((singular[kept:] ** 2).sum() / max(dimensions, 1)), 1e-12)
    arrays = {
        "class_means": means.astype(np.float32),
        "directions": np.ascontiguousarray(rows[:kept].T).astype(np.float32),
        "variances": np.maximum(singular[:kept] ** 2, residual).astype(np.float32),
    }
    return Rule({"score": "mahalanobis", "residual_variance": residual}, arrays)


def fit_neighbours(features: np.ndarray, seed: int = SEED, k: int = NEIGHBOUR) -> Rule:
    """Training features of length 1, half precision, at most `TRAINING_IMAGES` of them drawn by seed."""
    if len(features) > TRAINING_IMAGES:
        features = features[np.random.default_rng(seed).permutation(len(features))[:TRAINING_IMAGES]]
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return Rule(
        {"score": "neighbours", "k": min(k, len(unit))}, {"training_features": unit.astype(np.float16)}
    )


def fit_rules(train: Answers, labels: np.ndarray, temperature: float) -> dict[str, Rule]:
    """Every known score, its parameters from `train`, not yet with a threshold."""
    return {
        "energy": Rule({"score": "energy", "temperature": temperature}, {}),
        "max_logit": Rule({"score": "max_logit"}, {}),
        "mahalanobis": fit_mahalanobis(train.features, labels),
        "neighbours": fit_neighbours(train.features),
    }


def threshold_for(scores: np.ndarray, alarm: float = ALARM) -> float:
    """The score that a new cell exceeds with a chance of at most `alarm`: the conformal quantile of these."""
    rank = math.ceil((len(scores) + 1) * (1 - alarm) - 1e-9)
    if rank > len(scores):
        raise RepoError(f"{len(scores)} validation images are too few for a false alarm rate of {alarm}")
    return float(np.sort(scores)[rank - 1])


def auroc(cells: np.ndarray, strangers: np.ndarray) -> float:
    """Chance that a stranger scores above a cell, ties halved."""
    truth = np.r_[np.zeros(len(cells)), np.ones(len(strangers))]
    return float(roc_auc_score(truth, np.r_[cells, strangers]))


def choose(rules: Mapping[str, Rule], cells: Answers, strangers: Mapping[str, Answers]) -> tuple[str, dict]:
    """The score with the highest AUROC, averaged over the kinds of strangers; and all AUROCs, {score: {kind: …}}."""
    table = {
        name: {kind: auroc(rule(cells), rule(answers)) for kind, answers in strangers.items()}
        for name, rule in rules.items()
    }
    return max(table, key=lambda name: np.mean(list(table[name].values()))), table


def meet(classifier: Classifier, half: Half, crops: Crops, each: int) -> dict[str, Answers]:
    """The model's answers to `each` strangers of every kind; background patches are cut from `crops`."""
    met = {kind: ask(classifier, make_strangers(kind, each, half)) for kind in MAKERS}
    if patches := background_patches(crops, each):
        met[PATCHES] = ask(classifier, patches)
    return met


def report(rule: Rule, threshold: float, cells: Answers, strangers: Mapping[str, Answers]) -> dict:
    """AUROC and share called strangers of each kind, with 95 % bootstrap intervals, and the false alarms on cells."""
    of_cells, kinds = rule(cells), {}
    for kind, answers in strangers.items():
        of_strangers = rule(answers)
        flags = (of_strangers > threshold).astype(float)

        def resampled(i: np.ndarray, s: np.ndarray = of_strangers, f: np.ndarray = flags) -> np.ndarray:
            chosen = np.random.default_rng(i[:4]).integers(0, len(s), len(s))
            return np.array([auroc(of_cells[i], s[chosen]), f[chosen].mean()])

        spans = bootstrap(resampled, len(of_cells), 200, SEED).T.tolist()
        kinds[kind] = {
            "inputs": len(of_strangers),
            "auroc": auroc(of_cells, of_strangers),
            "flagged": float(flags.mean()),
            "intervals": {"auroc": spans[0], "flagged": spans[1]},
        }
    return {
        "score": rule.parameters["score"],
        "threshold": threshold,
        "cells": len(of_cells),
        "false_alarms": float((of_cells > threshold).mean()),
        "kinds": kinds,
        "histogram": histogram(of_cells, {kind: rule(answers) for kind, answers in strangers.items()}),
    }


def histogram(cells: np.ndarray, strangers: Mapping[str, np.ndarray], bins: int = 40) -> dict:
    """Counts of cells and of each kind of strangers in common bins of score: {"edges", "cells", "strangers"}.

    The bins span the scores of cells and the middle 98 % of the strangers'; what lies beyond is in the end bins.
    """
    everyone = np.concatenate(list(strangers.values()))
    low, high = np.quantile(everyone, [0.01, 0.99])
    edges = np.linspace(min(low, cells.min()), max(high, cells.max()), bins + 1)
    counts = {k: np.histogram(s.clip(edges[0], edges[-1]), edges)[0].tolist() for k, s in strangers.items()}
    return {
        "edges": edges.tolist(),
        "cells": np.histogram(cells, edges)[0].tolist(),
        "strangers": counts,
    }


def fit_out_of_distribution(
    classifier: Classifier, train: Crops, validation: Crops, temperature: float, each: int = STRANGERS
) -> tuple[Rule, float, dict]:
    """The chosen rule, its threshold, and the evidence: AUROC by score and kind on `validation`."""
    fitted_to = ask(classifier, train)
    rules = fit_rules(fitted_to, train.labels, temperature)
    cells = ask(classifier, validation)
    chosen, evidence = choose(rules, cells, meet(classifier, "choosing", validation, each))
    return rules[chosen], threshold_for(rules[chosen](cells)), evidence


def write_rule(folder: Path, rule: Rule, threshold: float) -> None:
    """Set `out_of_distribution` of `folder/calibration.json` and write its arrays beside it, arrays first."""
    calibration = read_calibration(folder)
    calibration["out_of_distribution"] = {
        **rule.parameters,
        "threshold": threshold,
        "fitted_on": "validation",
        "weights_sha256": weights_digest(folder),
        **({"arrays_fitted_on": "train"} if rule.arrays else {}),
    }
    path = folder / STRANGER_ARRAYS
    if rule.arrays:
        unfinished = path.with_suffix(".unfinished")
        save_file(rule.arrays, unfinished)
        unfinished.replace(path)
    else:
        path.unlink(missing_ok=True)
    write_json(folder / "calibration.json", calibration)


def measure_out_of_distribution(
    classifier: Classifier, rule: Rule, threshold: float, test: Crops, each: int = STRANGERS
) -> dict:
    """The `out_of_distribution` key of `metrics.json`, measured on `test` and the reporting half of the strangers.

    The kind "cells of another laboratory" shows how often real cells of an unusual look are turned away.
    """
    strangers = meet(classifier, "reporting", test, each)
    strangers[OTHER_LABORATORY] = ask(classifier, altered(test.sample(each), other_laboratory))
    return report(rule, threshold, ask(classifier, test), strangers)
