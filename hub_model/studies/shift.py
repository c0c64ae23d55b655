"""How often the shift warning fires on batches from known laboratories (false positives) and from unknown ones.

Batches of 20 are drawn from crops of `test`, unaltered (by laboratory) and perturbed to simulate another camera or stain, and
from a folder of images of a laboratory that was held out of training. Writes `shift` of `metrics.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dataset_script.arguments import whole_number
from hub_model.evaluation import SEED, markdown_table
from hub_model.inference.appearance import SMALLEST_BATCH
from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import RepoError
from hub_model.inference.images import SUFFIXES
from hub_model.studies.crops import add_study, open_study, perturbed
from hub_model.studies.perturbations import PERTURBATIONS, sharpen

KEY = "shift"
BATCHES = 500
IMAGES = 200  # of each kind, to draw batches from
SIMULATED = {
    name: PERTURBATIONS[name]
    for name in ("another laboratory", "brightness × 0.7", "brightness × 1.3", "blur: 1 % of the width")
} | {"sharpened": lambda image, rng: sharpen(image, 0.008, 2.0)}


def add_command(commands: argparse._SubParsersAction) -> None:
    purpose = "measure the warning about images from another laboratory"
    command = add_study(commands, KEY, KEY, measure, section, purpose)
    left_out = "folder of images of a laboratory that was not in the training data (default: none)"
    command.add_argument("--left_out", type=Path, help=left_out)
    images = f"maximum number of images of each unknown kind (default: {IMAGES})"
    command.add_argument("--images", type=whole_number(20), default=IMAGES, help=images)


def measure(arguments: argparse.Namespace) -> dict:
    """{kind of images: {known, images, warned}}, where `warned` is the fraction of batches with a warning."""
    classifier, [test] = open_study(arguments, "test")
    if classifier.calibration.appearance is None:
        raise RepoError(
            f"{arguments.folder} has no statistics of its training images: run `python -m hub_model ood` first"
        )
    result = {}
    for source in np.unique(test.sources):
        crops = test.take(np.flatnonzero(test.sources == source))
        result |= warning_rates(classifier, f"test images of {source}", crops, crops.labels)
    sample = test.sample(arguments.images)
    for name, perturbation in SIMULATED.items():
        result |= warning_rates(classifier, f"{name} (simulated)", perturbed(sample, perturbation))
    if folder := arguments.left_out:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower().lstrip(".") in SUFFIXES)
        chosen = np.random.default_rng(SEED).permutation(len(files))[: arguments.images]
        kind = f"{folder.name} (left out of training)"
        result |= warning_rates(classifier, kind, [files[i] for i in chosen])
    return result


def warning_rates(
    classifier: Classifier, kind: str, images: Iterable[np.ndarray | Path], labels: np.ndarray | None = None
) -> dict:
    """The entries of a kind of images: a known laboratory's if `labels` [N] are given, then by class as well.

    Raises RepoError if they are fewer than a batch.
    """
    predictions, known = classifier.predict(images), labels is not None
    if len(predictions) < SMALLEST_BATCH:
        raise RepoError(f"{len(predictions)} images ({kind}) are too few: a batch has {SMALLEST_BATCH}")
    by_class = [np.flatnonzero(labels == c) for c in np.unique(labels)] if known else []
    groups = {kind: [np.arange(len(predictions))]}
    groups[f"{kind}, one class at a time"] = [rows for rows in by_class if len(rows) >= SMALLEST_BATCH]

    def warned(rows: np.ndarray) -> float:
        rng, shift = np.random.default_rng(SEED), classifier.calibration.appearance.shift
        batches = (rows[rng.choice(len(rows), SMALLEST_BATCH, replace=False)] for _ in range(BATCHES))
        shifts = [shift(predictions.appearance[i], predictions.probabilities[i]) for i in batches]
        return sum(shift is not None for shift in shifts) / BATCHES

    return {
        name: {"known": known, "images": len(predictions), "warned": float(np.mean([*map(warned, rows)]))}
        for name, rows in groups.items()
        if rows
    }


def section(result: dict) -> str:
    """The card's section."""
    rows = [
        [kind, "known" if of["known"] else "unknown", f"{of['warned']:.1%}"] for kind, of in result.items()
    ]
    return f"""### Shift warning

For {SMALLEST_BATCH} or more images, `Predictions.shift` warns, in one sentence, if their colour, sharpness or noise is unlike
that of every training laboratory. Fraction of random batches of {SMALLEST_BATCH} images that get this warning, a false
positive where the laboratory is known:

{markdown_table(["images", "laboratory", "warning"], rows)}"""
