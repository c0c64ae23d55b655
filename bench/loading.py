"""Loading: how long the first batch of a published dataset takes, and how fast an epoch of decoded images is handed out."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import datasets
import torch
from torchvision.transforms.functional import pil_to_tensor

from bench.side_by_side import Row, in_turns, rows
from bench.training import sample
from local_hub import LocalHub
from training.data import MemorySplit, StreamSplit, geometry
from training.options import parse_options
from training.source import open_source

REPO, BATCH, KEPT = "localdev/cells", 32, 160
PROCESSES = 3  # turns of what needs a process each, at most
CONFIG = {
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
}
FIRST_BATCH = """
import sys, time
import numpy, torch, PIL.Image  # which streaming and decoding would import
from datasets import load_dataset
started = time.perf_counter()
rows = iter(load_dataset(sys.argv[1], split="train", streaming=sys.argv[2] == "stream"))
batch = [numpy.asarray(next(rows)["image"]) for _ in range(int(sys.argv[3]))]
print(time.perf_counter() - started)
"""


def first_batch(hub: LocalHub, cache: Path, way: str) -> float:
    """Seconds from `load_dataset` to `BATCH` decoded images, in a process of its own; imports are not counted."""
    command = [sys.executable, "-c", FIRST_BATCH, REPO, way, str(BATCH)]
    environment = os.environ | hub.environment | {"HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    said = subprocess.run(command, env=environment, check=True, text=True, stdout=subprocess.PIPE).stdout
    return float(said.split()[-1])


def first_batches(hub: LocalHub, repeats: int) -> list[Row]:
    """Seconds to the first batch with an empty cache, with a full one, and streamed."""
    with tempfile.TemporaryDirectory() as full:

        def cold(way: str) -> float:
            with tempfile.TemporaryDirectory() as empty:
                return first_batch(hub, Path(empty), way)

        first_batch(hub, Path(full), "load")  # fills the cache
        turns = {
            "load_dataset, empty cache": lambda: cold("load"),
            "load_dataset, from the cache": lambda: first_batch(hub, Path(full), "load"),
            "load_dataset(streaming=True), empty cache": lambda: cold("stream"),
        }
        values = in_turns(turns, min(repeats, PROCESSES))
    comparison = f"From load_dataset to the first {BATCH} images, dataset on the local Hub"
    return rows(comparison, values, "s", "load_dataset, empty cache", more_is_better=False)


def epochs(dataset: Path, repeats: int) -> list[Row]:
    """Images/s of an epoch handed out in batches: ours from memory and streamed, and PyTorch's loader over `datasets`."""
    transform = geometry(CONFIG, KEPT)
    options = parse_options(["--dataset", str(dataset), "--output_dir", "unused"])

    def split(kind: type, streaming: bool, **more):
        source = open_source(options, streaming)
        return kind(
            source=source, name="train", batch_size=BATCH, process=0, processes=1, transform=transform, seed=0, **more
        )  # fmt: skip

    memory = split(MemorySplit, streaming=False)
    stream = split(StreamSplit, streaming=True, workers=2, buffer=len(memory))

    def prepare(examples: dict) -> dict:
        images = [pil_to_tensor(transform(image.convert("RGB"))) for image in examples["image"]]
        return {"images": images, "labels": examples["label"]}

    table = datasets.load_dataset(str(dataset), split="train").with_transform(prepare)

    def loader(workers: int) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(table, BATCH, shuffle=True, num_workers=workers)

    def speed(epoch: Callable[[], object]) -> Callable[[], float]:
        def turn() -> float:
            started = time.perf_counter()
            for _ in epoch():
                pass
            return len(memory) / (time.perf_counter() - started)

        return turn

    alone = "datasets and DataLoader, no workers"
    turns = {
        "training/: decoded once into memory": speed(lambda: memory.training(0)),
        "training/: the decoding itself, once": speed(lambda: [split(MemorySplit, streaming=False)]),
        "training/: Parquet streamed, 2 threads": speed(lambda: stream.training(0)),
        alone: speed(lambda: loader(0)),
        "datasets and DataLoader, 2 workers": speed(lambda: loader(2)),
    }
    comparison = f"An epoch of {len(memory)} crops, decoded to {KEPT} px, in batches of {BATCH}"
    return rows(comparison, in_turns(turns, repeats), "images/s", alone, more_is_better=True)


def measure(data: Path, repeats: int) -> list[Row]:
    """Both tables, on a part of the images."""
    with tempfile.TemporaryDirectory() as place, LocalHub(Path(place) / "hub") as hub:
        raw, built = sample(data, Path(place) / "raw"), Path(place) / "dataset"
        command = [sys.executable, "-m", "dataset_script"]
        # links out of a folder are not read: a dataset is built of copies
        copies = Path(place) / "copies"
        subprocess.run(["cp", "-rL", str(raw), str(copies)], check=True)
        subprocess.run([*command, "build", str(copies), str(built)], check=True, stdout=subprocess.DEVNULL)
        environment = os.environ | hub.environment | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        subprocess.run(
            [*command, "push", str(built), REPO], check=True, env=environment, stdout=subprocess.DEVNULL
        )
        with patch.object(datasets.config, "HF_DATASETS_CACHE", Path(place) / "cache"):
            return first_batches(hub, repeats) + epochs(built, repeats)
