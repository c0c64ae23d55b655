"""Bulk scoring, killed and in several processes: no row is lost or doubled, and memory stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hub_model.score import main
from tests.hub_model.scoring import paths_below, score, write_images

MODULE = ["-m", "hub_model", "score"]
TWO = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
TWO += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", *MODULE]
LAUNCHES = {"one process": MODULE, "two processes": TWO}


def kill_in_the_middle(launch: list[str], arguments: list[str], parts: Path, at_least: int = 1) -> int:
    """Start, SIGKILL every process as soon as a few parts are there; return how many are left."""
    process = subprocess.Popen(
        [sys.executable, *launch, *arguments], start_new_session=True, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 250
    while len(list(parts.glob("part-*"))) < at_least and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return len(list(parts.glob("part-*")))


def arguments_of(source: Path, model: Path, out: Path) -> list[str]:
    return [str(source), "--model", str(model), "--out", str(out), "--threads", "1"]


def test_a_killed_run_goes_on_and_ends_with_the_bytes_of_one_left_alone(
    many, of_many, model, tmp_path, capsys
):
    out = tmp_path / "predictions.parquet"
    arguments = arguments_of(many, model, out)
    left = kill_in_the_middle(MODULE, arguments, tmp_path / "predictions.parquet.parts")
    assert 1 <= left < 6 and not out.exists()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/part-*")}
    assert main(arguments) == 0
    assert f"resuming: {len(kept)} of 6 parts are there" in capsys.readouterr().out
    assert out.read_bytes() == of_many.read_bytes()


def test_two_processes_give_the_bytes_of_one(many, of_many, model, tmp_path):
    out = tmp_path / "predictions.parquet"
    done = subprocess.run(
        [sys.executable, *TWO, *arguments_of(many, model, out)], check=True, text=True, capture_output=True
    )
    assert done.stdout.count("1,500 images") == 1
    assert out.read_bytes() == of_many.read_bytes()


@pytest.mark.stress
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("launch", LAUNCHES)
def test_kills_in_every_phase_lose_and_double_nothing(launch, model, tmp_path):
    """SIGKILL early, in the middle and near the end; then the rows are counted."""
    images = write_images(tmp_path / "images", 5000, seed=1)
    out, alone = tmp_path / "out.parquet", tmp_path / "alone.parquet"
    arguments = arguments_of(images, model, out)
    for at_least in (1, 8, 16):
        kill_in_the_middle(LAUNCHES[launch], arguments, tmp_path / "out.parquet.parts", at_least)
    subprocess.run([sys.executable, *LAUNCHES[launch], *arguments], check=True)
    names = pq.read_table(out)["file_name"].to_pylist()
    assert names == paths_below(images) and len(set(names)) == 5000
    assert score(images, model, alone) == 0
    assert out.read_bytes() == alone.read_bytes()


@pytest.mark.stress
def test_the_launchers_cpu_flag_loses_no_row(many, of_many, model, tmp_path):
    """`accelerate launch --cpu --num_processes 2` starts one process; a later version may start two."""
    out = tmp_path / "predictions.parquet"
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu", *MODULE]
    subprocess.run([sys.executable, *launch, *arguments_of(many, model, out)], check=True)
    assert out.read_bytes() == of_many.read_bytes()


@pytest.mark.stress
def test_two_processes_refuse_in_one_sentence_and_both_end(model, tmp_path):
    arguments = arguments_of(tmp_path / "nowhere", model, tmp_path / "out.parquet")
    done = subprocess.run([sys.executable, *TWO, *arguments], text=True, capture_output=True, timeout=250)
    assert done.returncode == 1 and done.stderr.count("error: ") == 1
    assert "is neither a folder nor a dataset" in done.stderr


@pytest.mark.stress
@pytest.mark.timeout(3000)
def test_memory_does_not_grow_with_the_images(model, tmp_path):
    """Ten times as many images need at most a tenth more memory."""
    report = "import resource, sys; from hub_model.score import main; code = main(sys.argv[1:]); "
    report += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    peaks = []
    for count in (800, 8000):
        images = write_images(tmp_path / str(count), count)
        command = [sys.executable, "-c", report, *arguments_of(images, model, tmp_path / f"{count}.parquet")]
        done = subprocess.run(command, check=True, text=True, capture_output=True)
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < 1.1 * peaks[0], peaks
