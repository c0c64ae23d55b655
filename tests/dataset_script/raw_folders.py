"""Raw folders to build from, on disk or in memory, and readers of a built dataset."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataset_script.__main__ import main
from dataset_script.classes import ClassFolders, arrange
from tests.pictures import encoded, noise

PICTURE = encoded(noise(np.random.default_rng(0), 32), "PNG")


class InMemory:
    """A source in memory: the paths of images, and the bytes of other files by path."""

    def __init__(self, *images: str, **others: bytes):
        self.files = dict.fromkeys(images, PICTURE) | others
        self.parts = {"": self}

    def listing(self) -> list[tuple[str, str]]:
        return [(path, "") for path in sorted(self.files)]

    def read(self, path: str) -> bytes:
        return self.files[path]


def arranged(*images: str, others: dict[str, bytes] | None = None, **options) -> ClassFolders:
    """Arrange images at these paths, and other files of these bytes; `options` are those of `arrange`."""
    return arrange(InMemory(*images, **others or {}), **options)


def noise_folder(raw: Path, names: Sequence[str], per_class: int, seed: int = 0) -> Path:
    """Write `per_class` different images into each of the folders `names` in `raw`; return `raw`."""
    rng = np.random.default_rng(seed)
    for name in names:
        (raw / name).mkdir(parents=True)
        for i in range(per_class):
            noise(rng).save(raw / name / f"{i}.png")
    return raw


def build(*arguments: object) -> int:
    """Run the command `build`; return its exit code."""
    return main(["build", *map(str, arguments)])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[Path, bytes]:
    """Return the bytes of each file in a folder by its relative path."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
