"""What the command lines share: argparse types of numbers within limits, and what `--overwrite` may delete."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

LARGEST_SEED = 2**32 - 1  # NumPy's
LARGEST_PORT = 65_535


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return the type of an integer of at least `least` and, where given, at most `most`."""
    limits = f"a whole number of at least {least}" if most is None else f"a whole number in {least}..{most}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"must be {limits}, not {text!r}")
        return value

    return read


def real_number(accepts: Callable[[float], bool], limits: str) -> Callable[[str], float]:
    """Return the type of a finite number that `accepts` is true of; `limits` says which those are."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and accepts(value)):
            raise argparse.ArgumentTypeError(f"must be {limits}, not {text!r}")
        return value

    return read


positive = real_number(lambda value: value > 0, "a number above 0")
not_negative = real_number(lambda value: value >= 0, "a number of at least 0")
share = real_number(lambda value: 0 <= value <= 1, "a number in 0..1")
seed = whole_number(0, LARGEST_SEED)
port = whole_number(0, LARGEST_PORT)


def holds_other_things(out: Path, mark: str) -> bool:
    """Return what `--overwrite` refuses to delete: a file, or a folder with content but without the file `mark`.

    Each kind of output has a file that marks it.
    """
    return out.exists() and not (out / mark).is_file() and (out.is_file() or any(out.iterdir()))
