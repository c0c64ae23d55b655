"""The Space in figures, with the released model: `python -m tests.stress.space_load`. Takes twelve minutes.

In: a model repo folder (and a dataset repo folder; drawn cells without one). Out: seconds from start to ready; median and 95th
percentile of `/predict` with 30 clients, and memory meanwhile; seconds for whole fields, found, cut out and classified.
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
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress.space_load", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--model", type=Path, default=RELEASE, help="model repo folder (default: the release)"
    )
    parser.add_argument("--dataset", type=Path, help="dataset repo folder (default: drawn cells)")
    parser.add_argument("--clients", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=600, help="of load (default: %(default)s)")
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
    """Print wall-clock seconds of what the field tab does with a JPEG."""
    batcher = Batcher(Classifier.from_pretrained(model))
    for name, (height, width, cells) in FIELDS.items():
        path = folder / f"{width}.jpg"
        draw_slide(height, width, cells).save(path, quality=90)
        at = [time.monotonic()]
        picture = open_field(str(path))
        at.append(time.monotonic())
        found = find_cells(picture, TYPICAL_DIAMETER)
        at.append(time.monotonic())
        background = background_of(picture)
        crops = [cut(picture, box, background) for box in evenly(found)]
        at.append(time.monotonic())
        batcher.predict(crops)
        at.append(time.monotonic())
        decoded, searched, cut_out, classified = (b - a for a, b in pairwise(at))
        print(
            f"field of {name}: {len(found)} cells found, {len(crops)} boxes; decoded {decoded:.2f} s, found {searched:.2f} s, "
            f"cut out {cut_out:.2f} s, classified {classified:.2f} s; without classes {at[3] - at[0]:.2f} s",
            flush=True,
        )


def draw_slide(height: int, width: int, cells: int) -> Image.Image:
    """A picture with so many cells in rows: a drawn field, repeated."""
    labels = [label for label in LOOKS if label != "NIF"]
    spots = [(130 + 210 * row, 130 + 210 * column) for row in range(5) for column in range(5)]
    patch = draw_field(1050, 1050, [(labels[i % 6], *spot) for i, spot in enumerate(spots)], seed=3)
    slide = Image.new("RGB", (width, height), background_of(patch))
    left = cells
    for top in range(0, height - 210, 210):
        for column in range(0, width - 210, 210):
            if left > 0:
                part = (column % 1050, top % 1050, column % 1050 + 210, top % 1050 + 210)
                slide.paste(patch.crop(part), (column, top))
                left -= 1
    return slide


if __name__ == "__main__":
    main()
