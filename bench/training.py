"""Training step: images/s of `train_accelerate.py` against its ceiling, timm's `train.py` and Transformers' example script.

All train a ReXNet-150 with seven classes on real JPEGs at 128 px, with batches of 32, one thread per core, in float32. Every run
is a new process; ours reports the speed of its last epoch in `timing.jsonl`, the baselines are `bench.training_loops`.
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
MAX_REPEATS = 3  # one takes more than a minute
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
    """Run a Python program with one thread per core and return its output."""
    return run([sys.executable, *command], {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))})


def ours(folder: Path, *extra: object) -> float:
    """Images/s of the second epoch of two."""
    options = f"--model rexnet_150 --no-pretrained --image_size {SIZE} --batch_size {BATCH} --epochs 2 --data memory"
    paths = ("--dataset", folder / "dataset", "--output_dir", folder / "run", "--overwrite")
    train(ROOT / "train_accelerate.py", *paths, "--mixed_precision", "no", *options.split(), *extra)
    lines = (folder / "run" / "timing.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["images_per_second"]


def with_teacher(folder: Path) -> dict[str, Callable[[], float]]:
    """Measures: images/s of the second epoch, with teacher logits computed in it or cached from the first."""
    vit = f"--model {VIT} --no-pretrained --image_size {VIT_SIZE} --epochs 0 --overwrite"
    teacher = folder / "teacher"  # untrained: the speed is the same
    paths = ("--dataset", folder / "dataset", "--output_dir", teacher)
    train(ROOT / "train_accelerate.py", *paths, *vit.split())
    distilled = partial(ours, folder, "--teacher", teacher)
    return {ANSWERS: distilled, CACHED: partial(distilled, "--teacher_cache", 1)}


def baseline(loop: str, folder: Path) -> float:
    return float(train("-m", "bench.training_loops", loop, folder / "images").split()[-1])


def measure(options: argparse.Namespace) -> list[Row]:
    """Images/s of all, against the ceiling."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = sample(options.data, folder / "images", PER_CLASS)
        run([sys.executable, "-m", "dataset_script", "build", images, folder / "dataset"])
        measures = {NAMES[loop]: partial(baseline, loop, folder) for loop in LOOPS}
        measures[OURS] = partial(ours, folder)
        values = interleave(measures | with_teacher(folder), min(options.repeats, MAX_REPEATS))
    distilled = {ALONE: values[OURS], ANSWERS: values.pop(ANSWERS), CACHED: values.pop(CACHED)}
    setting = f"ReXNet-150, {SIZE} px, batch {BATCH}, float32"
    table = rows(f"Training step, {setting}", values, "images/s", CEILING, NOTES)
    return table + rows(f"Step with a ViT-S/14 teacher, {setting}", distilled, "images/s", ALONE)
