"""Training step: images/s of `train_accelerate.py` against its ceiling, timm's `train.py` and Transformers' example script.

All train a ReXNet-150 of seven classes from real JPEGs: 128 pixels, batches of 32, one thread a core, in float32, and in
bfloat16 where the CPU computes in it. Every turn is a process of its own; ours reports the speed of its last epoch in
`timing.jsonl`, the baselines are `bench.training_loops`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from bench.compare import ROOT, Row, interleave, rows, run, sample
from bench.training_loops import BATCH, LOOPS, SIZE

PER_CLASS = 48
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


def ours(precision: str, folder: Path) -> float:
    """Images/s of the second epoch of two."""
    command = [sys.executable, ROOT / "train_accelerate.py", "--dataset", folder / "dataset", "--overwrite"]
    command += [
        "--output_dir",
        folder / "run",
        "--no-pretrained",
        "--model",
        "rexnet_150",
        "--image_size",
        SIZE,
    ]
    command += ["--batch_size", BATCH, "--mixed_precision", precision, "--data", "memory", "--epochs", 2]
    run(command, threads())
    lines = (folder / "run" / "timing.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["images_per_second"]


def baseline(loop: str, precision: str, folder: Path) -> float:
    command = [sys.executable, "-m", "bench.training_loops", loop, precision, folder / "images"]
    return float(run(command, threads()).split()[-1])


def threads() -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}


def measure(data: Path, repeats: int) -> list[Row]:
    """Images/s in both precisions, each against the ceiling; bfloat16 only where the CPU computes in it."""
    table = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        images = sample(data, folder / "images", PER_CLASS)
        run([sys.executable, "-m", "dataset_script", "build", images, folder / "dataset"])
        for name, precision in (("float32", "no"), ("bfloat16", "bf16")):
            if precision == "bf16" and not torch.cpu.get_capabilities().get("avx512_bf16"):
                print("bench: no rows for bfloat16, which this CPU emulates", file=sys.stderr)
                continue
            measures = {NAMES[loop]: partial(baseline, loop, precision, folder) for loop in LOOPS}
            measures[OURS] = partial(ours, precision, folder)
            comparison = f"Training step, ReXNet-150, {SIZE} px, batch {BATCH}, {name}"
            table += rows(comparison, interleave(measures, repeats), "images/s", CEILING, NOTES)
    return table
