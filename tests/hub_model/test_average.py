"""Averaged weights: two runs of one architecture, resumed to be measured, to a card that says so."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hub_model.__main__ import main


@pytest.fixture
def other(run_folder: Path, tmp_path: Path) -> Path:
    """A run of the same architecture with weights of its own."""
    folder = shutil.copytree(run_folder, tmp_path / "other")
    changed = {name: value * 3 for name, value in load_file(folder / "model.safetensors").items()}
    save_file(changed, folder / "model.safetensors")
    return folder


def test_averaged_weights_are_measured_by_resuming_and_the_card_says_so(run_folder, other, tmp_path):
    assert main(["average", str(tmp_path / "soup"), f"{run_folder}=3", f"{other}=1"]) == 0
    before, now = (load_file(f / "model.safetensors") for f in (run_folder, tmp_path / "soup"))
    for name, value in before.items():
        torch.testing.assert_close(now[name], (value.double() * 1.5).to(value.dtype))
    args = json.loads((run_folder / "args.json").read_text())
    command = ["train_accelerate.py", "--dataset", args["dataset"], "--output_dir", tmp_path / "soup"]
    command += ["--no-pretrained", "--model", "test_mambaout", "--image_size", "64", "--epochs", "1"]
    command += ["--resume", "--reestimate_batch_norm"]
    subprocess.run([sys.executable, *map(str, command)], check=True)
    assert main(["build", str(tmp_path / "soup"), str(tmp_path / "model")]) == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert "average of those (0.75) and of the unpublished run `other` (0.25)." in card
    assert main(["check", str(tmp_path / "model")]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{run}=0"], "must be a number above 0"),
        (["{out}"], "no checkpoints"),
        (["{run}", "{out}"], "is missing"),
    ],
)
def test_runs_that_cannot_be_averaged_are_one_sentence(run_folder, tmp_path, capsys, words, said):
    words = [word.format(run=run_folder, out=tmp_path / "none") for word in words]
    assert main(["average", str(tmp_path / "out"), *words]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
