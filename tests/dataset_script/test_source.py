"""Symlinks, zips and the names in them: read if that is safe, else listed with the reason."""

from __future__ import annotations

import io
import os
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from dataset_script.classes import arrange
from dataset_script.source import DatasetError, FolderSource, Sources
from tests.dataset_script.raw_folders import PICTURE


def write(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(PICTURE)
    return root


@pytest.mark.parametrize("follow", [False, True])
def test_symlinks_out_of_the_folder_are_followed_only_on_request(follow: bool, tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", "o.png")
    raw = write(tmp_path / "raw", "store/a/1.png", "blobs/x", "b/2.png")
    os.symlink(raw / "store/a", raw / "a")
    os.symlink("../blobs/x", raw / "b/3.png")
    os.symlink(raw, raw / "b/loop")
    os.symlink(outside, raw / "c")
    sources = Sources([str(raw)], follow)
    found = arrange(sources)
    classes = {"a": ["a/1.png"], "b": ["b/2.png", "b/3.png"]} | ({"c": ["c/o.png"]} if follow else {})
    assert found.files == classes
    reasons = {"read through a symlink to it": 2, "symlink to a folder that is read already": 1}
    reasons |= {} if follow else {"symlink out of the folder": 1}
    assert Counter(item.reason for item in found.rejected) == reasons
    assert all(sources.read(path) == PICTURE for paths in classes.values() for path in paths)


def test_a_folder_replaced_by_a_symlink_after_listing_is_not_read(tmp_path: Path) -> None:
    secret, raw = write(tmp_path / "secret", "1.png"), write(tmp_path / "raw", "a/1.png", "b/1.png")
    source = FolderSource(raw)
    assert len(list(source.listing())) == 2
    (raw / "a").rename(raw / "old")
    os.symlink(secret, raw / "a")
    with pytest.raises(OSError, match="link out of the folder"):
        source.read("a/1.png")


def zipped(names: list[str], encoding: str = "utf-8") -> bytes:
    """Return a zip of images whose names have an encoding, without the UTF-8 flag."""
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for number, name in enumerate(names):
            archive.writestr("QXZ"[number] * len(name.encode(encoding)), PICTURE)
    data = buffer.getvalue()
    for number, name in enumerate(names):
        raw = name.encode(encoding)
        data = data.replace(b"QXZ"[number : number + 1] * len(raw), raw)
    return data


ZIPS = [
    (["blåst/11.png", "бласты/22.png"], "utf-8", None, ["blåst", "бласты"]),  # macOS
    (["Größe/111.png", "b/22222222.png"], "cp850", None, ["Größe", "b"]),
    (["бласты/1.png", "b/222222222.png"], "cp866", "cp866", ["b", "бласты"]),
    (["细胞/11.png", "b/222222222.png"], "gbk", "gbk", ["b", "细胞"]),
    (["Größe/111.png", "b/22222222.png"], "cp1252", "cp1252", ["Größe", "b"]),
    (["BLA\\", "BLA\\11.png", "EOS\\222222.png"], "utf-8", None, ["BLA", "EOS"]),
    (["./BLA/11.png", "EOS/.//22222.png", "BLA/inner.zip"], "utf-8", None, ["BLA", "EOS"]),
]


@pytest.mark.parametrize(("names", "encoding", "option", "classes"), ZIPS)
def test_names_in_zips_are_decoded_or_need_a_code_page(names, encoding, option, classes, tmp_path) -> None:
    (tmp_path / "raw.zip").write_bytes(zipped(names, encoding))
    if option:
        with pytest.raises(DatasetError, match=r"unknown code page .*--zip_encoding"):
            arrange(Sources([str(tmp_path / "raw.zip")]))
    assert list(arrange(Sources([str(tmp_path / "raw.zip")], zip_encoding=option)).files) == classes


def test_a_zip_in_a_folder_counts_as_a_folder_and_other_archives_are_rejected(tmp_path: Path) -> None:
    raw = write(tmp_path, "b/9.png", "d.tar.gz")
    (raw / "a.zip").write_bytes(zipped(["11.png", "222.png"]))
    (raw / "c.zip").write_bytes(b"PK no zip")
    sources = Sources([str(raw)])
    found = arrange(sources)
    assert found.files == {"a": ["a.zip/11.png", "a.zip/222.png"], "b": ["b/9.png"]}
    assert sources.read("a.zip/11.png") == PICTURE
    reasons = {item.path: item.reason for item in found.rejected}
    assert reasons == {"c.zip": "damaged zip", "d.tar.gz": "archive that is not read"}


@pytest.mark.parametrize("name", ["a.zip", "a.ZIP"])
def test_a_zip_and_a_folder_of_one_name_are_one_class(name: str, tmp_path: Path) -> None:
    raw = write(tmp_path, "a/1.png", "b/2.png")
    (raw / name).write_bytes(zipped(["33.png"]))
    assert arrange(Sources([str(raw)])).files == {"a": ["a/1.png", f"{name}/33.png"], "b": ["b/2.png"]}


def test_other_archives_have_to_be_unpacked(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"skipped: 1 .gz \(archive that is not read: unpack it"):
        arrange(Sources([str(write(tmp_path, "a.tar.gz", "b.rar"))]))
