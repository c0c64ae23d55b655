"""Raw folders to build from, and the tables of a built dataset."""

from __future__ import annotations

import csv
import filecmp
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataset_script.__main__ import main
from tests.pictures import noise


def noise_folder(raw: Path, names: Sequence[str], per_class: int, seed: int = 0) -> Path:
    """Write `per_class` different pictures into each folder of `names` below `raw`, and return `raw`."""
    rng = np.random.default_rng(seed)
    for name in names:
        (raw / name).mkdir(parents=True)
        for i in range(per_class):
            noise(rng).save(raw / name / f"{i}.png")
    return raw


def build(raw: str | Path, out: Path, *more: object) -> int:
    """Run the command; return its exit code."""
    return main(["build", str(raw), str(out), *map(str, more)])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def same_files(a: Path, b: Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    compared = filecmp.dircmp(a, b)
    equal = not (compared.left_only or compared.right_only or compared.funny_files)
    _, different, errors = filecmp.cmpfiles(a, b, compared.common_files, shallow=False)
    return (
        equal and not different and not errors and all(same_files(a / d, b / d) for d in compared.common_dirs)
    )
