"""Disks that fail and clocks that jump, for real: small tmpfs mounts, remounts, a time namespace. `make stress` runs them.

After every fault the same command with --resume must end in the same bytes as a run that was left alone.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import train_accelerate
from tests.stress.processes import (
    HOURS,
    PATIENCE,
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
    checkpoints = ["--checkpoint_minutes", "0.001"]  # one after nearly every update
    return ["--dataset", drawn_dataset, *TINY, "--epochs", "2", *checkpoints, "--resume", "--output_dir"]


def run_to_the_end(arguments: list, run: Path) -> Path:
    training = Training([*arguments, run], run.parent)
    assert training.wait() == [0], training.text()
    return run


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory) -> Path:
    return run_to_the_end(arguments, tmp_path_factory.mktemp("undisturbed") / "run")


class Disk:
    """A disk of its own at `folder`: a tmpfs of some size, which can be resized and made read-only."""

    def __init__(self, folder: Path):
        self.folder, self.run = folder, folder / "run"
        folder.mkdir()
        self.mount("size=64m")

    def mount(self, options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.folder], check=True)

    def set(self, options: str) -> bool:
        """Remount; False while a file is open for writing, which a disk that is to be read-only does not allow."""
        command = ["mount", "-o", f"remount,{options}", self.folder]
        return subprocess.run(command, capture_output=True).returncode == 0

    def fill(self) -> None:
        """Write a file that takes every byte that is left."""
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
def test_a_full_disk_is_said_in_one_sentence_and_the_run_goes_on_when_there_is_room(
    size, disk, arguments, undisturbed, tmp_path
):
    """The sizes end in the options, the model, the first checkpoint, and later ones."""
    assert disk.set(f"size={size}")
    training = Training([*arguments, disk.run], tmp_path)
    assert training.wait() == [1], training.text()
    said = one_sentence(training.text())
    assert "No space left on device" in said and str(disk.run) in said
    assert disk.set("size=64m")
    assert_same_run(run_to_the_end(arguments, disk.run), undisturbed)


def test_a_disk_that_fills_up_at_the_very_end_costs_no_result(disk, arguments, undisturbed, tmp_path):
    run_to_the_end(arguments, disk.run)
    for name in ("logits_validation.parquet", "logits_test.parquet", "environment.json"):
        (disk.run / name).unlink()
    disk.fill()
    training = Training([*arguments, disk.run], tmp_path)
    assert training.wait() == [1], training.text()
    assert "No space left on device" in one_sentence(training.text())
    (disk.folder / "filler").unlink()
    assert_same_run(run_to_the_end(arguments, disk.run), undisturbed)


def test_the_other_of_two_processes_ends_too_when_the_disk_is_full(disk, arguments, tmp_path):
    assert disk.set("size=1m")
    training = Training([*arguments, disk.run], tmp_path, processes=2)
    assert training.wait() == [1, 1], training.text()
    assert "No space left on device" in one_sentence(training.text(0))
    assert "has lost another one" in one_sentence(training.text(1))


def test_a_disk_that_is_or_becomes_read_only_is_said_in_one_sentence(disk, arguments, undisturbed, tmp_path):
    training = Training([*arguments, disk.run], tmp_path)
    wait_for(lambda: list(disk.run.glob("checkpoints/step-*")))
    wait_for(lambda: disk.set("ro"))
    assert training.wait() == [1], training.text()
    assert "Read-only file system" in one_sentence(training.text())
    training = Training([*arguments, disk.run], tmp_path)
    assert training.wait() == [1], training.text()
    assert "Read-only file system" in one_sentence(training.text())
    assert disk.set("rw")
    assert_same_run(run_to_the_end(arguments, disk.run), undisturbed)


def test_a_wall_clock_that_jumps_by_hours_changes_nothing(arguments, undisturbed, tmp_path):
    limited = [*arguments[:-1], "--max_minutes", str(HOURS * 60 / 2), "--output_dir"]
    training = Training([*limited, tmp_path / "run"], tmp_path, first=let_the_wall_clock_jump)
    wait_for(lambda: list((tmp_path / "run").glob("checkpoints/step-*")) or not training.running)
    training.kill()
    training.wait()
    training = Training([*limited, tmp_path / "run"], tmp_path, first=let_the_wall_clock_jump)
    assert training.wait() == [0], training.text()
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_machine_that_was_started_again_goes_on_where_max_minutes_stood(arguments, undisturbed, tmp_path):
    """Between the run and its resumption the monotonic clock, which counts from the machine's start, jumps back by hours."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for a time namespace whose clock is ahead")
    limited = [*arguments[:-1], "--max_minutes", str(HOURS * 60 / 2), "--output_dir", tmp_path / "run"]
    ahead = ["unshare", "--time", f"--monotonic={3600 * HOURS}", f"--boottime={3600 * HOURS}", "--fork"]
    command = [*ahead, sys.executable, train_accelerate.__file__, *map(str, limited)]
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: list((tmp_path / "run").glob("checkpoints/step-*")) or first.poll() is not None)
        psutil.Process(first.pid).children()[0].terminate()
        first.wait(PATIENCE)
    training = Training(limited, tmp_path)
    assert training.wait() == [0], training.text()
    assert "resuming from step-" in training.text()
    assert_same_run(tmp_path / "run", undisturbed)
