"""`make run`, `make space` and `make publish`: one sentence for bad folders; the README holds generated figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import runs.pipeline
import runs.publish
import runs.space
from runs.readme import README, filled

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


def test_the_figures_of_the_readme_are_those_of_their_files() -> None:
    assert filled(README.read_text()) == README.read_text()
