"""Which folders are classes, and which images a test list names."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset_script.classes import arrange, find_listed
from dataset_script.source import DatasetError
from dataset_script.tables import read_test_names
from tests.dataset_script.raw_folders import build, noise_folder, rows_of


class Listed:
    """A source of nothing but names."""

    def __init__(self, *paths: str):
        self.paths = paths

    def listing(self) -> list[tuple[str, str]]:
        return [(path, "") for path in self.paths]

    def read(self, path: str) -> bytes:
        return b""


@pytest.mark.parametrize(
    ("names", "on_list", "said"),
    [
        ("a/0.png\na/1.png\n", {"a/0.png", "a/1.png"}, "2 names, 2 of them here, 0 absent"),
        ("0.png\n", {"a/0.png", "b/0.png"}, "1 names, 1 of them here, 0 absent"),
        ("a/0.png\na/99.png\n", {"a/0.png"}, "2 names, 1 of them here, 1 absent"),
    ],
)
def test_a_listed_name_with_folders_is_one_image_and_a_bare_one_is_all_of_its_name(
    names: str, on_list: set[str], said: str, tmp_path: Path, capsys
) -> None:
    raw = noise_folder(tmp_path / "raw", ["a", "b"], 8)
    (tmp_path / "names.txt").write_text(names)
    assert build(raw, tmp_path / "out", "--test_names", tmp_path / "names.txt") == 0
    rows = rows_of(tmp_path / "out" / "splits.csv")
    assert {row["file_name"] for row in rows if row["split"] == "test"} == on_list
    assert {row["file_name"] for row in rows if row["on_test_list"] == "1"} == on_list
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("/elsewhere/a/0.png", ["set/a/s1/0.png", "set/a/s2/0.png"]),
        ("a/s1/0.png", ["set/a/s1/0.png"]),
        ("a/s3/0.png", ["set/a/s1/0.png", "set/a/s2/0.png"]),
        ("s1/0.png", ["set/a/s1/0.png"]),
        ("unknown/0.png", ["set/a/s1/0.png", "set/a/s2/0.png", "set/b/0.png"]),
        ("c/0.png", []),  # a class that --classes leaves out
        ("b/1.png", []),
    ],
)
def test_folders_of_a_listed_name_choose_the_class_and_then_the_nearest_paths(
    name: str, paths: list[str]
) -> None:
    files = ("set/a/s1/0.png", "set/a/s2/0.png", "set/a/s2/1.png", "set/b/0.png", "set/c/0.png")
    assert find_listed(arrange(Listed(*files), ["a", "b"]), [name]) == {name: paths}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('"cell, 1.png",0\n"cell, 2.png",1\n', {"cell, 1.png", "cell, 2.png"}),
        ('0, "cell, 1.png"\n', {"cell, 1.png"}),
        ('image;label\n"cell, 1.png";0\n', {"cell, 1.png"}),
        ("cell, 1.png\t0\n", {"cell, 1.png"}),
        ('"1.png\n2.png\n', {"1.png", "2.png"}),
        ("C:\\a\\1.png\n./a//2.png\n", {"C:/a/1.png", "a/2.png"}),
        ("1.png\r\n2.png\r\n".encode("utf-16"), {"1.png", "2.png"}),
        ("file;label\r\na\\1.png;x\r\n".encode("utf-16-le"), {"a/1.png"}),
        ("ä.png\n".encode("cp1252"), {"ä.png"}),
        ("\ufeffé.png\n", {"é.png"}),
    ],
)
def test_a_test_list_is_read_whoever_wrote_it(text: str | bytes, names: set[str], tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(text.encode() if isinstance(text, str) else text)
    assert read_test_names(tmp_path / "names") == names


def test_a_test_list_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("x" * 200_000)
    with pytest.raises(DatasetError, match="no list of file names"):
        read_test_names(tmp_path / "names")


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        (
            ("train/0.png", "val/1.png", "test/2.png"),
            "the folders test, train, val are splits and hold no folder a class",
        ),
        (("\udcff/0.png", "\\xff/1.png"), "look alike"),
    ],
)
def test_folders_that_cannot_be_classes_are_refused(paths: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(DatasetError, match=sentence):
        arrange(Listed(*paths))


def test_a_class_may_be_called_test() -> None:
    assert list(arrange(Listed("test/0.png", "control/1.png")).files) == ["control", "test"]


def test_when_no_file_can_be_kept_the_reasons_are_named(tmp_path: Path, capsys) -> None:
    raw = noise_folder(tmp_path / "raw", ["a", "b"], 1)
    (raw / "b" / "0.png").write_bytes((raw / "a" / "0.png").read_bytes())
    assert build(raw, tmp_path / "out") == 1
    assert "same bytes under different labels (2)" in capsys.readouterr().err
