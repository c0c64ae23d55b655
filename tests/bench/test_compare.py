"""The basis of every comparison: ratios within rounds, memory of a command, datasets of distinct images."""

import sys
from pathlib import Path

import pytest

from bench.compare import rows, run
from bench.dataset_build import grow, watch


def test_a_ratio_above_one_is_better_for_rates_and_for_times() -> None:
    values = {"slow": [10.0, 20.0, 10.0], "fast": [20.0, 60.0, 10.0]}
    assert rows("", values, "images/s", "slow")[1].ratio == (2.0, 1.0, 3.0)
    assert rows("", values, "ms", "fast")[0].ratio == (2.0, 1.0, 3.0)


def test_a_failing_command_ends_the_benchmark_with_its_error() -> None:
    with pytest.raises(SystemExit, match="no such thing"):
        run([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_peak_memory_counts_all_processes_of_a_command() -> None:
    child = "import time; block = bytearray(150 * 2**20); time.sleep(2)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    seconds, peak = watch([sys.executable, "-c", parent])
    assert seconds >= 2
    assert peak > 150


def test_a_grown_folder_has_distinct_images(tmp_path: Path) -> None:
    grow(tmp_path, 14)
    first = {path.read_bytes() for path in tmp_path.glob("*/*.jpg")}
    grow(tmp_path, 28)
    assert len(first) == 14
    assert len({path.read_bytes() for path in tmp_path.glob("*/*.jpg")}) == 28
    assert len(list(tmp_path.iterdir())) == 7
