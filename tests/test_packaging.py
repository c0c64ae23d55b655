"""The wheel is complete, dependency ranges are true and locked, and each dependency has its reason in SECURITY.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LISTED = chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
REQUIREMENTS = [one for one in map(Requirement, LISTED) if one.name != PROJECT["name"]]
LOCKED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))

OUTSIDE = """
import json, pathlib, sys
from PIL import Image
import hub_model, space, train_accelerate
from hub_model import Classifier
here = pathlib.Path(sys.argv[1])
for module in (hub_model, space, train_accelerate):
    assert pathlib.Path(module.__file__).is_relative_to(here), module.__file__
answer = Classifier.from_pretrained(sys.argv[2]).predict([Image.open(sys.argv[3])])
import evaluate
metric = evaluate.load(str(pathlib.Path(hub_model.__file__).parent / "metrics" / "cell_classification"))
found = metric.compute(prediction_scores=[[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], references=[0, 1, 0])
print(json.dumps([answer.labels[0], found["accuracy"]]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of the tracked files, unpacked as pip does, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("hub_model/release/", "tests/")):
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", folder / "installed", folder / "source"], check=True)
    return folder / "installed"


def run_installed(installed: Path, tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed), "HF_HOME": str(tmp_path)}
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)


def test_the_wheel_holds_what_is_not_python(installed: Path) -> None:
    assert (installed / "space" / "style.css").is_file()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    packages = ("dataset_script/", "hub_model/", "local_hub/", "space/", "training/")
    wanted = [name for name in tracked.splitlines() if name.startswith(packages)]
    wanted = [
        name for name in wanted if not name.startswith("hub_model/release/") and (ROOT / name).is_file()
    ]
    documents = {"hub_model/EXPERIMENTS.md"}
    assert [name for name in wanted if not (installed / name).is_file() and name not in documents] == []
    assert not (installed / "hub_model" / "release").exists()


def test_a_prediction_and_a_metric_work_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    Image.new("RGB", (96, 96), "purple").save(tmp_path / "cell.png")
    arguments = [str(installed), str(ROOT / "hub_model" / "release"), str(tmp_path / "cell.png")]
    done = run_installed(installed, tmp_path, sys.executable, "-c", OUTSIDE, *arguments)
    assert done.returncode == 0, done.stderr
    label, accuracy = json.loads(done.stdout.strip().splitlines()[-1])
    assert label in ("BLA", "EOS", "LYT", "MON", "NGS", "NIF", "PMO")
    assert accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize("script", PROJECT["scripts"])
def test_every_console_script_has_a_help_page(installed: Path, tmp_path: Path, script: str) -> None:
    done = run_installed(installed, tmp_path, sys.executable, str(installed / "bin" / script), "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


def test_each_range_starts_at_the_locked_version_and_ends_before_the_next_major() -> None:
    locked = {name.lower().replace("_", "-"): Version(version) for name, version in LOCKED.items()}
    assert len(REQUIREMENTS) > 30
    for requirement in REQUIREMENTS:
        version = locked[requirement.name.lower().replace("_", "-")]
        lowest = next(Version(one.version) for one in requirement.specifier if one.operator == ">=")
        assert version in requirement.specifier, requirement
        assert lowest.release[:2] == version.release[: len(lowest.release)][:2], requirement
        assert Version(str(version.major + 1)) not in requirement.specifier, requirement


def test_every_dependency_has_its_reason_in_the_security_page() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    assert [one.name for one in REQUIREMENTS if f"`{one.name}`" not in page] == []
    assert len(page.splitlines()) <= 80
