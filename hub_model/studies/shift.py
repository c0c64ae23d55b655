"""How often a batch is told to come from an unknown laboratory: wrongly for known ones, rightly for others.

Batches of 20 are drawn from crops of `test`, as they are (by laboratory) and altered as another camera or stain would, and from
a folder of images of a laboratory that was left out of training. Out: `shift` of `metrics.json`.
"""

from __future__ import annotations

import argparse
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
        "--images", type=whole_number(20), default=IMAGES, help=f"images of each kind (default: {IMAGES})"
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
    sources = np.array(test.sources)
    kinds = {
        f"test images of {name}": (True, test.take(np.flatnonzero(sources == name)).sample(arguments.images))
        for name in np.unique(sources)
    }
    sample = test.sample(arguments.images)
    kinds |= {f"{name} (simulated)": (False, altered(sample, change)) for name, change in SIMULATED.items()}
    if arguments.left_out:
        files = [
            path
            for path in sorted(arguments.left_out.rglob("*"))
            if path.suffix.lower().lstrip(".") in SUFFIXES
        ]
        chosen = np.random.default_rng(SEED).permutation(len(files))[: arguments.images]
        kinds[f"{arguments.left_out.name} (left out of training)"] = (False, [files[i] for i in chosen])
    result = {}
    for kind, (known, images) in kinds.items():
        statistics = classifier.predict(images).appearance
        result[kind] = {"known": known, "images": len(statistics), "warned": warned(reference, statistics)}
        print(f"{kind:50s} warned of {result[kind]['warned']:.1%}", flush=True)
    print(f"wrote {write_measurement(arguments.folder, KEY, result)}")
    return 0


def warned(reference: AppearanceReference, statistics: np.ndarray, batches: int = BATCHES) -> float:
    """Share of random batches of 20 of these images, statistics [N, K], that come with a warning."""
    rng = np.random.default_rng(SEED)
    drawn = (rng.choice(len(statistics), SMALLEST_BATCH, replace=False) for _ in range(batches))
    return float(np.mean([reference.shift(statistics[batch]) is not None for batch in drawn]))


def section(found: dict) -> str:
    """The card's text on the result."""
    rows = [
        [kind, "known" if of["known"] else "unknown", f"{of['warned']:.1%}"] for kind, of in found.items()
    ]
    return f"""### Shift warning

For 20 or more images `Predictions.shift` says in one sentence when their colour, sharpness or grain is unlike every training
laboratory's. Share of random batches of {SMALLEST_BATCH} images that it warns of:

{markdown_table(["images", "laboratory", "warned"], rows)}"""
