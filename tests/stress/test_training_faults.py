"""Disks that fail, clocks that jump, a process of two that is killed, for real: small tmpfs mounts, remounts, a time namespace.

After every fault the same command with --resume must end in the same bytes as a run that was left alone. `make stress` runs them.
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
    checkpoints = ["--checkpoint_minutes", "1e-6"]  # one after every update
    return ["--dataset", drawn_dataset, *TINY, "--epochs", "2", *checkpoints, "--resume", "--output_dir"]


def run_to_the_end(arguments: list, run: Path, first: Callable | None = None) -> str:
    """Train; return what was printed."""
    training = Training([*arguments, run], run.parent, first=first)
    assert training.wait() == [0], training.text()
    return training.text()


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    run_to_the_end(arguments, run)
    return run


def assert_goes_on(arguments: list, run: Path, undisturbed: Path, first: Callable | None = None) -> str:
    """The same command ends in the same bytes; return what it printed."""
    text = run_to_the_end(arguments, run, first)
    assert_same_run(run, undisturbed)
    return text


def refusal(arguments: list, run: Path, folder: Path) -> str:
    """The sentence that a run ends with."""
    training = Training([*arguments, run], folder)
    assert training.wait() == [1], training.text()
    return one_sentence(training.text())


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
    said = refusal(arguments, disk.run, tmp_path)
    assert "No space left on device" in said and str(disk.run) in said
    assert disk.set("size=64m")
    assert_goes_on(arguments, disk.run, undisturbed)


def test_a_disk_that_fills_up_at_the_very_end_costs_no_result(disk, arguments, undisturbed, tmp_path):
    run_to_the_end(arguments, disk.run)
    for name in ("logits_validation.parquet", "logits_test.parquet", "environment.json"):
        (disk.run / name).unlink()
    disk.fill()
    assert "No space left on device" in refusal(arguments, disk.run, tmp_path)
    (disk.folder / "filler").unlink()
    assert_goes_on(arguments, disk.run, undisturbed)


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
    assert "Read-only file system" in refusal(arguments, disk.run, tmp_path)
    assert disk.set("rw")
    assert_goes_on(arguments, disk.run, undisturbed)


def test_a_wall_clock_that_jumps_by_hours_changes_nothing(arguments, undisturbed, tmp_path):
    limited, run = ["--max_minutes", str(HOURS * 60 / 2), *arguments], tmp_path / "run"
    training = Training([*limited, run], tmp_path, first=let_the_wall_clock_jump)
    wait_for(lambda: list(run.glob("checkpoints/step-*")) or not training.running)
    training.kill()
    training.wait()
    assert_goes_on(limited, run, undisturbed, first=let_the_wall_clock_jump)


def test_a_machine_that_was_started_again_goes_on_where_max_minutes_stood(arguments, undisturbed, tmp_path):
    """Between the run and its resumption the monotonic clock, which counts from the machine's start, jumps back by hours."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for a time namespace whose clock is ahead")
    limited, run = ["--max_minutes", str(HOURS * 60 / 2), *arguments], tmp_path / "run"
    ahead = ["unshare", "--time", f"--monotonic={3600 * HOURS}", f"--boottime={3600 * HOURS}", "--fork"]
    command = [*ahead, sys.executable, train_accelerate.__file__, *map(str, limited), run]
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: list(run.glob("checkpoints/step-*")) or first.poll() is not None)
        psutil.Process(first.pid).children()[0].terminate()
        first.wait(PATIENCE)
    assert "resuming from step-" in assert_goes_on(limited, run, undisturbed)


def test_a_run_killed_around_the_end_of_its_last_epoch_goes_on(arguments, undisturbed, tmp_path):
    run = tmp_path / "run"
    run_to_the_end(arguments, run)
    (run / "history.jsonl").unlink()
    assert_goes_on(arguments, run, undisturbed)
    shutil.rmtree(max((run / "checkpoints").glob("step-*")))
    text = assert_goes_on(arguments, run, undisturbed)
    assert "resuming from step-00001-00000007" in text, "after the last update, before the epoch is scored"


def run_elsewhere(folder: Path) -> None:
    """Let the first process run in one folder and the others in another, as on machines that share no disk."""
    place = folder / ("first" if os.environ["RANK"] == "0" else "other")
    place.mkdir(exist_ok=True)
    os.chdir(place)


def test_of_two_processes_one_is_killed_the_other_says_so_and_they_go_on_without_a_shared_disk(
    arguments, tmp_path
):
    arguments = [*arguments, "run"]
    alone = Training(arguments, tmp_path / "alone", 2, first=partial(run_elsewhere, tmp_path / "alone"))
    place = partial(run_elsewhere, tmp_path)
    training, run = Training(arguments, tmp_path, 2, first=place), tmp_path / "first" / "run"
    wait_for(lambda: list(run.glob("checkpoints/step-*")) or not training.running)
    training.kill(0)
    assert training.wait() == [-9, 1], training.text()
    assert "process 1 of 2" in one_sentence(training.text(1)) and "--resume" in training.text(1)
    training = Training(arguments, tmp_path, 2, first=place)
    assert training.wait() == [0, 0], training.text()
    assert "resuming from step-" in training.text(0)
    assert not (tmp_path / "other" / "run").exists()
    assert alone.wait() == [0, 0], alone.text()
    assert_same_run(run, tmp_path / "alone" / "first" / "run")


def test_the_clock_ends_a_run_with_the_learning_rate_at_zero(drawn_dataset, tmp_path):
    arguments = ["--dataset", str(drawn_dataset), "--output_dir", str(tmp_path / "run"), *TINY]
    assert train_accelerate.main([*arguments, "--max_minutes", "0.4", "--epochs", "10000"]) == 0
    history = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert json.loads(history[-1])["learning_rate"] < 1e-5
