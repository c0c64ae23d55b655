"""Faults of a run whose processes share no disk, whose clock jumps, or which is killed around its end."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.stress.processes import (
    Training,
    assert_same_run,
    let_the_wall_clock_jump,
    one_sentence,
    wait_for,
)
from tests.training.small import TINY
from train_accelerate import main

pytestmark = [pytest.mark.stress, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def arguments(drawn_dataset) -> list:
    return ["--dataset", drawn_dataset, *TINY, "--epochs", "2", "--checkpoint_minutes", "1e-6", "--resume"]


def run_elsewhere(folder: Path) -> None:
    """Let the first process run in one folder and the others in another, as on machines that share no disk."""
    place = folder / ("first" if os.environ["RANK"] == "0" else "other")
    place.mkdir(exist_ok=True)
    os.chdir(place)


def test_of_two_processes_one_is_killed_the_other_says_so_and_they_go_on_without_a_shared_disk(
    arguments, tmp_path
):
    arguments = [*arguments, "--output_dir", "run"]
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


def test_jumps_of_the_wall_clock_and_kills_around_the_end_of_the_last_epoch_change_nothing(
    arguments, tmp_path
):
    limit = ["--max_minutes", "300"]  # the clock jumps by up to 720
    alone, jumping = (
        Training([*arguments, *limit, "--output_dir", tmp_path / name], tmp_path, first=first)
        for name, first in (("alone", None), ("jumping", let_the_wall_clock_jump))
    )
    for training in (alone, jumping):
        assert training.wait() == [0], training.text()
    assert_same_run(tmp_path / "jumping", tmp_path / "alone")
    (tmp_path / "jumping" / "history.jsonl").unlink()
    again = Training([*arguments, *limit, "--output_dir", tmp_path / "jumping"], tmp_path)
    assert again.wait() == [0], again.text()
    assert_same_run(tmp_path / "jumping", tmp_path / "alone")
    shutil.rmtree(max((tmp_path / "jumping" / "checkpoints").glob("step-*")))
    again = Training([*arguments, *limit, "--output_dir", tmp_path / "jumping"], tmp_path)
    assert again.wait() == [0], again.text()
    assert (
        "resuming from step-00001-00000007" in again.text()
    )  # after the last update, before the epoch is scored
    assert_same_run(tmp_path / "jumping", tmp_path / "alone")


def test_the_clock_ends_a_run_with_the_learning_rate_at_zero(drawn_dataset, tmp_path):
    arguments = ["--dataset", str(drawn_dataset), "--output_dir", str(tmp_path / "run"), *TINY]
    assert main([*arguments, "--max_minutes", "0.4", "--epochs", "10000"]) == 0
    history = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert json.loads(history[-1])["learning_rate"] < 1e-5
