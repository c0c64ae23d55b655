"""Dataset build: images/s and peak memory of `dataset_script build`, against `datasets`' ImageFolder and `push_to_hub`.

Scaling with the number of images is measured on distinct random textures.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from bench.compare import Row, interleave, rows, run
from local_hub import LocalHub

MAX_REPEATS = 2  # one takes 15 seconds
BUILD, IMAGE_FOLDER = "dataset_script build", "datasets: ImageFolder, then push_to_hub"
CLASSES, SIDE, BICUBIC = "ABCDEFG", 250, Image.Resampling.BICUBIC
PUSH = """
import sys
from datasets import load_dataset
load_dataset("imagefolder", data_dir=sys.argv[1]).push_to_hub("localdev/cells")
"""


def watch(command: list[object], environment: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Run a command; return its seconds and the peak memory of all its processes together in MB (2**20 bytes).

    Memory is the proportional set size, sampled every 0.2 s: shared pages count once.
    """
    bench, peak = psutil.Process(), 0.0
    others = set(bench.children(recursive=True))
    started = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(run, command, environment)
        while not wait([job], timeout=0.2).done:
            total = 0
            for process in set(bench.children(recursive=True)) - others:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
            peak = max(peak, total / 2**20)
    job.result()
    return time.perf_counter() - started, peak


def draw_one(number: int, raw: Path) -> None:
    """Write a crop-sized JPEG of random texture, as detailed as a cell; drawing a cell would take ten times as long."""
    rng = np.random.default_rng(number)
    coarse, fine = (
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize((SIDE, SIDE), BICUBIC)
        for side in (SIDE // 8, SIDE // 2)
    )
    path = raw / CLASSES[number % len(CLASSES)] / f"{number:07d}.jpg"
    Image.blend(coarse, fine, 0.25).save(path, quality=90)


def grow(raw: Path, images: int) -> None:
    """Add distinct images to the class folders of `raw` until there are `images`."""
    for label in CLASSES:
        (raw / label).mkdir(parents=True, exist_ok=True)
    existing = sum(1 for _ in raw.glob("*/*.jpg"))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(partial(draw_one, raw=raw), range(existing, images), chunksize=64))


def build(raw: Path, out: Path) -> tuple[float, float]:
    return watch([sys.executable, "-m", "dataset_script", "build", raw, out, "--overwrite"])


def measure(options: argparse.Namespace) -> list[Row]:
    """Images/s and peak memory on the real images, and of ours on `--images` random ones and a tenth of them."""
    count, memory = sum(1 for _ in options.data.glob("*/*.jpg")), {BUILD: [], IMAGE_FOLDER: []}

    def speed(name: str) -> float:
        with tempfile.TemporaryDirectory() as folder, LocalHub(Path(folder) / "hub") as hub:
            if name == BUILD:
                seconds, peak = build(options.data, Path(folder) / "out")
            else:
                seconds, peak = watch([sys.executable, "-c", PUSH, options.data], hub.environment)
        memory[name].append(peak)
        return count / seconds

    values = interleave({name: partial(speed, name) for name in memory}, min(options.repeats, MAX_REPEATS))
    notes = {
        BUILD: "every image decoded, copies and overlaps found",
        IMAGE_FOLDER: "decodes nothing, finds no copies, makes no splits; to the local Hub",
    }
    table = rows(f"Dataset build: {count:,} crops", values, "images/s", IMAGE_FOLDER, notes)
    table += rows(f"Dataset build: {count:,} crops, peak memory", memory, "MB", IMAGE_FOLDER)
    speeds, peaks = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for images in (options.images // 10, options.images):
            grow(Path(folder) / "raw", images)
            seconds, peak = build(Path(folder) / "raw", Path(folder) / "out")
            title = f"Dataset build: {images:,} random textures"
            speeds[title], peaks[f"{title}, peak memory"] = [images / seconds], [peak]
    for values, unit in ((speeds, "images/s"), (peaks, "MB")):
        grown = rows("", values, unit, reference=next(iter(values)))  # ratios to the smaller number of images
        table += [replace(row, comparison=row.name, name=BUILD) for row in grown]
    return table
