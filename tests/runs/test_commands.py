"""`make run`, `make space` and `make publish` answer an unusable folder with one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import runs.pipeline
import runs.publish
import runs.space

COMMANDS = [runs.pipeline.main, runs.space.main, lambda argv: runs.publish.main(["anna", *argv])]


@pytest.mark.parametrize("command", COMMANDS, ids=["run", "space", "publish"])
def test_an_unusable_folder_is_one_sentence(
    command: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert command(["--out", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'file'} cannot be a folder (File exists)\n"
    assert command(["--data", str(tmp_path / "none"), "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'} is not a directory\n"
