"""`python -m runs.chromium` finds a browser, and says in one sentence where none can be had."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    """On a machine whose programs are those of `folder`, from which no download can be reached."""
    environment = os.environ | {"PATH": str(folder), "PLAYWRIGHT_BROWSERS_PATH": str(folder / "browsers")}
    environment["PLAYWRIGHT_DOWNLOAD_HOST"] = "http://127.0.0.1:9"
    command = [sys.executable, "-m", "runs.chromium"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def program(path: Path, exit_code: int) -> Path:
    path.write_text(f"#!/bin/sh\nexit {exit_code}\n")
    path.chmod(0o755)
    return path


def test_a_browser_of_the_system_is_used_if_it_starts(tmp_path: Path) -> None:
    program(tmp_path / "chromium", 127)  # as where shared libraries are missing
    found = program(tmp_path / "chromium-browser", 0)
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (0, f"browser: {found}\n")


def test_without_any_browser_one_sentence_says_what_to_install(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "apt-get install chromium" in done.stderr and "make test BROWSER=no" in done.stderr
