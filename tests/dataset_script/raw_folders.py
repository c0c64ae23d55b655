"""Raw folders to build from, on disk or in name only, and what a built dataset holds."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataset_script.__main__ import main
from dataset_script.classes import ClassFolders, arrange
from tests.pictures import encoded, noise

PICTURE = encoded(noise(np.random.default_rng(0), 32), "PNG")


class Listed:
    """Sources of paths in memory: pictures, and the bytes of other files by their path."""

    def __init__(self, *pictures: str, **others: bytes):
        self.files = dict.fromkeys(pictures, PICTURE) | others
        self.parts = {"": self}

    def listing(self) -> list[tuple[str, str]]:
        return [(path, "") for path in sorted(self.files)]

    def read(self, path: str) -> bytes:
        return self.files[path]


def arranged(*pictures: str, others: dict[str, bytes] | None = None, **options) -> ClassFolders:
    """What becomes of pictures at these paths, beside others of these bytes; `options` as `arrange` has them."""
    return arrange(Listed(*pictures, **others or {}), **options)


def noise_folder(raw: Path, names: Sequence[str], per_class: int, seed: int = 0) -> Path:
    """Write `per_class` different pictures into each folder of `names` below `raw`, and return `raw`."""
    rng = np.random.default_rng(seed)
    for name in names:
        (raw / name).mkdir(parents=True)
        for i in range(per_class):
            noise(rng).save(raw / name / f"{i}.png")
    return raw


def build(*words: object) -> int:
    """Run `build` with these words; return its exit code."""
    return main(["build", *map(str, words)])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[Path, bytes]:
    """The bytes of each file below a folder, by its path there."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
