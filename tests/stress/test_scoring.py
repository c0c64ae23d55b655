"""Bulk scoring, killed in every phase, in one and two processes: no row is lost or duplicated, and memory does not grow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.hub_model.scoring import (
    LAUNCHES,
    MODULE,
    TWO,
    arguments_of,
    kill_midway,
    paths_below,
    score,
    write_images,
)
from tests.hub_model.small_classifier import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.mark.stress
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("launch", LAUNCHES)
def test_kills_in_every_phase_lose_and_duplicate_no_row(launch, model, tmp_path):
    """SIGKILL early, in the middle and near the end; then the run is completed and its rows are counted."""
    images = write_images(tmp_path / "images", 5000, seed=1)
    out, alone = tmp_path / "out.parquet", tmp_path / "alone.parquet"
    arguments = arguments_of(images, model, out)
    for at_least in (1, 8, 16):
        kill_midway(LAUNCHES[launch], arguments, tmp_path / "out.parquet.parts", at_least)
    subprocess.run([sys.executable, *LAUNCHES[launch], *arguments], check=True)
    names = pq.read_table(out)["file_name"].to_pylist()
    assert names == paths_below(images) and len(set(names)) == 5000
    assert score(images, model, alone) == 0
    assert out.read_bytes() == alone.read_bytes()


@pytest.mark.stress
def test_the_launchers_cpu_flag_loses_no_row(model, tmp_path):
    """`accelerate launch --cpu --num_processes 2` starts one process; a later version may start two."""
    out = tmp_path / "predictions.parquet"
    images = write_images(tmp_path / "images", 300)
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu", *MODULE]
    subprocess.run([sys.executable, *launch, *arguments_of(images, model, out)], check=True)
    assert pq.read_table(out)["file_name"].to_pylist() == paths_below(images)


@pytest.mark.stress
def test_an_error_of_two_processes_is_one_sentence_and_both_end(model, tmp_path):
    arguments = arguments_of(tmp_path / "nowhere", model, tmp_path / "out.parquet")
    done = subprocess.run([sys.executable, *TWO, *arguments], text=True, capture_output=True, timeout=250)
    assert done.returncode == 1 and done.stderr.count("error: ") == 1
    assert "is neither a folder nor a repo id" in done.stderr


@pytest.mark.stress
@pytest.mark.timeout(3000)
def test_memory_does_not_grow_with_the_images(model, tmp_path):
    """Ten times as many images need at most 10% more memory."""
    report = "import resource, sys; from hub_model.__main__ import main; "
    report += "code = main(['score', *sys.argv[1:]]); "
    report += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    peaks = []
    for count in (800, 8000):
        images = write_images(tmp_path / str(count), count)
        command = [sys.executable, "-c", report, *arguments_of(images, model, tmp_path / f"{count}.parquet")]
        done = subprocess.run(command, check=True, text=True, capture_output=True)
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < 1.1 * peaks[0], peaks
