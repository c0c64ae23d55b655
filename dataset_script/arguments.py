"""Shared by the command lines: argparse types for numbers in a range, and what `--overwrite` may delete."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path


def real_number(accepts: Callable[[float], bool], limits: str, kind: type = float) -> Callable[[str], float]:
    """Return the argparse type of a finite number for which `accepts` is true; `limits` describes the range in errors."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (abs(value) < math.inf and accepts(value)):
            raise argparse.ArgumentTypeError(f"must be {limits}, not {text!r}")
        return value

    return read


def whole_number(minimum: int, maximum: float = math.inf) -> Callable[[str], int]:
    """Return the argparse type of an integer in `minimum`..`maximum` (inclusive)."""
    limits = f"in {minimum}..{maximum}" if maximum < math.inf else f"of at least {minimum}"
    return real_number(lambda value: minimum <= value <= maximum, f"a whole number {limits}", int)


positive = real_number(lambda value: value > 0, "a number above 0")
not_negative = real_number(lambda value: value >= 0, "a number of at least 0")
share = real_number(lambda value: 0 <= value <= 1, "a number in 0..1")
seed = whole_number(0, 2**32 - 1)  # what NumPy accepts
port = whole_number(0, 65_535)


def is_foreign_output(out: Path, marker: str) -> bool:
    """Return whether `out` is something that `--overwrite` refuses to delete: a file, or a non-empty folder without `marker`.

    `marker` is the name of a file that every output of the command has.
    """
    return out.exists() and not (out / marker).is_file() and (out.is_file() or any(out.iterdir()))
