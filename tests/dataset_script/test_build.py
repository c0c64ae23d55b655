"""What the build makes of folders and zips, good and odd."""

from __future__ import annotations

import filecmp
import hashlib
import shutil
import stat
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from datasets import load_dataset
from PIL import Image

from tests.dataset_script.odd_files import write_odd_folder
from tests.dataset_script.raw_folders import build, noise_folder, rows_of, same_files
from tests.pictures import encoded

SEVEN = ["BLA", "EOS", "LYT", "MON", "NGS", "NIF", "PMO"]


def test_300_odd_files_beside_300_good_ones_are_counted_by_reason(tmp_path: Path, capsys) -> None:
    expected, out = write_odd_folder(tmp_path / "raw", tmp_path / "outside"), tmp_path / "out"
    assert build(tmp_path / "raw", out) == 0
    printed = capsys.readouterr()
    assert "600 files seen, 300 kept, 300 rejected" in printed.out and "Traceback" not in printed.err
    assert Counter(row["reason"] for row in rows_of(out / "rejected.csv")) == expected
    assert len(rows_of(out / "splits.csv")) == 300
    loaded = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert sum(row["image"].convert("RGB").size[0] > 1 for split in loaded.values() for row in split) == 300


def test_strict_turns_a_rejection_into_exit_1_and_documents_are_none(tmp_path: Path) -> None:
    raw = noise_folder(tmp_path / "raw", ["a", "b"], 8)
    (raw / "SHA256SUMS").write_text("not an image\n")
    assert build(raw, tmp_path / "one", "--strict") == 0
    (raw / "a" / "broken.png").write_bytes(b"")
    assert build(raw, tmp_path / "two", "--strict") == 1


def test_stored_bytes_are_the_files_bytes(drawn_folder: Path, drawn_dataset: Path) -> None:
    from datasets import Image as ImageFeature

    data = load_dataset(str(drawn_dataset))
    assert data["train"].features["label"].names == SEVEN
    originals = {path.name: path.read_bytes() for path in drawn_folder.rglob("*.jpg")}
    for split in data.values():
        for row in split.cast_column("image", ImageFeature(decode=False)):
            assert row["image"]["bytes"] == originals.pop(row["file_name"])
            assert row["sha256"] == hashlib.sha256(row["image"]["bytes"]).hexdigest()
            assert row["file_name"].startswith(SEVEN[row["label"]])
    assert not originals


def test_streaming_gives_the_same_rows(drawn_dataset: Path) -> None:
    loaded = load_dataset(str(drawn_dataset), split="validation")
    streamed = list(load_dataset(str(drawn_dataset), split="validation", streaming=True))
    assert [row["sha256"] for row in streamed] == loaded["sha256"][:]
    assert streamed[0]["image"].size == (250, 250)


def test_same_input_and_seed_give_the_same_bytes(
    drawn_folder: Path, drawn_dataset: Path, tmp_path: Path
) -> None:
    assert build(drawn_folder, tmp_path / "again", "--workers", "1") == 0
    assert same_files(drawn_dataset, tmp_path / "again")
    assert build(drawn_folder, tmp_path / "other", "--seed", "1") == 0
    assert not same_files(drawn_dataset / "data", tmp_path / "other" / "data")


