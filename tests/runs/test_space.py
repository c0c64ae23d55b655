"""`make space`: model and dataset are on the embedded Hub before the Space starts, and a rerun does nothing twice."""

from __future__ import annotations

import os
import subprocess

import pytest

import runs.folders
import runs.space
from local_hub import LocalHub


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that `runs.space` would start."""
    commands = []

    def start(command: list[str], **_: object) -> subprocess.CompletedProcess:
        commands.append([str(word) for word in command[1:]])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", start)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # it gets the URL of the embedded Hub
    return commands


def test_the_second_time_nothing_is_built_or_pushed(started, drawn_dataset, tmp_path):
    space = ["-m", "space", "--model", "localdev/rexnet-150-bone-marrow"]
    space += ["--dataset", "localdev/bone-marrow-cells"]
    pushes = ["dataset_script", "hub_model"]
    command = ["--data", str(drawn_dataset), "--out", str(tmp_path)]
    assert runs.space.main(command) == 0
    assert [words[1] for words in started] == [*pushes, "space"] and started[-1] == space
    started.clear()
    assert runs.space.main(command) == 0
    assert started == [space]


def test_a_dataset_is_rebuilt_if_its_images_or_its_test_list_have_changed(started, tmp_path):
    (tmp_path / "raw" / "A").mkdir(parents=True)
    (tmp_path / "raw" / "A" / "1.jpg").write_bytes(b"one")

    def builds() -> int:
        started.clear()
        runs.folders.dataset_folder(tmp_path / "raw", tmp_path / "out")
        return sum(words[1:3] == ["dataset_script", "build"] for words in started)

    (tmp_path / "out" / "dataset").mkdir(parents=True)
    (tmp_path / "out" / "dataset" / "README.md").touch()  # as the build would
    assert [builds(), builds()] == [1, 0]
    (tmp_path / "raw" / "A" / "1.jpg").write_bytes(b"another")
    assert [builds(), builds()] == [1, 0]
    (tmp_path / runs.folders.TEST_NAMES).write_text("1.jpg")
    assert [builds(), builds()] == [1, 0]


def test_two_runs_cannot_share_a_folder(started, drawn_dataset, tmp_path, capsys):
    with LocalHub(tmp_path / "hub"):
        assert runs.space.main(["--data", str(drawn_dataset), "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error == f"error: another local hub already serves {tmp_path / 'hub'}\n"
    assert started == []


def test_another_port_is_used_if_the_default_one_is_taken(tmp_path, monkeypatch):
    with LocalHub(tmp_path / "one") as other:
        monkeypatch.setattr(runs.folders, "DEFAULT_PORT", other.port)
        with runs.folders.embedded_hub(tmp_path / "two") as hub:
            assert hub.port != other.port
    assert runs.folders.embedded_hub(tmp_path / "three").port == other.port
