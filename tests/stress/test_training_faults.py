"""Real faults: full and read-only disks (tmpfs mounts), jumping clocks (a time namespace), one of two processes killed.

After every fault the same command with --resume must end with the same bytes as an uninterrupted run. `make stress` runs them.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

import train_accelerate
from tests.stress.processes import (
    DEADLINE,
    HOURS,
    Training,
    assert_same_run,
    let_the_wall_clock_jump,
    one_sentence,
    wait_for,
)
from tests.training.small import TINY

pytestmark = [pytest.mark.stress, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def arguments(drawn_dataset) -> list:
    checkpoints = ["--checkpoint_minutes", "1e-6"]  # one after every update
    return ["--dataset", drawn_dataset, *TINY, "--epochs", "2", *checkpoints, "--resume", "--output_dir"]


def train(arguments: list, run: Path, setup: Callable | None = None) -> str:
    """Train to the end; return the output."""
    training = Training([*arguments, run], run.parent, setup=setup)
    assert training.wait() == [0], training.text()
    return training.text()


@pytest.fixture(scope="module")
def uninterrupted(arguments, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(arguments, run)
    return run


def assert_resumes(arguments: list, run: Path, uninterrupted: Path, setup: Callable | None = None) -> str:
    """Assert that the same command ends with the same bytes; return its output."""
    text = train(arguments, run, setup)
    assert_same_run(run, uninterrupted)
    return text


def error_of(arguments: list, run: Path, folder: Path) -> str:
    """The error message of a run that fails."""
    training = Training([*arguments, run], folder)
    assert training.wait() == [1], training.text()
    return one_sentence(training.text())


class Disk:
    """A separate disk at `folder`: a tmpfs that can be resized and made read-only."""

    def __init__(self, folder: Path):
        self.folder, self.run = folder, folder / "run"
        folder.mkdir()
        self.mount("size=64m")

    def mount(self, options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.folder], check=True)

    def set(self, options: str) -> bool:
        """Remount; False if that fails, as it does for read-only while a file is open for writing."""
        command = ["mount", "-o", f"remount,{options}", self.folder]
        return subprocess.run(command, capture_output=True).returncode == 0

    def fill(self) -> None:
        """Fill the disk to the last byte."""
        with (self.folder / "filler").open("wb", buffering=0) as file:
            for size in (2**16, 1):
                try:
                    while file.write(b"\0" * size):
                        pass
                except OSError:
                    pass


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a disk that can be filled")
    disk = Disk(tmp_path / "disk")
    yield disk
    subprocess.run(["umount", "--lazy", disk.folder], check=True)


@pytest.mark.parametrize("size", ["4k", "300k", "1m", "3m", "5m"])
def test_a_full_disk_is_one_sentence_and_the_run_resumes_once_there_is_space(
    size, disk, arguments, uninterrupted, tmp_path
):
    """The disks are full at the options, the model, the first checkpoint, and later ones."""
    assert disk.set(f"size={size}")
    error = error_of(arguments, disk.run, tmp_path)
    assert "No space left on device" in error and str(disk.run) in error
    assert disk.set("size=64m")
    assert_resumes(arguments, disk.run, uninterrupted)


def test_a_disk_that_is_full_at_the_very_end_loses_no_result(disk, arguments, uninterrupted, tmp_path):
    train(arguments, disk.run)
    for name in ("logits_validation.parquet", "logits_test.parquet", "environment.json"):
        (disk.run / name).unlink()
    disk.fill()
    assert "No space left on device" in error_of(arguments, disk.run, tmp_path)
    (disk.folder / "filler").unlink()
    assert_resumes(arguments, disk.run, uninterrupted)


def test_both_processes_end_when_the_disk_is_full(disk, arguments, tmp_path):
    assert disk.set("size=1m")
    training = Training([*arguments, disk.run], tmp_path, processes=2)
    assert training.wait() == [1, 1], training.text()
    assert "No space left on device" in one_sentence(training.text(0))
    assert "has lost another one" in one_sentence(training.text(1))


def test_a_read_only_disk_is_one_sentence(disk, arguments, uninterrupted, tmp_path):
    training = Training([*arguments, disk.run], tmp_path)
    wait_for(lambda: list(disk.run.glob("checkpoints/step-*")))
    wait_for(lambda: disk.set("ro"))
    assert training.wait() == [1], training.text()
    assert "Read-only file system" in one_sentence(training.text())
    assert "Read-only file system" in error_of(arguments, disk.run, tmp_path)
    assert disk.set("rw")
    assert_resumes(arguments, disk.run, uninterrupted)


def test_a_wall_clock_that_jumps_by_hours_changes_nothing(arguments, uninterrupted, tmp_path):
    limited, run = ["--max_minutes", str(HOURS * 60 / 2), *arguments], tmp_path / "run"
    training = Training([*limited, run], tmp_path, setup=let_the_wall_clock_jump)
    wait_for(lambda: list(run.glob("checkpoints/step-*")) or not training.running)
    training.kill()
    training.wait()
    assert_resumes(limited, run, uninterrupted, setup=let_the_wall_clock_jump)


def test_max_minutes_continues_after_a_reboot(arguments, uninterrupted, tmp_path):
    """The monotonic clock counts from boot, so it jumps back by hours between the run and its resumption."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for a time namespace whose clock is ahead")
    limited, run = ["--max_minutes", str(HOURS * 60 / 2), *arguments], tmp_path / "run"
    ahead = ["unshare", "--time", f"--monotonic={3600 * HOURS}", f"--boottime={3600 * HOURS}", "--fork"]
    command = [*ahead, sys.executable, train_accelerate.__file__, *map(str, limited), run]
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: list(run.glob("checkpoints/step-*")) or first.poll() is not None)
        psutil.Process(first.pid).children()[0].terminate()
        first.wait(DEADLINE)
    assert "resuming from step-" in assert_resumes(limited, run, uninterrupted)


