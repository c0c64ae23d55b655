"""The release's training recipe at a small scale: one command trains teacher and student and builds the model repo; resumable."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.stress, pytest.mark.timeout(3600)]

SCRIPT = Path(__file__).parents[2] / "runs" / "release.sh"


def release(data: Path, out: Path, **variables: str) -> subprocess.CompletedProcess:
    tiny = {"MINUTES": "0.4", "SIZE": "64", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(SCRIPT), str(data), str(out)]
    return subprocess.run(command, env=os.environ | tiny | variables, capture_output=True, text=True)


def test_one_command_makes_a_teacher_a_student_and_a_model_repo(drawn_folder, drawn_dataset, tmp_path):
    done = release(drawn_folder, tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads((tmp_path / "out" / "student" / "environment.json").read_text())
    assert facts["model"]["teachers"][0]["architecture"] == "efficientnet_lite0"
    assert (tmp_path / "out" / "student" / "logits_test.parquet").is_file()
    assert (tmp_path / "out" / "model" / "README.md").is_file()
    shutil.rmtree(tmp_path / "out" / "student")  # a rerun trains it again, with the same teacher
    teacher = (tmp_path / "out" / "teacher" / "model.safetensors").read_bytes()
    assert release(drawn_folder, tmp_path / "out").returncode == 0
    assert (tmp_path / "out" / "teacher" / "model.safetensors").read_bytes() == teacher
    variables = {"TEACHER": str(tmp_path / "out" / "teacher"), "START": str(tmp_path / "out" / "model")}
    parquet = release(drawn_dataset, tmp_path / "parquet", **variables)
    assert parquet.returncode == 0, parquet.stderr[-3000:]
    assert not (tmp_path / "parquet" / "dataset").exists(), "Parquet is used as it is"


def test_without_arguments_it_prints_its_usage():
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2 and "MINUTES=8 runs/release.sh DATA OUT" in done.stderr
