"""Label tables and test lists in the formats of many programs."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_script.source import DatasetError
from dataset_script.tables import read_test_names
from tests.dataset_script.raw_folders import arranged

PLAIN = "file_name,label\n1.png,a\n2.png,b\n"
TABLES = {
    "plain": PLAIN.encode(),
    "BOM": PLAIN.encode("utf-8-sig"),
    "UTF-16": PLAIN.replace(",", ";").replace("\n", "\r\n").encode("utf-16"),
    "tabs": PLAIN.replace(",", "\t").encode(),
    "Windows": b"Image Path,Cell Type,Patient\nC:\\data\\i\\1.png,a,7\nC:\\data\\i\\2.png,b,8\n",
    "no header": b"1.png,a\n2.png,b\n",
    "label first": b"a;i/1.png\nb;i/2.png\n",
    "without endings": b"image_id,diagnosis\n1,a\n2,b\n",
    "quotes": b'file,class\n"1.png","a"\n"2.png","b"\n',
    "more columns": b"x,file_name,notes,label\n0,1.png,,a\n0,2.png,,b\n",
    "Excel": b"sep=;\r\nx;file_name;label\r\n0;1.png;a\r\n0;2.png;b\r\n",
    "lines in a cell": b'file_name,note,label\n1.png,"two\nlines",a\n2.png,,b\n',
    "bars, old Mac": PLAIN.replace(",", "|").replace("\n", "\r").encode(),
    "other case": PLAIN.replace(".png", ".PNG").encode(),
    "code page": "Datei,Größe,label\n1.png,groß,a\n2.png,,b\n".encode("cp1252"),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_label_table_of_any_program_is_read(table: bytes) -> None:
    for options in ({"labels": ("mine.csv", table)}, {"others": {"labels.csv": table}}):
        assert arranged("i/1.png", "i/2.png", **options).files == {"a": ["i/1.png"], "b": ["i/2.png"]}


def test_a_label_table_may_be_json_lines() -> None:
    lines = b'{"file_name": "1.png", "label": 0}\n{"label": 1, "file_name": "2.png"}\n'
    found = arranged("i/1.png", "i/2.png", others={"i/metadata.jsonl": lines})
    assert found.files == {"0": ["i/1.png"], "1": ["i/2.png"]}


def test_a_label_table_may_be_parquet_with_splits_and_groups() -> None:
    columns = ["file_name", "label", "split", "patient_id"]
    values = [["1.png", "2.png"], [0, 1], ["Train", "val"], ["p", "q"]]
    pq.write_table(pa.table(values, columns), table := io.BytesIO())
    found = arranged("i/1.png", "i/2.png", labels=("t.parquet", table.getvalue()))
    assert found.files == {"0": ["i/1.png"], "1": ["i/2.png"]}
    assert found.split_of == {"i/1.png": "train", "i/2.png": "validation"}
    assert found.group_of == {"i/1.png": "p", "i/2.png": "q"}


FOLDERS = b"file_name,label\nx/1,a\nC:\\data\\y\\1,b\n"
ONE_NAME = [
    (["i/x.png", "i/X.png"], b"x.png,a\nX.png,b\n", {"a": ["i/x.png"], "b": ["i/X.png"]}),
    (["x/1", "y/1"], FOLDERS, {"a": ["x/1"], "b": ["y/1"]}),  # files without an ending
    # a bare name that matches several files labels none of them
    (["x/1", "y/1", "x/2", "y/3"], b"file_name,label\n1,a\n2,a\n3,b\n", {"a": ["x/2"], "b": ["y/3"]}),
]


@pytest.mark.parametrize(("paths", "table", "files"), ONE_NAME)
def test_files_of_one_name_are_told_apart_by_case_and_folder(paths, table, files) -> None:
    assert arranged(*paths, labels=("l.csv", table)).files == files


def test_a_label_table_in_a_split_folder_is_relative_to_it() -> None:
    tables = {"train/metadata.csv": PLAIN.encode(), "test/metadata.csv": b"file_name,label\n1.png,b\n"}
    found = arranged("train/1.png", "train/2.png", "test/1.png", others=tables)
    assert found.files == {"a": ["train/1.png"], "b": ["test/1.png", "train/2.png"]}


CODE_PAGE = "labels.csv is in an unknown code page .*: save it as UTF-8"
REFUSED = [
    (b"file_name,score,x\n1.png,1,2\n", "no column of label names .found: 'file_name', 'score', 'x'"),
    (b"label,score,x\na,1,2\n", "no column of file names"),
    (b"file_name,label\n7.png,a\n", "none of the 1 rows .* names a file of the source .for example 7.png"),
    (b"", "is empty"),
    ("file_name,label\n1.png,细胞\n2.png,b\n".encode("gb18030"), CODE_PAGE),
    ("file_name,label\n1.png,бласты\n2.png,b\n".encode("cp1251"), CODE_PAGE),
    (b"file_name,label\n1.png,a\n2.png,a\n", "two classes .* found: a"),
    (b"file_name,label\n1.png,a\n1.png,b\n2.png,\n", "found: none; skipped: .*several labels in the table"),
]


@pytest.mark.parametrize(("table", "sentence"), REFUSED)
def test_an_unusable_label_table_is_refused(table, sentence) -> None:
    with pytest.raises(DatasetError, match=sentence):
        arranged("i/1.png", "i/2.png", labels=("labels.csv", table))


def test_a_label_table_with_other_classes_than_the_folders_is_refused() -> None:
    with pytest.raises(
        DatasetError, match=r"classes in labels\.csv \(a, b\) are not those of the folders \(x, y\)"
    ):
        arranged("x/1.png", "y/2.png", others={"labels.csv": PLAIN.encode()})


LISTS = [
    (b'"cell, 1.png",0\n"cell, 2.png",1\n', {"cell, 1.png", "cell, 2.png"}),
    (b'0, "cell, 1.png"\n', {"cell, 1.png"}),
    (b'image;label\n"cell, 1.png";0\n', {"cell, 1.png"}),
    (b"cell, 1.png\t0\n", {"cell, 1.png"}),
    (b'"1.png\n2.png\n', {"1.png", "2.png"}),
    (b"C:\\a\\1.png\n./a//2.png\n", {"C:/a/1.png", "a/2.png"}),
    ("1.png\r\n2.png\r\n".encode("utf-16"), {"1.png", "2.png"}),
    ("ä.png\n".encode("cp1252"), {"ä.png"}),
    ("\ufeffé.png\n".encode(), {"é.png"}),
]


@pytest.mark.parametrize(("data", "names"), LISTS)
def test_a_test_list_of_any_program_is_read(data: bytes, names: set[str], tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(data)
    assert read_test_names(tmp_path / "names") == names


@pytest.mark.parametrize(
    ("data", "sentence"), [(b"x" * 200_000, "is not a table"), (b"a\nb\n", "no image file")]
)
def test_a_test_list_without_file_names_is_refused(data: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(data)
    with pytest.raises(DatasetError, match=sentence):
        read_test_names(tmp_path / "names")
