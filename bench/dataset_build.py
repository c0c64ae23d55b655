"""How fast and in how much memory a data set is built: `python -m bench.dataset_build RAW_FOLDER [--times 1 10]`.

The folder is built as it is, and again with every image many times over, each time turned, mirrored or magnified, so that all
are different pictures. Prints, for each size, seconds, images per second and the largest memory of all its processes together
(proportional set size, sampled).
"""

from __future__ import annotations

import argparse
import os
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

TURNS = 4
ZOOMS = (1.0, 1.2, 1.4, 1.6)


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


def measured(command: list[str]) -> tuple[float, float]:
    """Run a command; return its seconds and the largest memory of its processes in MB (2**20 bytes)."""
    started, peak = time.perf_counter(), 0.0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
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
    files = sorted(path for path in arguments.raw.glob("*/**/*.jpg"))
    if not files:
        parser.error(f"{arguments.raw} has no .jpg in folders of classes")
    print(f"{'images':>8} {'seconds':>8} {'images/s':>9} {'peak MB':>8}   on {os.cpu_count()} cores")
    for times in arguments.times:
        with tempfile.TemporaryDirectory() as place:
            raw = arguments.raw
            if times > 1:
                raw = Path(place) / "raw"
                with ProcessPoolExecutor() as pool:
                    list(
                        pool.map(
                            partial(multiply, raw=arguments.raw, out=raw, times=times), files, chunksize=64
                        )
                    )
            command = [sys.executable, "-m", "dataset_script", "build", str(raw), str(Path(place) / "out")]
            seconds, peak = measured(command)
        images = times * len(files)
        print(f"{images:8,} {seconds:8.1f} {images / seconds:9.0f} {peak:8.0f}", flush=True)


if __name__ == "__main__":
    main()
