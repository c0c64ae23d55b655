"""Training step: images/s of `train_accelerate.py` against its own ceiling, timm's `train.py` and Transformers' example script.

All train a ReXNet-150 of seven classes from real JPEGs: 128 pixels, batches of 32, one thread a core, in float32, and in
bfloat16 where the CPU computes in it (emulated, a step takes minutes).
Each contestant is a process of its own (`bench.training_contestants`) that trains `STEPS` steps whenever it is its turn.
"""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from bench.side_by_side import Row, in_turns, rows

PER_CLASS = 80  # images for the scripts that read files: more than all turns together ask for
CEILING, OURS = "one constant batch (ceiling)", "train_accelerate.py"
TIMM, TRANSFORMERS = "timm, train.py", "Transformers, run_image_classification_no_trainer.py"
PRECISIONS = {"float32": "no", "bfloat16": "bf16"}


class Contestant:
    """A process that trains when told to; `turn(what)` gives the images/s of one turn."""

    def __init__(self, script: str, precision: str, images: Path, place: Path, preload: str | None = None):
        environment = os.environ | {
            "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HOME": str(place / "hf_home"),
        }
        if preload:
            environment["LD_PRELOAD"] = preload
        command = [sys.executable, "-m", "bench.training_contestants", script, precision, str(images)]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def answer(self) -> str:
        """What it says next.

        Raises:
            RuntimeError: it has ended.
        """
        for line in self.process.stdout:
            if line.startswith("bench: "):
                return line.removeprefix("bench: ").strip()
        raise RuntimeError(f"{' '.join(self.process.args)} ended with status {self.process.wait()}")

    def turn(self, what: str) -> float:
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return float(self.answer())

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()  # its loop ends with its input
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def sample(data: Path, folder: Path) -> Path:
    """A folder of links to the first `PER_CLASS` images of each class."""
    for place in sorted(path for path in data.iterdir() if path.is_dir()):
        (folder / place.name).mkdir(parents=True)
        for path in sorted(place.glob("*.jpg"))[:PER_CLASS]:
            (folder / place.name / path.name).symlink_to(path.resolve())
    return folder


def compare(name: str, precision: str, images: Path, place: Path, repeats: int) -> list[Row]:
    """The rows of one precision."""
    jemalloc = ctypes.util.find_library("jemalloc")
    with ExitStack() as stack:

        def start(script: str, preload: str | None = None) -> Contestant:
            return stack.enter_context(Contestant(script, precision, images, place, preload))

        own, usual = start("ours"), start("ours_usual_malloc")
        turns = {
            CEILING: (own, "ceiling"),
            OURS: (own, "loop"),
            f"{OURS}, malloc as it is set up": (usual, "loop"),
        }
        if jemalloc:
            turns[f"{OURS}, jemalloc preloaded"] = (start("ours_usual_malloc", jemalloc), "loop")
        else:
            print(
                "bench: no row for jemalloc: libjemalloc is not here (Debian: libjemalloc2)", file=sys.stderr
            )
        turns |= {TIMM: (start("timm"), "loop"), TRANSFORMERS: (start("hf"), "loop")}
        for contestant in {id(contestant): contestant for contestant, _ in turns.values()}.values():
            contestant.answer()  # it is ready
        values = in_turns({row: partial(one.turn, what) for row, (one, what) in turns.items()}, repeats)
    notes = {
        CEILING: "the same step, no images to prepare",
        TIMM: "its loop rebuilt; 2 workers, channels last",
        TRANSFORMERS: "its loop rebuilt",
    }
    comparison = f"Training step, ReXNet-150, 128 px, batch 32, {name}"
    return rows(comparison, values, "images/s", CEILING, more_is_better=True, notes=notes)


def measure(data: Path, repeats: int) -> list[Row]:
    """Images/s in both precisions, each against the ceiling; bfloat16 only where the CPU computes in it."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        images = sample(data, place / "images")
        for name, precision in PRECISIONS.items():
            if precision == "bf16" and not torch.cpu.get_capabilities().get("avx512_bf16"):
                print("bench: no rows for bfloat16, which this CPU does not compute in", file=sys.stderr)
                continue
            found += compare(name, precision, images, place, repeats)
    return found
