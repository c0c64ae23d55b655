"""Dataset build: images/s and peak memory of `dataset_script build`, against `datasets`' ImageFolder and `push_to_hub`.

`python -m bench.dataset_build [--images 3500 35000] [--stream]` shows how both grow with the number of images, all of them
different (synthetic cells), and, with `--stream`, those of an epoch of the trainer over the streamed dataset.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import psutil

from bench.compare import ROOT, Row, interleave, rows, run
from dataset_script.arguments import whole_number
from dataset_script.synthetic_cells import LOOKS, draw_cell, jpeg_bytes
from local_hub import LocalHub

MOST_TURNS = 3  # one takes a quarter of a minute
GROWTH = (3_500, 35_000)
BUILD, IMAGE_FOLDER = "dataset_script build", "datasets: ImageFolder, then push_to_hub"
PUSH = """
import sys
from datasets import load_dataset
load_dataset("imagefolder", data_dir=sys.argv[1]).push_to_hub("localdev/cells")
"""
PYTHON = [sys.executable, "-m"]


def watch(command: list[object], environment: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Run a command; return its seconds and the peak memory of its processes together in MB (2**20 bytes).

    Memory is the proportional set size, sampled: shared pages count once.
    """
    started, peak = time.perf_counter(), 0.0

    def sample_memory(pid: int) -> None:
        nonlocal peak
        total = 0
        with contextlib.suppress(psutil.Error):
            for process in (parent := psutil.Process(pid), *parent.children(recursive=True)):
                total += process.memory_full_info().pss
        peak = max(peak, total / 2**20)
        time.sleep(0.2)

    run(command, environment, sample_memory)
    return time.perf_counter() - started, peak


def draw_one(number: int, raw: Path) -> None:
    label = list(LOOKS)[number % len(LOOKS)]
    (raw / label / f"{number:07d}.jpg").write_bytes(jpeg_bytes(draw_cell(label, number)))


def grow(raw: Path, images: int) -> None:
    """Draw cells into the class folders of `raw` until there are `images` of them, no two alike."""
    for label in LOOKS:
        (raw / label).mkdir(parents=True, exist_ok=True)
    there = sum(1 for _ in raw.glob("*/*.jpg"))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(partial(draw_one, raw=raw), range(there, images), chunksize=64))


def build(raw: Path, out: Path) -> tuple[float, float]:
    return watch([*PYTHON, "dataset_script", "build", raw, out, "--overwrite"])


def stream(dataset: Path, out: Path) -> tuple[float, float]:
    """One epoch of the trainer over the streamed dataset, with the smallest network: reading and decoding are the load."""
    command = [
        sys.executable,
        ROOT / "train_accelerate.py",
        "--dataset",
        dataset,
        "--output_dir",
        out,
        "--overwrite",
    ]
    command += [
        "--data",
        "stream",
        "--model",
        "test_byobnet",
        "--no-pretrained",
        "--image_size",
        160,
        "--epochs",
        1,
    ]
    return watch(command)


def measure(data: Path, repeats: int) -> list[Row]:
    """Images/s and peak memory on the real images, and our own on growing numbers of synthetic ones."""
    count, memory = sum(1 for _ in data.glob("*/*.jpg")), {BUILD: [], IMAGE_FOLDER: []}

    def speed(name: str) -> float:
        with tempfile.TemporaryDirectory() as folder, LocalHub(Path(folder) / "hub") as hub:
            pushed = [sys.executable, "-c", PUSH, data]
            seconds, peak = (
                build(data, Path(folder) / "out") if name == BUILD else watch(pushed, hub.environment)
            )
        memory[name].append(peak)
        return count / seconds

    values = interleave({name: partial(speed, name) for name in memory}, min(repeats, MOST_TURNS))
    notes = {
        BUILD: "every image decoded, copies and overlaps found",
        IMAGE_FOLDER: "decodes nothing, finds no copies, makes no splits; to the local Hub",
    }
    table = rows(f"Dataset of {count:,} crops", values, "images/s", IMAGE_FOLDER, notes)
    table += rows(f"Dataset of {count:,} crops, peak memory", memory, "MB", IMAGE_FOLDER)
    speeds, peaks, smallest = {}, {}, f"{GROWTH[0]:,} synthetic cells"
    with tempfile.TemporaryDirectory() as folder:
        for images in GROWTH:
            grow(Path(folder) / "raw", images)
            seconds, peak = build(Path(folder) / "raw", Path(folder) / "out")
            speeds[f"{images:,} synthetic cells"], peaks[f"{images:,} synthetic cells"] = (
                [images / seconds],
                [peak],
            )
    table += rows(f"{BUILD}, growing", speeds, "images/s", smallest)
    return table + rows(f"{BUILD}, growing, peak memory", peaks, "MB", smallest)


def main(argv: list[str] | None = None) -> int:
    """Print a row for each size."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.dataset_build", description=__doc__.splitlines()[0]
    )
    sizes = "numbers of images, growing (default: %(default)s)"
    parser.add_argument("--images", type=whole_number(70), nargs="+", default=GROWTH, help=sizes)
    parser.add_argument("--stream", action="store_true", help="measure a streamed epoch, too")
    parser.add_argument(
        "--folder", type=Path, help="where the images go, 30 KB each (default: a temporary folder)"
    )
    arguments = parser.parse_args(argv)
    print(
        f"{'images':>8}  {'stage':<8} {'seconds':>8} {'images/s':>9} {'peak MB':>8}   on {os.cpu_count()} cores"
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        raw, dataset, trained = (Path(folder) / name for name in ("raw", "dataset", "run"))
        for images in sorted(arguments.images):
            grow(raw, images)
            measured = {"build": build(raw, dataset)}
            if arguments.stream:
                measured["stream"] = stream(dataset, trained)
            for stage, (seconds, peak) in measured.items():
                print(
                    f"{images:8,}  {stage:<8} {seconds:8.1f} {images / seconds:9.0f} {peak:8.0f}", flush=True
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
