"""The wheel is complete, dependency ranges match the lock file, and SECURITY.md gives a reason for each dependency."""

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
import importlib.metadata, json, pathlib, sys
from PIL import Image
installed, release, image = sys.argv[1:]
(wheel,) = importlib.metadata.distributions(path=[installed])
mains = {script.name: script.load() for script in wheel.entry_points}
import evaluate, hub_model
for main in mains.values():
    module = sys.modules[main.__module__]
    assert pathlib.Path(module.__file__).is_relative_to(installed), module.__file__
answer = hub_model.Classifier.from_pretrained(release).predict([Image.open(image)])
metric = evaluate.load(str(pathlib.Path(hub_model.__file__).parent / "metrics" / "cell_classification"))
found = metric.compute(prediction_scores=[[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], references=[0, 1, 0])
print(json.dumps([sorted(mains), answer.labels[0], found["accuracy"]]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which pip installed the wheel of the tracked files, without dependencies."""
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


def test_the_wheel_contains_all_files_of_its_packages(installed: Path) -> None:
    assert (installed / "space" / "style.css").is_file()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    packages = ("dataset_script/", "hub_model/", "local_hub/", "space/", "training/")
    names = [name for name in tracked.splitlines() if name.startswith(packages) and (ROOT / name).is_file()]
    missing = [name for name in names if not (installed / name).is_file()]
    assert [name for name in missing if not name.startswith("hub_model/release/")] == []
    assert not (installed / "hub_model" / "release").exists()


def test_the_wheel_has_working_scripts_classifier_and_metric(installed: Path, tmp_path: Path) -> None:
    Image.new("RGB", (96, 96), "purple").save(tmp_path / "cell.png")
    arguments = [str(installed), str(ROOT / "hub_model" / "release"), str(tmp_path / "cell.png")]
    environment = os.environ | {"PYTHONPATH": str(installed), "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", OUTSIDE, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scripts, label, accuracy = json.loads(done.stdout.strip().splitlines()[-1])
    assert scripts == ["dataset-script", "hub-model", "local-hub", "space", "train-accelerate"]
    assert [script for script in scripts if not (installed / "bin" / script).is_file()] == []
    assert label in ("BLA", "EOS", "LYT", "MON", "NGS", "NIF", "PMO")
    assert accuracy == pytest.approx(2 / 3)


def test_each_range_starts_at_the_locked_version_and_ends_before_the_next_major() -> None:
    locked = {name.lower().replace("_", "-"): Version(version) for name, version in LOCKED.items()}
    assert len(REQUIREMENTS) > 30
    for requirement in REQUIREMENTS:
        version = locked[requirement.name.lower().replace("_", "-")]
        lowest = next(Version(one.version) for one in requirement.specifier if one.operator == ">=")
        assert version in requirement.specifier, requirement
        assert lowest.release[:2] == version.release[: len(lowest.release)][:2], requirement
        assert Version(str(version.major + 1)) not in requirement.specifier, requirement


def test_the_security_page_gives_a_reason_for_every_dependency() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    assert [one.name for one in REQUIREMENTS if f"`{one.name}`" not in page] == []
    assert len(page.splitlines()) <= 80
