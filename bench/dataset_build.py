"""Dataset build: images/s and the largest memory of `dataset_script build`, against `datasets`' ImageFolder and `push_to_hub`.

The folder is built as it is, and again with every image many times over, each time turned, mirrored or magnified, so that all
are different pictures. Memory is that of all processes together (proportional set size, sampled).
`python -m bench.dataset_build RAW_FOLDER [--times 1 10]` prints our seconds and memory at other sizes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import psutil
from PIL import Image, ImageOps

from bench.side_by_side import Row, in_turns, rows
from local_hub import LocalHub

TURNS = 4
ZOOMS = (1.0, 1.2, 1.4, 1.6)
TURNS_MEASURED = 3  # at most: one takes a quarter of a minute
TIMES = 10  # how many of each image the larger folder has
BUILD = "dataset_script build"
BUILD_AND_PUSH = "dataset_script build, then push"
IMAGE_FOLDER = "datasets: ImageFolder, then push_to_hub"
PUSH = """
import sys
from datasets import load_dataset
load_dataset("imagefolder", data_dir=sys.argv[1]).push_to_hub("localdev/cells")
"""


def variant(image: Image.Image, number: int) -> Image.Image:
    """Return the image turned, mirrored and magnified in one of 32 ways; number 0 is the image itself."""
    turned = image.rotate(90 * (number % TURNS))
    mirrored = ImageOps.mirror(turned) if number // TURNS % 2 else turned
    zoom = ZOOMS[number // (2 * TURNS)]
    width, height = image.size
    box = [round(side * (1 - 1 / zoom) / 2) for side in (width, height)]
    return mirrored.resize(image.size, box=(box[0], box[1], width - box[0], height - box[1]))


def multiply(path: Path, raw: Path, out: Path, times: int) -> None:
    """Write `times` variants of one file."""
    with Image.open(path) as image:
        image = image.convert("RGB")
    folder = out / path.relative_to(raw).parent
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(times):
        variant(image, number).save(folder / f"{path.stem}_{number}.jpg", quality=92)


def proportional_megabytes(process: psutil.Process) -> float:
    """Return the memory of a process and all below it, shared pages counted once."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 2**20


def measured(command: list[str], environment: dict[str, str] | None = None) -> tuple[float, float]:
    """Run a command; return its seconds and the largest memory of its processes in MB (2**20 bytes)."""
    started, peak = time.perf_counter(), 0.0
    whole = os.environ | (environment or {})
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=whole) as running:
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            process = psutil.Process(running.pid)
            while not done.wait(0.2) and running.poll() is None:
                peak = max(peak, proportional_megabytes(process))

        watcher = threading.Thread(target=watch)
        watcher.start()
        status = running.wait()
        done.set()
        watcher.join()
    if status:
        raise SystemExit(f"error: {' '.join(command)} ended with {status}")
    return time.perf_counter() - started, peak


def images_of(raw: Path) -> list[Path]:
    """The images of a raw folder."""
    return sorted(raw.glob("*/**/*.jpg"))


def grown(raw: Path, out: Path, times: int) -> Path:
    """A folder with `times` variants of each image; the raw folder itself for one."""
    if times == 1:
        return raw
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(multiply, raw=raw, out=out, times=times), images_of(raw), chunksize=64))
    return out


def build_command(raw: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "dataset_script", "build", str(raw), str(out)]


def measure(data: Path, repeats: int) -> list[Row]:
    """Images/s and peak memory as the images are, and our own with `TIMES` as many."""
    count, memory = len(images_of(data)), {name: [] for name in (BUILD, BUILD_AND_PUSH, IMAGE_FOLDER)}

    def speed(name: str) -> float:
        with tempfile.TemporaryDirectory() as place, LocalHub(Path(place) / "hub") as hub:
            out = Path(place) / "out"
            push = [sys.executable, "-m", "dataset_script", "push", str(out), "localdev/cells"]
            command = {
                BUILD: build_command(data, out),
                BUILD_AND_PUSH: ["sh", "-c", f"{shlex.join(build_command(data, out))} && {shlex.join(push)}"],
                IMAGE_FOLDER: [sys.executable, "-c", PUSH, str(data)],
            }[name]
            seconds, peak = measured(command, hub.environment)
        memory[name].append(peak)
        return count / seconds

    turns = {name: partial(speed, name) for name in memory}
    values = in_turns(turns, min(repeats, TURNS_MEASURED))
    notes = {
        BUILD: "every image decoded, copies and overlaps found",
        IMAGE_FOLDER: "decodes nothing, finds no copies, makes no splits; to the local Hub",
    }
    table = rows(f"Dataset of {count:,} crops", values, "images/s", IMAGE_FOLDER, True, notes)
    table += rows(f"Dataset of {count:,} crops, peak memory", memory, "MB", IMAGE_FOLDER, False)
    with tempfile.TemporaryDirectory() as place:
        raw = grown(data, Path(place) / "raw", TIMES)
        seconds, peak = measured(build_command(raw, Path(place) / "out"))
    small, large = f"{count:,} crops", f"{TIMES * count:,} crops"
    sizes = {small: values[BUILD][-1:], large: [TIMES * count / seconds]}
    table += rows(f"{BUILD}, {TIMES} times as many", sizes, "images/s", small, True)
    peaks = {small: memory[BUILD][-1:], large: [peak]}
    return table + rows(f"{BUILD}, {TIMES} times as many, peak memory", peaks, "MB", small, False)


def main() -> None:
    """Print one row a size."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.dataset_build", description=__doc__.splitlines()[0]
    )
    parser.add_argument("raw", type=Path, metavar="RAW_FOLDER", help="one folder a class")
    parser.add_argument(
        "--times", type=int, nargs="+", default=[1, 10], help="how many of each image (at most 32)"
    )
    arguments = parser.parse_args()
    limit = 2 * TURNS * len(ZOOMS)
    if not all(1 <= times <= limit for times in arguments.times):
        parser.error(f"--times goes from 1 to {limit}")
    files = images_of(arguments.raw)
    if not files:
        parser.error(f"{arguments.raw} has no .jpg in folders of classes")
    print(f"{'images':>8} {'seconds':>8} {'images/s':>9} {'peak MB':>8}   on {os.cpu_count()} cores")
    for times in arguments.times:
        with tempfile.TemporaryDirectory() as place:
            raw = grown(arguments.raw, Path(place) / "raw", times)
            seconds, peak = measured(build_command(raw, Path(place) / "out"))
        images = times * len(files)
        print(f"{images:8,} {seconds:8.1f} {images / seconds:9.0f} {peak:8.0f}", flush=True)


if __name__ == "__main__":
    main()
