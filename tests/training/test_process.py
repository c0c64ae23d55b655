"""Process setup, and runs that are resumed on another number of processes."""

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


def test_glibc_malloc_is_configured_to_reuse_freed_memory(monkeypatch):
    settings = []
    glibc = SimpleNamespace(mallopt=lambda *setting: settings.append(setting) or 1)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: glibc)
    assert keep_freed_memory()
    assert settings == [(M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)]
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())  # another libc
    assert not keep_freed_memory()


def test_a_launch_that_would_start_one_process_instead_of_several_is_refused(monkeypatch):
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


def test_a_run_resumes_on_fewer_processes_with_the_same_batches_per_update(tmp_path):
    check_same_options(options("--gradient_accumulation_steps", "2"), recorded(tmp_path, 4), processes=2)


@pytest.mark.parametrize(
    ("processes", "advice"), [(2, "pass --gradient_accumulation_steps 2"), (3, r"use one of \[1, 2, 4\]")]
)
def test_fewer_processes_with_fewer_batches_per_update_are_refused(tmp_path, processes, advice):
    with pytest.raises(TrainingError, match=f"4 batches per update; with {processes} processes, {advice}"):
        check_same_options(options(), recorded(tmp_path, 4), processes)


def test_accumulation_steps_cannot_change_on_the_same_number_of_processes(tmp_path):
    with pytest.raises(TrainingError, match="--gradient_accumulation_steps"):
        check_same_options(options("--gradient_accumulation_steps", "2"), recorded(tmp_path, 4), processes=4)


def test_resharding_keeps_the_order_of_the_batches():
    """Four processes after three steps have done what two have after six; the losses stay with their batches."""
    losses = torch.arange(20.0).reshape(5, 4).T  # [processes, steps]; batch i of the epoch has loss i
    progress = Progress(step=3, update=3, losses=losses)
    progress.reshard(2, sharded=False, updates=5)
    assert (progress.step, progress.update) == (6, 3)
    assert progress.losses.T.flatten().tolist() == list(range(20))
    progress.reshard(4, sharded=False, updates=5)
    assert (progress.step, progress.update) == (3, 3) and torch.equal(progress.losses, losses)


def test_an_epoch_of_own_shards_restarts_on_another_number_of_processes():
    progress = Progress(epoch=2, step=3, update=13, losses=torch.zeros(4, 5), sharded=True)
    progress.reshard(2, sharded=False, updates=5)
    assert (progress.epoch, progress.step, progress.update, progress.losses) == (2, 0, 10, None)


def test_an_epoch_of_own_shards_continues_on_the_same_number_of_processes():
    progress = Progress(epoch=2, step=3, update=13, losses=torch.zeros(4, 5), sharded=True)
    progress.reshard(4, sharded=True, updates=5)
    assert (progress.step, progress.update) == (3, 13)


@pytest.mark.parametrize("manifest", ["[1]", "{}", "[]"])
def test_a_manifest_that_lists_no_progress_is_damaged(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest)
    assert find_damage(tmp_path)
