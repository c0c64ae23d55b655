"""Does memory stay flat? `python -m bench.scale RAW [--images 171373] [--steps 3]`: build and streaming at growing sizes.

Every crop of RAW is repeated under other angles, magnifications and shifts until there are as many different pictures as asked
for, up to the 171,373 of the whole published set. For each size (a 49th, a 7th and all of the images, say) a row is printed for
`dataset_script build` and one for an epoch of the trainer's streamed training split: seconds, images/s, and the largest memory
of all processes together (proportional set size, sampled). `--keep FOLDER` leaves the largest dataset there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import psutil
from PIL import Image

from bench.dataset_build import proportional_megabytes
from dataset_script.arguments import whole_number

GOLDEN = 137.50776405003785  # degrees: multiples of it never come close to each other
READ = "from pathlib import Path; from bench.scale import read_stream; read_stream({!r}, Path({!r}))"


def different(image: Image.Image, number: int) -> Image.Image:
    """The crop turned, magnified and shifted in a way of its own for each number; number 0 is the crop itself."""
    if number == 0:
        return image
    angle, zoom = math.radians(GOLDEN * number), 1.5 + 0.02 * (number % 17)
    cosine, sine = math.cos(angle) / zoom, math.sin(angle) / zoom
    across, down = image.width / 2, image.height / 2
    left, top = across + number % 7 - 3, down + number % 5 - 2
    matrix = (
        cosine,
        sine,
        left - cosine * across - sine * down,
        -sine,
        cosine,
        top + sine * across - cosine * down,
    )
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def write_versions(path: Path, numbers: range, raw: Path, out: Path) -> None:
    """Write these versions of one file below `out`."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    folder = out / path.relative_to(raw).parent
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        different(image, number).save(folder / f"{path.stem}_{number}.jpg", quality=90)


def grow(files: list[Path], raw: Path, out: Path, start: int, images: int) -> None:
    """Add to the `start` images that lie below `out` until there are `images` of them."""
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        wanted = []
        for place, path in enumerate(files):
            first, last = (-(-(count - place) // len(files)) for count in (start, images))
            wanted.append((path, range(max(first, 0), max(last, 0))))
        paths, numbers = zip(*wanted, strict=True)
        list(pool.map(partial(write_versions, raw=raw, out=out), paths, numbers, chunksize=16))


def read_stream(dataset: str, report: Path) -> None:
    """Go through one epoch of a dataset's streamed training split as the trainer does; write images and seconds as JSON."""
    from training.data import StreamSplit, geometry
    from training.options import parse_options
    from training.source import open_source

    options = parse_options(["--dataset", dataset, "--output_dir", "unused", "--data", "stream"])
    source = open_source(options, streaming=True)
    config = {
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    split = StreamSplit(
        source=source, name=options.train_split, batch_size=options.batch_size, process=0, processes=1,
        transform=geometry(config, 160), seed=0, workers=options.workers, buffer=options.shuffle_buffer,
    )  # fmt: skip
    started = time.perf_counter()
    images = sum(len(batch.labels) for batch in split.training(epoch=0))
    report.write_text(json.dumps({"images": images, "seconds": time.perf_counter() - started}))


def watched(command: list[str]) -> tuple[float, float, float]:
    """Run a command; return its seconds, and of all its processes together the processor seconds and the largest memory in MB.

    Both are sampled: parents do not wait for all of their children, so the system's own sums would lack some.
    """
    started, spent, peak = time.perf_counter(), {}, 0.0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        process = psutil.Process(running.pid)
        while running.poll() is None:
            peak = max(peak, proportional_megabytes(process))
            with contextlib.suppress(psutil.Error):
                for one in [process, *process.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error):
                        spent[one.pid] = sum(one.cpu_times()[:2])
            time.sleep(0.2)
    if running.returncode:
        raise SystemExit(f"error: {' '.join(command)} ended with {running.returncode}")
    return time.perf_counter() - started, sum(spent.values()), peak


def main() -> None:
    """Print two rows a size."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__.splitlines()[0])
    parser.add_argument("raw", type=Path, metavar="RAW", help="real crops, one folder a class")
    parser.add_argument("--images", type=whole_number(1), default=171_373, help="of the largest size")
    parser.add_argument(
        "--steps", type=whole_number(1), default=3, help="sizes; each is a seventh of the next"
    )
    parser.add_argument("--place", type=Path, help="folder for the images (30 KB each are needed)")
    parser.add_argument("--keep", type=Path, help="leave the largest dataset in this folder")
    arguments = parser.parse_args()
    files = sorted(arguments.raw.glob("*/**/*.jpg"))
    if not files:
        parser.error(f"{arguments.raw} has no .jpg in folders of classes")
    sizes = [round(arguments.images / 7**step) for step in reversed(range(arguments.steps))]
    print(
        f"{'images':>8}  {'stage':<15} {'seconds':>8} {'CPU s':>8} {'images/s':>9} {'peak MB':>8}   on {os.cpu_count()} cores"
    )

    def row(images: int, stage: str, seconds: float, spent: float, peak: float) -> None:
        print(
            f"{images:8,}  {stage:<15} {seconds:8.1f} {spent:8.1f} {images / seconds:9.0f} {peak:8.0f}",
            flush=True,
        )

    with tempfile.TemporaryDirectory(dir=arguments.place) as place:
        raw, built, report = Path(place) / "raw", Path(place) / "dataset", Path(place) / "report.json"
        for before, images in zip([0, *sizes], sizes, strict=False):
            grow(files, arguments.raw, raw, before, images)
            build = [sys.executable, "-m", "dataset_script", "build", str(raw), str(built), "--overwrite"]
            seconds, spent, peak = watched(build)
            row(images, "build", seconds, spent, peak)
            _, spent, peak = watched([sys.executable, "-c", READ.format(str(built), str(report))])
            read = json.loads(report.read_text())
            row(read["images"], "streamed epoch", read["seconds"], spent, peak)
        if arguments.keep:
            shutil.move(built, arguments.keep)


if __name__ == "__main__":
    main()
