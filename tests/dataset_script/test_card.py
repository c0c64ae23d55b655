"""The card, its figures and its front matter, whatever the classes are called and whoever edited it."""

from __future__ import annotations

import html
import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from dataset_script.__main__ import main
from dataset_script.card import plain
from dataset_script.figures import draw_figures
from dataset_script.records import Row, Summary
from tests.dataset_script.raw_folders import encoded, noise_folder, rows_of

PICTURE = encoded(Image.new("RGB", (64, 64)), "PNG")


def test_every_class_has_its_own_bar_and_slice(tmp_path: Path, monkeypatch) -> None:
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    classes = [f"plasma cells of the patient {number}" for number in range(3)]
    rows = [Row("", b"", 1, label, split="train") for label in (0, 1, 1, 2)]
    draw_figures(
        tmp_path,
        Summary(tmp_path, classes, 4, rows, [], 0, 0, 4, 0, 0, 0, {"": "own"}, []),
        lambda row: PICTURE,
    )
    bar, pie = (figure.axes[0] for figure in figures)
    assert [patch.get_height() for patch in bar.containers[0]] == [1, 2, 1]
    assert len({patch.get_x() for patch in bar.containers[0]}) == 3
    assert [text.get_text() for text in bar.get_xticklabels()] == [classes[0][:24]] * 3
    assert len(pie.patches) == 3


@pytest.mark.parametrize("name", ["it's", "no. #1 & <b>", 'a "b" `c` | $d$'])
def test_a_name_reads_in_the_card_as_it_is(name: str) -> None:
    assert html.unescape(plain(name)) == name
    assert not set(plain(name)) & set("<>|`$") and "&&" not in plain(name)


def test_control_characters_of_a_class_reach_neither_terminal_nor_card(tmp_path: Path, capsys) -> None:
    raw = noise_folder(tmp_path / "raw", ["a\x1b[31m", "b\nc", "d\x9b2J"], 6)
    assert main(["build", str(raw), str(tmp_path / "out")]) == 0
    written = capsys.readouterr().out + (tmp_path / "out" / "README.md").read_text()
    assert not {char for char in written if not char.isprintable()} - {"\n"}
    labels = {row["label"] for row in rows_of(tmp_path / "out" / "splits.csv")}
    assert labels == {r"a\x1b[31m", r"b\x0ac", r"d\x9b2J"}


@pytest.mark.parametrize(
    "front_matter",
    ["license: [a", "- license", "dataset_info: [1]", "dataset_info: {splits: [1]}", "dataset_info: {splits: [{}]}"],
)  # fmt: skip
def test_front_matter_that_was_edited_badly_is_one_sentence(
    front_matter: str, drawn_dataset: Path, tmp_path: Path, capsys
) -> None:
    folder = shutil.copytree(drawn_dataset, tmp_path / "dataset")
    (folder / "README.md").write_text(f"---\n{front_matter}\n---\n\n# Cells\n")
    assert main(["push", str(folder), "owner/name"]) == 1
    error = capsys.readouterr().err
    assert "README.md has front matter" in error and error.count("\n") == 1
