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
from hub_model.evaluation import SEED
from hub_model.inference.appearance import SMALLEST_BATCH, AppearanceReference
from hub_model.inference.errors import RepoError
from hub_model.inference.images import SUFFIXES
from hub_model.studies.calibration import markdown_table
from hub_model.studies.crops import (
    add_model_and_data,
    altered,
    check_classes,
    open_classifier,
    read_crops,
    write_measurement,
)
from hub_model.studies.perturbations import PERTURBATIONS, sharpen

KEY = "shift"
BATCHES = 500
IMAGES = 200  # that the batches of a kind are drawn from
SIMULATED = {
    name: PERTURBATIONS[name]
    for name in ("another laboratory", "brightness × 0.7", "brightness × 1.3", "blur: 1 % of the width")
} | {"sharpened": lambda image, rng: sharpen(image, 0.008, 2.0)}


def add_command(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("shift", help="measure the warning of images from another laboratory")
    add_model_and_data(command)
    command.add_argument(
        "--left_out",
        type=Path,
        help="folder of images of a laboratory that was not trained on (default: none)",
    )
    command.add_argument(
        "--images",
        type=whole_number(20),
        default=IMAGES,
        help=f"images of each unknown kind (default: {IMAGES})",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and write `shift`."""
    classifier = open_classifier(arguments.folder)
    reference = classifier.calibration.appearance
    if reference is None:
        raise RepoError(
            f"{arguments.folder} has no appearance of its training images: run `python -m hub_model ood` first"
        )
    test = read_crops(arguments.dataset, "test", revision=arguments.revision)
    check_classes(classifier, test)
    result = {}

    def measure(
        kind: str, known: bool, images: Iterable[np.ndarray | Path], labels: np.ndarray | None = None
    ) -> None:
        found = classifier.predict(images)
        groups = [labels == c for c in np.unique(labels)] if labels is not None else []
        groups = [group for group in groups if group.sum() >= SMALLEST_BATCH]
        parts = {kind: [slice(None)]} | ({f"{kind}, one class at a time": groups} if groups else {})
        for name, chosen in parts.items():
            shares = [warned(reference, found.appearance[i], found.probabilities[i]) for i in chosen]
            result[name] = {"known": known, "images": len(found.appearance), "warned": float(np.mean(shares))}
            print(f"{name:60s} warned of {result[name]['warned']:.1%}", flush=True)

    sources = np.array(test.sources)
    for name in np.unique(sources):
        of = test.take(np.flatnonzero(sources == name))
        measure(f"test images of {name}", True, of, of.labels)
    sample = test.sample(arguments.images)
    for name, change in SIMULATED.items():
        measure(f"{name} (simulated)", False, altered(sample, change))
    if arguments.left_out:
        files = [
            path
            for path in sorted(arguments.left_out.rglob("*"))
            if path.suffix.lower().lstrip(".") in SUFFIXES
        ]
        chosen = np.random.default_rng(SEED).permutation(len(files))[: arguments.images]
        measure(f"{arguments.left_out.name} (left out of training)", False, [files[i] for i in chosen])
    print(f"wrote {write_measurement(arguments.folder, KEY, result)}")
    return 0


def warned(
    reference: AppearanceReference, statistics: np.ndarray, probabilities: np.ndarray, batches: int = BATCHES
) -> float:
    """Share of random batches of 20 of these images, statistics [N, K], probabilities [N, C], that come with a warning."""
    rng = np.random.default_rng(SEED)
    drawn = (rng.choice(len(statistics), SMALLEST_BATCH, replace=False) for _ in range(batches))
    return float(
        np.mean([reference.shift(statistics[batch], probabilities[batch]) is not None for batch in drawn])
    )


def section(found: dict) -> str:
    """The card's text on the result."""
    rows = [
        [kind, "known" if of["known"] else "unknown", f"{of['warned']:.1%}"] for kind, of in found.items()
    ]
    return f"""### Shift warning

For 20 or more images `Predictions.shift` says in one sentence when their colour, sharpness or grain is unlike every training
laboratory's. Share of random batches of {SMALLEST_BATCH} images that it warns of:

{markdown_table(["images", "laboratory", "warned"], rows)}"""
