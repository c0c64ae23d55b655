"""A trained run and its model repo; for bulk scoring, a model that costs nothing, images in shards and their predictions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_model.scoring import score, write_images
from tests.hub_model.small_classifier import write_model

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def many(tmp_path_factory) -> Path:
    """1,500 images, six pieces."""
    return write_images(tmp_path_factory.mktemp("many"), 1500)


@pytest.fixture(scope="session")
def of_many(many, model, tmp_path_factory) -> Path:
    """Their predictions, from an undisturbed run of one process."""
    out = tmp_path_factory.mktemp("of_many") / "predictions.parquet"
    assert score(many, model, out) == 0
    return out


@pytest.fixture(scope="session")
def run_folder(drawn_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of the real trainer on drawn cells."""
    out = tmp_path_factory.mktemp("run") / "run"
    command = [sys.executable, REPOSITORY / "train_accelerate.py", "--dataset", drawn_dataset]
    command += ["--output_dir", out, "--no-pretrained", "--model", "test_mambaout"]
    command += ["--image_size", "64", "--epochs", "1"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def model_folder(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "model"
    from hub_model.build import build

    build(run_folder, out)
    return out
