"""Training step: images/s of `train_accelerate.py` against its ceiling, timm's `train.py` and Transformers' example script.

All train a ReXNet-150 of seven classes from real JPEGs: 128 pixels, batches of 32, one thread a core, in float32. Every turn is a
process of its own; ours reports the speed of its last epoch in `timing.jsonl`, the baselines are `bench.training_loops`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.compare import ROOT, Row, interleave, rows, run, sample
from bench.training_loops import BATCH, LOOPS, SIZE

PER_CLASS = 48
MOST_TURNS = 3  # one takes more than a minute
VIT, VIT_SIZE = "vit_small_patch14_dinov2", 126
ALONE, ANSWERS, CACHED = "no teacher", "the teacher answers", "its logits from --teacher_cache"
OURS, CEILING = "train_accelerate.py", "one constant batch (ceiling)"
NAMES = {
    "ceiling": CEILING,
    "timm": "timm, train.py",
    "transformers": "Transformers, run_image_classification_no_trainer.py",
}
NOTES = {
    CEILING: "the same step, no images to prepare",
    NAMES["timm"]: "its loop rebuilt; 2 workers, channels last",
    NAMES["transformers"]: "its loop rebuilt",
}


def train(*command: object) -> str:
    """The output of a Python program that has one thread a core."""
    threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    return run([sys.executable, *command], threads)


def ours(folder: Path, *more: object) -> float:
    """Images/s of the second epoch of two."""
    options = f"--model rexnet_150 --no-pretrained --image_size {SIZE} --batch_size {BATCH} --epochs 2 --data memory"
    places = ("--dataset", folder / "dataset", "--output_dir", folder / "run", "--overwrite")
    train(ROOT / "train_accelerate.py", *places, "--mixed_precision", "no", *options.split(), *more)
    lines = (folder / "run" / "timing.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["images_per_second"]


def with_teacher(folder: Path) -> dict[str, Callable[[], float]]:
    """Measures: images/s of the second epoch with a teacher that answers in it, and with one that did so in the first."""
    vit = f"--model {VIT} --no-pretrained --image_size {VIT_SIZE} --epochs 0 --overwrite"
    teacher = folder / "teacher"  # answers as fast as one that has learned something
    train(
        ROOT / "train_accelerate.py", "--dataset", folder / "dataset", "--output_dir", teacher, *vit.split()
    )
    taught = partial(ours, folder, "--teacher", teacher)
    return {ANSWERS: taught, CACHED: partial(taught, "--teacher_cache", 1)}


def baseline(loop: str, folder: Path) -> float:
    return float(train("-m", "bench.training_loops", loop, folder / "images").split()[-1])


def measure(options: argparse.Namespace) -> list[Row]:
    """Images/s of all, against the ceiling."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        images = sample(options.data, folder / "images", PER_CLASS)
        run([sys.executable, "-m", "dataset_script", "build", images, folder / "dataset"])
        measures = {NAMES[loop]: partial(baseline, loop, folder) for loop in LOOPS}
        measures[OURS] = partial(ours, folder)
        values = interleave(measures | with_teacher(folder), min(options.repeats, MOST_TURNS))
    taught = {ALONE: values[OURS], ANSWERS: values.pop(ANSWERS), CACHED: values.pop(CACHED)}
    what = f"ReXNet-150, {SIZE} px, batch {BATCH}, float32"
    table = rows(f"Training step, {what}", values, "images/s", CEILING, NOTES)
    return table + rows(f"Step with a ViT-S/14 teacher, {what}", taught, "images/s", ALONE)
