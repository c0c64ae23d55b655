"""The process and its ranks: how it is set up, and a run that is resumed with more or fewer of them."""

import ctypes
import json
from types import SimpleNamespace

import pytest
import torch

from training import TrainingError
from training.checkpoint import Progress, find_damage
from training.options import parse_options
from training.process import M_MMAP_MAX, M_TRIM_THRESHOLD, check_launch, keep_freed_memory
from training.run_folder import as_json, check_same_options


def test_malloc_is_told_to_keep_what_is_freed_where_it_can_be_told(monkeypatch):
    told = []
    glibc = SimpleNamespace(mallopt=lambda *setting: told.append(setting) or 1)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: glibc)
    assert keep_freed_memory()
    assert told == [(M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)]
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())  # another libc
    assert not keep_freed_memory()


def test_several_processes_that_accelerate_does_not_start_are_asked_for_in_other_words(monkeypatch):
    """`accelerate launch --cpu --num_processes 2` sets both variables, and starts one process."""
    one = SimpleNamespace(num_processes=1)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    check_launch(one)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(TrainingError, match="--multi_gpu instead of --cpu"):
        check_launch(one)
    check_launch(SimpleNamespace(num_processes=2))


def options(*more: str):
    return parse_options(["--dataset", "owner/name", "--output_dir", "run", *more])


def recorded(tmp_path, processes: int):
    file = tmp_path / "args.json"
    file.write_text(json.dumps(as_json(options()) | {"processes": processes}))
    return file


def test_fewer_processes_go_on_when_an_update_keeps_its_batches(tmp_path):
    check_same_options(options("--gradient_accumulation_steps", "2"), recorded(tmp_path, 4), processes=2)


@pytest.mark.parametrize(
    ("processes", "advice"), [(2, "pass --gradient_accumulation_steps 2"), (3, r"use one of \[1, 2, 4\]")]
)
def test_fewer_processes_alone_are_refused_with_what_would_fit(tmp_path, processes, advice):
    with pytest.raises(TrainingError, match=f"4 batches per update; with {processes} processes, {advice}"):
        check_same_options(options(), recorded(tmp_path, 4), processes)


def test_the_same_processes_may_not_change_the_accumulation(tmp_path):
    with pytest.raises(TrainingError, match="--gradient_accumulation_steps"):
        check_same_options(options("--gradient_accumulation_steps", "2"), recorded(tmp_path, 4), processes=4)


def test_the_place_in_the_epoch_keeps_its_batches_in_their_order():
    """Four processes after three steps have done what two have after six; the losses stay with their batches."""
    losses = torch.arange(20.0).reshape(5, 4).T  # [processes, steps]; batch i of the epoch has loss i
    progress = Progress(step=3, update=3, losses=losses)
    progress.reshard(2, sharded=False, updates=5)
    assert (progress.step, progress.update) == (6, 3)
    assert progress.losses.T.flatten().tolist() == list(range(20))
    progress.reshard(4, sharded=False, updates=5)
    assert (progress.step, progress.update) == (3, 3) and torch.equal(progress.losses, losses)


def test_an_epoch_of_own_shards_begins_again_when_they_are_divided_again():
    progress = Progress(epoch=2, step=3, update=13, losses=torch.zeros(4, 5), sharded=True)
    progress.reshard(2, sharded=False, updates=5)
    assert (progress.epoch, progress.step, progress.update, progress.losses) == (2, 0, 10, None)


def test_an_epoch_of_own_shards_continues_with_the_same_processes():
    progress = Progress(epoch=2, step=3, update=13, losses=torch.zeros(4, 5), sharded=True)
    progress.reshard(4, sharded=True, updates=5)
    assert (progress.step, progress.update) == (3, 13)


def test_a_manifest_that_is_not_a_mapping_is_damaged(tmp_path):
    (tmp_path / "manifest.json").write_text("[1]")
    assert find_damage(tmp_path)
