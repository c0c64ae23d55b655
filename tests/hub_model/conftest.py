"""A trained run and its model repo; for bulk scoring, a tiny model, a folder of images and its predictions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hub_model.build import build
from tests.hub_model.scoring import score, write_images
from tests.hub_model.small_classifier import write_model

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """1,500 images, which are six shards."""
    return write_images(tmp_path_factory.mktemp("images"), 1500)


@pytest.fixture(scope="session")
def predictions(image_folder, model, tmp_path_factory) -> Path:
    """The predictions for `image_folder` by one uninterrupted process."""
    out = tmp_path_factory.mktemp("predictions") / "predictions.parquet"
    assert score(image_folder, model, out) == 0
    return out


@pytest.fixture(scope="session")
def run_folder(drawn_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of train_accelerate.py on synthetic cells."""
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
    build(run_folder, out)
    return out
