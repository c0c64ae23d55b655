"""The exports of the Space's review desk can be fine-tuned on, and built into a dataset, without any changes."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hub_model.inference.classifier import Classifier
from hub_model.inference.model_repo import read_config
from space.desk import Desk
from space.export import class_folders, dataset_repo, zipped
from tests.small_model_repo import LABELS
from tests.space.small_desk import ORIGIN, filled


@pytest.fixture(scope="module")
def desk(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Seventy cells, one with a corrected label."""
    desk = filled(Classifier.from_pretrained(small_model), tmp_path_factory.mktemp("desk"), per_class=10)
    desk.correct({"0": "EOS"}, LABELS)
    return desk


def extracted(path: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(path.with_suffix(""))
    return path.with_suffix("")


@pytest.mark.stress
@pytest.mark.timeout(900)
def test_the_exported_dataset_can_be_fine_tuned_on(desk: Desk, small_model: Path, tmp_path: Path) -> None:
    descriptions = Classifier.from_pretrained(small_model).label_descriptions
    data = extracted(zipped(dataset_repo(desk, ORIGIN, descriptions), tmp_path / "export.zip"))
    run = tmp_path / "run"
    command = [sys.executable, "train_accelerate.py", "--dataset", str(data), "--init_from", str(small_model)]
    command += ["--epochs", "1", "--batch_size", "8", "--output_dir", str(run)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    config = read_config(run / "config.json", "run")
    assert config.label_names == tuple(LABELS) and config.label_descriptions == descriptions
    assert (run / "model.safetensors").is_file()


@pytest.mark.stress
@pytest.mark.timeout(900)
def test_the_exported_class_folders_can_be_built(desk: Desk, tmp_path: Path) -> None:
    folders = extracted(zipped(class_folders(desk), tmp_path / "by-class.zip"))
    command = [sys.executable, "-m", "dataset_script", "build", str(folders), str(tmp_path / "dataset")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((tmp_path / "dataset").rglob("train-*.parquet"))
