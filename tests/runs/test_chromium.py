"""`python -m runs.chromium` finds a browser and npm, or prints one sentence if one cannot be installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command with the programs of `folder` only, and without a network."""
    environment = os.environ | {"PATH": str(folder), "PLAYWRIGHT_BROWSERS_PATH": str(folder / "browsers")}
    environment["PLAYWRIGHT_DOWNLOAD_HOST"] = "http://127.0.0.1:9"
    command = [sys.executable, "-m", "runs.chromium"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def program(path: Path, exit_code: int) -> Path:
    path.write_text(f"#!/bin/sh\nexit {exit_code}\n")
    path.chmod(0o755)
    return path


def test_the_systems_browser_is_used_if_it_starts(tmp_path):
    program(tmp_path / "chromium", 127)  # as if shared libraries were missing
    browser = program(tmp_path / "chromium-browser", 0)
    program(tmp_path / "npm", 0)
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (0, f"browser: {browser}\n")


@pytest.mark.parametrize("missing", ["chromium", "npm"])
def test_one_sentence_names_what_is_missing_and_cannot_be_installed(missing, tmp_path):
    program(tmp_path / ("npm" if missing == "chromium" else "chromium"), 0)
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"apt-get install {missing}" in done.stderr and "make test BROWSER=no" in done.stderr
