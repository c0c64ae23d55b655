"""How often a batch is told to come from an unknown laboratory: wrongly for known ones, rightly for others.

Batches of 20 are drawn from crops of `test`, as they are (by laboratory) and altered as another camera or stain would, and from
a folder of images of a laboratory that was left out of training. Out: `shift` of `metrics.json`.
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
from hub_model.studies.crops import add_study, altered, open_study
from hub_model.studies.perturbations import PERTURBATIONS, sharpen

KEY = "shift"
BATCHES = 500
IMAGES = 200  # that the batches of a kind are drawn from
SIMULATED = {
    name: PERTURBATIONS[name]
    for name in ("another laboratory", "brightness × 0.7", "brightness × 1.3", "blur: 1 % of the width")
} | {"sharpened": lambda image, rng: sharpen(image, 0.008, 2.0)}


def add_command(commands: argparse._SubParsersAction) -> None:
    purpose = "measure the warning of images from another laboratory"
    command = add_study(commands, "shift", KEY, measure, section, purpose)
    left_out = "folder of images of a laboratory that was not trained on (default: none)"
    command.add_argument("--left_out", type=Path, help=left_out)
    images = f"images of each unknown kind (default: {IMAGES})"
    command.add_argument("--images", type=whole_number(20), default=IMAGES, help=images)


def measure(arguments: argparse.Namespace) -> dict:
    """{kind of images: {known, images, warned}}, `warned` the share of its batches that come with a warning."""
    classifier, [test] = open_study(arguments, "test")
    if classifier.calibration.appearance is None:
        raise RepoError(
            f"{arguments.folder} has no appearance of its training images: run `python -m hub_model ood` first"
        )
    result = {}
    for source in np.unique(test.sources):
        crops = test.take(np.flatnonzero(test.sources == source))
        result |= warnings_about(classifier, f"test images of {source}", crops, crops.labels)
    sample = test.sample(arguments.images)
    for name, change in SIMULATED.items():
        result |= warnings_about(classifier, f"{name} (simulated)", altered(sample, change))
    if folder := arguments.left_out:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower().lstrip(".") in SUFFIXES)
        chosen = np.random.default_rng(SEED).permutation(len(files))[: arguments.images]
        name = f"{folder.name} (left out of training)"
        result |= warnings_about(classifier, name, [files[i] for i in chosen])
    return result


def warnings_about(
    classifier: Classifier, kind: str, images: Iterable[np.ndarray | Path], labels: np.ndarray | None = None
) -> dict:
    """The entry of a kind of images; with their labels [N] they are of a known laboratory, and told by class besides."""
    found, known = classifier.predict(images), labels is not None
    by_class = [np.flatnonzero(labels == c) for c in np.unique(labels)] if known else []
    groups = {kind: [np.arange(len(found))]}
    groups[f"{kind}, one class at a time"] = [of for of in by_class if len(of) >= SMALLEST_BATCH]

    def warned(images: np.ndarray) -> float:
        rng, warnings = np.random.default_rng(SEED), 0
        for _ in range(BATCHES):
            batch = images[rng.choice(len(images), SMALLEST_BATCH, replace=False)]
            shift = classifier.calibration.appearance.shift
            warnings += shift(found.appearance[batch], found.probabilities[batch]) is not None
        return warnings / BATCHES

    return {
        name: {"known": known, "images": len(found), "warned": float(np.mean([warned(of) for of in chosen]))}
        for name, chosen in groups.items()
        if chosen
    }


def section(found: dict) -> str:
    """The card's text on the result."""
    rows = [
        [kind, "known" if of["known"] else "unknown", f"{of['warned']:.1%}"] for kind, of in found.items()
    ]
    return f"""### Shift warning

For 20 or more images `Predictions.shift` says in one sentence when their colour, sharpness or grain is unlike every training
laboratory's. Share of random batches of {SMALLEST_BATCH} images that it warns of:

{markdown_table(["images", "laboratory", "warned"], rows)}"""
