"""Measure the Space with the released model: `python -m tests.stress.space_load`. Takes twelve minutes.

Prints the seconds from start to ready; the median and 95th percentile latency of `/predict` with 30 clients, and the memory
meanwhile; the seconds to find, crop and classify the cells of whole fields.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from PIL import Image

from dataset_script.synthetic_cells import LOOKS, draw_field
from hub_model.inference.classifier import Classifier
from space.batching import Batcher
from space.desk import open_field
from space.fields import TYPICAL_DIAMETER, background_of, cut, evenly, find_cells
from tests.space.running import of_repos, running
from tests.stress.visitors import errors, latency_line, memory_line, under_load

RELEASE = Path(__file__).resolve().parents[2] / "hub_model" / "release"
FIELDS = {"4000×3000": (3000, 4000, 109), "5940×3960": (3960, 5940, 400), "8192×8192": (8192, 8192, 1500)}


def main() -> None:
    description = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m tests.stress.space_load", description=description)
    option = parser.add_argument
    option("--model", type=Path, default=RELEASE, help="model repo folder (default: the release)")
    option("--dataset", type=Path, help="dataset repo folder (default: synthetic cells)")
    option("--clients", type=int, default=30, help="default: %(default)s")
    option("--seconds", type=float, default=600, help="duration of the load (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="space-load-") as folder:
        time_fields(options.model, Path(folder))
        time_visitors(options, Path(folder))


def time_visitors(options: argparse.Namespace, folder: Path) -> None:
    from tests.space.small_dataset_repo import build

    dataset = options.dataset or build(folder / "dataset", {"train": 12, "validation": 2, "test": 8})
    with running(of_repos(options.model, dataset, folder / "space")) as space:
        print(f"start to ready: {space.seconds_to_ready:.1f} s", flush=True)
        replies, samples = under_load(space, options.clients, options.seconds, mixed=False)
    print(latency_line(f"/predict, {options.clients} clients", replies, options.seconds))
    print(f"  {memory_line(samples)} in {options.seconds:.0f} s")
    for text, number in errors(replies).items():
        print(f"  error: {number} × {text}")


def time_fields(model: Path, folder: Path) -> None:
    """Print the seconds of each step of the field tab on a JPEG."""
    batcher = Batcher(Classifier.from_pretrained(model))
    for name, (height, width, cells) in FIELDS.items():
        path = folder / f"{width}.jpg"
        draw_slide(height, width, cells).save(path, quality=90)
        times = [time.monotonic()]
        picture = open_field(str(path))
        times.append(time.monotonic())
        cells_found = find_cells(picture, TYPICAL_DIAMETER)
        times.append(time.monotonic())
        background = background_of(picture)
        crops = [cut(picture, box, background) for box in evenly(cells_found)]
        times.append(time.monotonic())
        batcher.predict(crops)
        times.append(time.monotonic())
        decoded, found, cropped, classified = (b - a for a, b in pairwise(times))
        print(
            f"field of {name}: {len(cells_found)} cells found, {len(crops)} boxes; decoded {decoded:.2f} s, found {found:.2f} s, "
            f"cropped {cropped:.2f} s, classified {classified:.2f} s; without classes {times[3] - times[0]:.2f} s",
            flush=True,
        )


def draw_slide(height: int, width: int, cells: int) -> Image.Image:
    """An image with `cells` cells in rows: a synthetic field, repeated."""
    labels = [label for label in LOOKS if label != "NIF"]
    spots = [(130 + 210 * row, 130 + 210 * column) for row in range(5) for column in range(5)]
    patch = draw_field(1050, 1050, [(labels[i % 6], *spot) for i, spot in enumerate(spots)], seed=3)
    slide = Image.new("RGB", (width, height), background_of(patch))
    remaining = cells
    for top in range(0, height - 210, 210):
        for column in range(0, width - 210, 210):
            if remaining > 0:
                box = (column % 1050, top % 1050, column % 1050 + 210, top % 1050 + 210)
                slide.paste(patch.crop(box), (column, top))
                remaining -= 1
    return slide


if __name__ == "__main__":
    main()
