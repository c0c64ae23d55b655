"""Bulk scoring with one and two processes against a plain timm loop over the files."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench.baselines import TimmModel
from bench.compare import RELEASE, Row, interleave, rows, run, sample

PER_CLASS, BATCH_SIZE, MAX_REPEATS = 64, 32, 4
LOOP, ONE, TWO = "loop with timm, eager", "hub_model score, 1 process", "hub_model score, 2 processes"
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def speed_of(output: str) -> float:
    """The images/s that scoring reports: from the first image to the last, without start-up and merging."""
    return float(re.search(r"([\d,.]+) images/s", output)[1].replace(",", ""))


def loop_with_timm(images: Path) -> float:
    """Images/s of a plain loop: timm in eager mode, all cores on one batch, images decoded one after the other."""
    reference, paths = TimmModel(RELEASE), sorted(images.rglob("*.jpg"))
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    started = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(paths), BATCH_SIZE):
            batch = [path.read_bytes() for path in paths[first : first + BATCH_SIZE]]
            reference.model(torch.from_numpy(reference.pixels(batch))).softmax(dim=1)
    return len(paths) / (time.perf_counter() - started)


def measure(options: argparse.Namespace) -> list[Row]:
    """Images/s of the timm loop and of ours with one and two processes."""
    with tempfile.TemporaryDirectory() as folder:
        images = sample(options.data, Path(folder) / "images", PER_CLASS)
        score = ["-m", "hub_model", "score", images, "--follow_links", "--model", RELEASE]
        score += ["--out", f"{folder}/out.parquet", "--overwrite"]
        measures = {
            LOOP: lambda: loop_with_timm(images),
            ONE: lambda: speed_of(run([sys.executable, *score])),
            TWO: lambda: speed_of(run([sys.executable, *LAUNCH, *score])),
        }
        values = interleave(measures, min(options.repeats, MAX_REPEATS))
        count = sum(1 for _ in images.rglob("*.jpg"))
    return rows(f"Bulk scoring of {count} crops from files", values, "images/s", LOOP)