def test_a_run_killed_around_the_end_of_its_last_epoch_resumes(arguments, uninterrupted, tmp_path):
    run = tmp_path / "run"
    train(arguments, run)
    (run / "history.jsonl").unlink()
    assert_resumes(arguments, run, uninterrupted)
    shutil.rmtree(max((run / "checkpoints").glob("step-*")))
    text = assert_resumes(arguments, run, uninterrupted)
    assert "resuming from step-00001-00000007" in text, "after the last update, before the epoch is scored"


def run_elsewhere(folder: Path) -> None:
    """Run the first process in one folder and the others in another, as on machines without a shared disk."""
    directory = folder / ("first" if os.environ["RANK"] == "0" else "other")
    directory.mkdir(exist_ok=True)
    os.chdir(directory)


def test_a_run_that_lost_one_of_two_processes_resumes_without_a_shared_disk(arguments, tmp_path):
    arguments = [*arguments, "run"]
    alone = Training(arguments, tmp_path / "alone", 2, setup=partial(run_elsewhere, tmp_path / "alone"))
    setup = partial(run_elsewhere, tmp_path)
    training, run = Training(arguments, tmp_path, 2, setup=setup), tmp_path / "first" / "run"
    wait_for(lambda: list(run.glob("checkpoints/step-*")) or not training.running)
    training.kill(0)
    assert training.wait() == [-9, 1], training.text()
    assert "process 1 of 2" in one_sentence(training.text(1)) and "--resume" in training.text(1)
    training = Training(arguments, tmp_path, 2, setup=setup)
    assert training.wait() == [0, 0], training.text()
    assert "resuming from step-" in training.text(0)
    assert not (tmp_path / "other" / "run").exists()
    assert alone.wait() == [0, 0], alone.text()
    assert_same_run(run, tmp_path / "alone" / "first" / "run")


def test_max_minutes_ends_a_run_with_the_learning_rate_at_zero(drawn_dataset, tmp_path):
    arguments = ["--dataset", str(drawn_dataset), "--output_dir", str(tmp_path / "run"), *TINY]
    assert train_accelerate.main([*arguments, "--max_minutes", "0.4", "--epochs", "10000"]) == 0
    history = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert json.loads(history[-1])["learning_rate"] < 1e-5