def test_a_zip_gives_the_same_dataset_as_its_folder(
    drawn_folder: Path, drawn_dataset: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "raw.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(drawn_folder.rglob("*.jpg"), reverse=True):
            name = path.relative_to(drawn_folder)
            file.write(path, f"wrapped/once_more/{name.parent}/0001-1000/{name.name}")
    assert build(archive, tmp_path / "out") == 0
    assert filecmp.cmp(tmp_path / "out" / "splits.csv", drawn_dataset / "splits.csv", shallow=False)
    assert same_files(tmp_path / "out" / "data", drawn_dataset / "data")


def test_zip_tricks_are_refused_and_the_rest_is_built(drawn_folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "tricks.zip"
    picture = next(drawn_folder.rglob("*.jpg")).read_bytes()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in drawn_folder.rglob("*.jpg"):
            file.write(path, path.relative_to(drawn_folder))
        file.writestr("BLA/../../climbed.jpg", picture)
        file.writestr("/BLA/absolute.jpg", picture)
        file.writestr("C:\\BLA\\drive.jpg", picture)
        file.writestr("BLA/bomb.jpg", bytes(50_000_000))
        file.writestr(
            "BLA/white.bmp", encoded(Image.new("RGB", (2000, 2000), "white"), "BMP")
        )  # shrinks, and is no bomb
        link = zipfile.ZipInfo("BLA/link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
        file.writestr("__MACOSX/BLA/._x.jpg", b"x")
    assert build(archive, tmp_path / "out") == 0
    assert Counter(row["reason"] for row in rows_of(tmp_path / "out" / "rejected.csv")) == {
        "path climbs out of the zip": 3,
        "zip bomb": 1,
        "symlink in a zip": 1,
        "hidden or system file": 1,
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tricks.zip"]


def test_published_names_are_the_test_split(drawn_folder: Path, tmp_path: Path, capsys) -> None:
    names = [f"{code}_synthetic_{i:05d}.jpg" for code in SEVEN for i in (1, 2, 3)]
    (tmp_path / "names.csv").write_text(
        "image,label\n" + "".join(f"/elsewhere/{n[:3]}/{n},{n[:3]}\n" for n in [*names, "BLA_99999.jpg"])
    )
    arguments = drawn_folder, tmp_path / "out", "--test_names", tmp_path / "names.csv"
    assert build(*arguments) == 0
    rows = rows_of(tmp_path / "out" / "splits.csv")
    assert sorted(row["file_name"] for row in rows if row["split"] == "test") == sorted(names)
    assert Counter(row["split"] for row in rows) == {"test": 21, "validation": 21, "train": 126}
    assert "22 names, 21 of them here, 1 absent" in capsys.readouterr().out
    (tmp_path / "names.csv").write_text("nobody.jpg\n")
    assert build(*arguments, "--overwrite") == 1
    assert "none of the 1 names" in capsys.readouterr().err
    assert len(rows_of(tmp_path / "out" / "splits.csv")) == 168, "a build that fails leaves the old dataset"


def test_a_class_too_small_for_three_splits_is_named(tmp_path: Path, capsys) -> None:
    raw = noise_folder(tmp_path / "raw", ["many", "few"], 8)
    for path in sorted((raw / "few").iterdir())[2:]:
        path.unlink()
    assert build(raw, tmp_path / "out") == 1
    assert "few (2 images)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 1


def test_a_full_folder_is_never_replaced_unasked(drawn_folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert build(drawn_folder, tmp_path / "out") == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"
    assert build(drawn_folder, tmp_path / "out", "--overwrite") == 1
    assert "holds no dataset" in capsys.readouterr().err
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"
    assert build(drawn_folder, drawn_folder.parent, "--overwrite") == 1, "it would delete the raw data"
    assert drawn_folder.is_dir()


def test_per_class_is_seeded_and_replaces_what_is_rejected(drawn_folder: Path, tmp_path: Path) -> None:
    raw = shutil.copytree(drawn_folder, tmp_path / "raw")
    for path in sorted((raw / "BLA").iterdir())[:12]:
        path.write_bytes(b"")
    assert build(raw, tmp_path / "a", "--per_class", "10", "--classes", "BLA,PMO") == 0
    assert build(raw, tmp_path / "b", "--per_class", "10", "--classes", "BLA,PMO") == 0
    assert same_files(tmp_path / "a", tmp_path / "b")
    assert Counter(row["label"] for row in rows_of(tmp_path / "a" / "splits.csv")) == {"BLA": 10, "PMO": 10}


def test_an_own_set_gets_no_citation_and_names_cannot_act(tmp_path: Path) -> None:
    names = ["=cmd()", "<img src=x onerror=alert(1)>", "a|b"]
    raw = noise_folder(tmp_path / "raw", names, 6)
    (raw / "=cmd()" / "=HYPERLINK(1).png").write_bytes(b"")
    assert build(raw, tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    front, body = card.split("---\n", 2)[1:]
    assert "Matek" not in card and "cc-by" not in card and "license:" not in front
    assert "<img" not in body and "a|b" not in body
    for table in ("splits.csv", "rejected.csv"):
        for row in rows_of(tmp_path / "out" / table):
            assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row.values())
    assert load_dataset(str(tmp_path / "out"), split="train").features["label"].names == sorted(names)


def test_synthetic_images_say_so(drawn_dataset: Path) -> None:
    card = (drawn_dataset / "README.md").read_text()
    assert "images are synthetic" in card and "license: apache-2.0" in card and "Matek" not in card


@pytest.mark.parametrize("raw", ["/nowhere", "kaggle:nobody", "bad.zip"])
def test_a_source_that_is_not_there_or_damaged_is_one_sentence(
    raw: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    assert build(raw, tmp_path / "out") == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.real_data
def test_few_real_crops_overlap_and_the_test_split_is_the_published_list(
    real_images: Path, tmp_path: Path
) -> None:
    names = real_images.parent / "published_test_names.txt"
    assert build(real_images, tmp_path / "out", "--test_names", names) == 0
    rows = rows_of(tmp_path / "out" / "splits.csv")
    refused = [row for row in rows_of(tmp_path / "out" / "rejected.csv") if row["path"].endswith(".jpg")]
    assert len(rows) == 3490 and {row["reason"] for row in refused} == {"near-duplicate of a test image"}
    assert len(refused) == 10
    assert sum(row["on_test_list"] == "1" for row in rows) == 689
    assert all((row["split"] == "test") == (row["on_test_list"] == "1") for row in rows)
    sizes = Counter(row["group"] for row in rows)
    assert 10 <= sum(n > 1 for n in sizes.values()) <= 25, (
        "15 pairs of overlapping crops are left, confirmed by eye and correlation"
    )
    places = {row["group"]: row["split"] for row in rows}
    assert all(places[row["group"]] == row["split"] for row in rows)
    assert "doi.org/10.7937/TCIA.AXH3-T579" in (tmp_path / "out" / "README.md").read_text()
