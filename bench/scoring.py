"""Bulk scoring: `hub_model.score` in one and in two processes against the loop over files that one would write with timm."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from bench.side_by_side import Row, in_turns, rows
from hub_model.score import BATCH_SIZE
from hub_model.score import main as score

MODEL = Path(__file__).resolve().parents[1] / "hub_model" / "release"
PER_CLASS = 64
FULL_SET = 171_373  # crops of the set that Matek et al. published
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def sample(data: Path, folder: Path) -> Path:
    """A folder of links to the first `PER_CLASS` images of each class."""
    for place in sorted(path for path in data.iterdir() if path.is_dir()):
        for path in sorted(place.glob("*.jpg"))[:PER_CLASS]:
            (folder / place.name).mkdir(parents=True, exist_ok=True)
            (folder / place.name / path.name).symlink_to(path.resolve())
    return folder


def speed_of(said: str) -> float:
    """The images/s of the line that `hub_model.score` ends with: from the first image to the last, without start and merge."""
    return float(re.search(r"([\d,.]+) images/s", said)[1].replace(",", ""))


def loop_with_timm(images: Path) -> float:
    """Images/s of a plain loop: timm in eager mode, all cores to one batch, one picture decoded after the other."""
    model = timm.create_model(f"local-dir:{MODEL}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(model=model))
    paths = sorted(images.rglob("*.jpg"))
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    started = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(paths), BATCH_SIZE):
            batch = [transform(Image.open(path).convert("RGB")) for path in paths[first : first + BATCH_SIZE]]
            model(torch.stack(batch)).softmax(dim=1)
    return len(paths) / (time.perf_counter() - started)


def measure(data: Path, repeats: int) -> list[Row]:
    """Images/s of the three, and what the whole published set would take at that speed (computed)."""
    with tempfile.TemporaryDirectory() as place:
        images = sample(data, Path(place) / "images")
        arguments = [str(images), "--model", str(MODEL), "--out", f"{place}/out.parquet", "--overwrite"]

        def one_process() -> float:
            with contextlib.redirect_stdout(io.StringIO()) as said:
                if score(arguments):
                    raise RuntimeError("scoring failed")
            return speed_of(said.getvalue())

        def two_processes() -> float:
            command = [sys.executable, *LAUNCH, "-m", "hub_model.score", *arguments]
            return speed_of(subprocess.run(command, check=True, text=True, capture_output=True).stdout)

        contestants = {
            "plain loop, timm eager": lambda: loop_with_timm(images),
            "hub_model.score, 1 process": one_process,
            "hub_model.score, 2 processes": two_processes,
        }
        values = in_turns(contestants, min(repeats, 4))
        count = sum(1 for _ in images.rglob("*.jpg"))
    comparison = f"Bulk scoring of {count} crops from files"
    table = rows(comparison, values, "images/s", "plain loop, timm eager", more_is_better=True)
    hours = {name: [FULL_SET / speed / 3600 for speed in speeds] for name, speeds in values.items()}
    comparison = f"All {FULL_SET:,} crops at that speed"
    notes = dict.fromkeys(hours, "computed from the speed above, not measured")
    return table + rows(comparison, hours, "h", "plain loop, timm eager", more_is_better=False, notes=notes)
