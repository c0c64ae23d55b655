"""`make` and its commands print one sentence if they cannot work."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import runs.pipeline
import runs.publish
import runs.space
from runs.folders import ROOT

COMMANDS = [runs.pipeline.main, runs.space.main, lambda argv: runs.publish.main(["anna", *argv])]


@pytest.mark.parametrize("command", COMMANDS, ids=["run", "space", "publish"])
def test_an_unusable_folder_is_one_sentence(command, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command(["--out", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err == f"error: cannot create directory {tmp_path / 'file'}: File exists\n"
    assert command(["--data", str(tmp_path / "none"), "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'} is not a directory\n"


def make(folder: Path, *arguments: str, path: str) -> str:
    """Run `make` in a folder with the Makefile, where it must fail; return what it prints."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    command = [shutil.which("make"), *arguments]
    done = subprocess.run(command, cwd=folder, env={"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 2
    return done.stdout + done.stderr


def test_make_says_which_python_it_needs(tmp_path):
    old = tmp_path / "bin" / "python3"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\nexit 1\n")  # what the version check returns for an old Python
    old.chmod(0o755)
    output = make(tmp_path, "run", path=str(old.parent))
    assert "error: Python 3.11+ is required and none was found" in output
    assert not (tmp_path / ".venv").exists()


def test_make_publish_asks_for_the_owner(tmp_path):
    (tmp_path / ".venv").mkdir()
    output = make(tmp_path, "publish", "--old-file=.venv/installed", path="/usr/bin:/bin")
    assert "make publish OWNER=name" in output and "Python" not in output
