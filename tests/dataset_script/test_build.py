"""Builds from folders and zips: what is kept, what is rejected, and the splits."""

from __future__ import annotations

import hashlib
import shutil
import stat
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Image as ImageFeature
from datasets import load_dataset
from PIL import Image

from tests.dataset_script.odd_files import write_odd_folder
from tests.dataset_script.raw_folders import build, contents, noise_folder, rows_of
from tests.pictures import encoded, noise

SEVEN = ["BLA", "EOS", "LYT", "MON", "NGS", "NIF", "PMO"]


def test_300_bad_files_among_300_good_ones_are_counted_by_reason(tmp_path: Path, capsys) -> None:
    expected, out = write_odd_folder(tmp_path / "raw", tmp_path / "outside"), tmp_path / "out"
    assert build(tmp_path / "raw", out) == 0
    printed = capsys.readouterr()
    assert "600 files seen, 300 kept, 300 rejected" in printed.out and "Traceback" not in printed.err
    assert Counter(row["reason"] for row in rows_of(out / "rejected.csv")) == expected
    assert len(rows_of(out / "splits.csv")) == 300
    loaded = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert sum(row["image"].convert("RGB").size[0] > 1 for split in loaded.values() for row in split) == 300


def test_strict_exits_1_on_a_rejected_file_but_not_on_a_document_or_system_file(tmp_path: Path) -> None:
    raw = noise_folder(tmp_path / "raw", ["a", "b"], 8)
    for name in ("SHA256SUMS", "a/.DS_Store", "a/._0.png", "Thumbs.db", "__MACOSX/a/._0.png", "@eaDir/0.png"):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_text("not an image\n")
    assert build(raw, tmp_path / "one", "--strict") == 0
    (raw / "a" / "broken.png").write_bytes(b"")
    assert build(raw, tmp_path / "two", "--strict") == 1


def test_stored_bytes_are_the_files_bytes(drawn_folder: Path, drawn_dataset: Path) -> None:
    data = load_dataset(str(drawn_dataset))
    assert data["train"].features["label"].names == SEVEN
    originals = {path.name: path.read_bytes() for path in drawn_folder.rglob("*.jpg")}
    for split in data.values():
        for row in split.cast_column("image", ImageFeature(decode=False)):
            assert row["image"]["bytes"] == originals.pop(row["file_name"])
            assert row["sha256"] == hashlib.sha256(row["image"]["bytes"]).hexdigest()
            assert row["file_name"].startswith(SEVEN[row["label"]])
    assert not originals


def test_heic_and_avif_are_read(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    rng = np.random.default_rng(0)
    for name, kind, ending in (("a", "HEIF", "heic"), ("b", "AVIF", "avif")):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "raw" / name / f"{i}.{ending}").write_bytes(encoded(noise(rng), kind))
    assert build(tmp_path / "raw", tmp_path / "out", "--workers", "1") == 0
    assert len(rows_of(tmp_path / "out/splits.csv")) == 8


def test_streaming_gives_the_same_rows(drawn_dataset: Path) -> None:
    loaded = load_dataset(str(drawn_dataset), split="validation")
    streamed = list(load_dataset(str(drawn_dataset), split="validation", streaming=True))
    assert [row["sha256"] for row in streamed] == loaded["sha256"][:]
    assert streamed[0]["image"].size == (250, 250)


def test_the_build_is_deterministic(drawn_folder: Path, drawn_dataset: Path, tmp_path: Path) -> None:
    assert build(drawn_folder, tmp_path / "again", "--workers", "1") == 0
    assert contents(tmp_path / "again") == contents(drawn_dataset)
    assert build(drawn_folder, tmp_path / "other", "--seed", "1") == 0
    assert contents(tmp_path / "other" / "data") != contents(drawn_dataset / "data")


def test_a_zip_is_read_like_a_folder(drawn_folder: Path, drawn_dataset: Path, tmp_path: Path) -> None:
    archive = tmp_path / "raw.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(drawn_folder.rglob("*.jpg"), reverse=True):
            name = path.relative_to(drawn_folder)
            file.write(path, f"wrapped/once_more/{name.parent}/0001-1000/{name.name}")
    assert build(archive, tmp_path / "out") == 0
    assert (tmp_path / "out" / "splits.csv").read_bytes() == (drawn_dataset / "splits.csv").read_bytes()
    assert contents(tmp_path / "out" / "data") == contents(drawn_dataset / "data")


def test_unsafe_zip_entries_are_rejected_and_the_rest_is_built(drawn_folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "tricks.zip"
    picture = next(drawn_folder.rglob("*.jpg")).read_bytes()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in drawn_folder.rglob("*.jpg"):
            file.write(path, path.relative_to(drawn_folder))
        for name in ("BLA/../../climbed.jpg", "/BLA/absolute.jpg", "C:\\BLA\\drive.jpg"):
            file.writestr(name, picture)
        file.writestr("BLA/bomb.jpg", bytes(50_000_000))
        white = encoded(Image.new("RGB", (2000, 2000), "white"), "BMP")
        file.writestr("BLA/white.bmp", white)  # compresses well, but is not a bomb
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


def test_listed_names_are_the_test_split(drawn_folder: Path, tmp_path: Path, capsys) -> None:
    names = [f"{code}_synthetic_{i:05d}.jpg" for code in SEVEN for i in (1, 2, 3)]
    lines = [f"/elsewhere/{name[:3]}/{name},{name[:3]}\n" for name in [*names, "BLA_99999.jpg"]]
    (tmp_path / "names.csv").write_text("image,label\n" + "".join(lines))
    arguments = drawn_folder, tmp_path / "out", "--test_names", tmp_path / "names.csv"
    assert build(*arguments) == 0
    rows = rows_of(tmp_path / "out" / "splits.csv")
    for column, value in (("split", "test"), ("on_test_list", "1")):
        assert sorted(row["file_name"] for row in rows if row[column] == value) == sorted(names)
    assert Counter(row["split"] for row in rows) == {"test": 21, "validation": 21, "train": 126}
    assert "22 names, 21 in the dataset, 1 not" in capsys.readouterr().out
    (tmp_path / "names.csv").write_text("nobody.jpg\n")
    assert build(*arguments, "--overwrite") == 1
    assert "none of the 1 names" in capsys.readouterr().err
    assert len(rows_of(tmp_path / "out" / "splits.csv")) == 168, "a build that fails leaves the old dataset"


def test_a_class_too_small_for_three_splits_is_an_error(tmp_path: Path, capsys) -> None:
    raw = noise_folder(tmp_path / "raw", ["many"], 8)
    noise_folder(raw, ["few"], 2, seed=1)
    assert build(raw, tmp_path / "out") == 1
    assert "few (2 images)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [raw]


def test_the_error_for_no_usable_file_names_the_reasons(tmp_path: Path, capsys) -> None:
    for name in "ab":  # the same seed
        noise_folder(tmp_path / "raw", [name], 1)
    assert build(tmp_path / "raw", tmp_path / "out") == 1
    assert "same bytes under different labels (2)" in capsys.readouterr().err


def test_per_class_is_seeded_and_replaces_rejected_files(drawn_folder: Path, tmp_path: Path) -> None:
    raw = shutil.copytree(drawn_folder, tmp_path / "raw")
    for path in sorted((raw / "BLA").iterdir())[:12]:
        path.write_bytes(b"")
    for out in ("a", "b"):
        assert build(raw, tmp_path / out, "--per_class", "10", "--classes", "BLA,PMO") == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert Counter(row["label"] for row in rows_of(tmp_path / "a" / "splits.csv")) == {"BLA": 10, "PMO": 10}


def test_sources_are_a_column_in_data_and_card_and_are_split_separately(tmp_path: Path, capsys) -> None:
    marrow = noise_folder(tmp_path / "marrow", ["a", "b"], 20, seed=1)
    more = noise_folder(tmp_path / "more", ["a", "b"], 4, seed=2)
    blood = noise_folder(tmp_path / "blood", ["b"], 20, seed=3)  # lacks a class
    (tmp_path / "names.txt").write_text("a/0.png\na/1.png\nb/0.png\n")
    out = tmp_path / "out"
    for folder in (marrow, blood):
        for path in folder.rglob("*.png"):
            path.rename(path.with_name(f"{folder.name}_{path.name}"))
    sources = f"marrow={marrow}", f"marrow={more}", f"blood={blood}"
    assert build(*sources, out, "--test_names", tmp_path / "names.txt", "--workers", 1) == 0
    strata = Counter((r["split"], r["source"], r["label"]) for r in rows_of(out / "splits.csv"))
    assert strata.total() == 68
    sizes = {("marrow", "a"): 24, ("marrow", "b"): 24, ("blood", "b"): 20}
    for key, n in sizes.items():
        assert sum(strata[split, *key] for split in ("train", "validation", "test")) == n
        assert strata["validation", *key] >= 2
    assert [strata["test", *key] for key in sizes] == [2, 1, 4], "20% of a source without listed images"
    data = load_dataset(str(out), split="test")
    assert Counter(data["source"]) == {"marrow": 3, "blood": 4}
    card = (out / "README.md").read_text()
    assert "| 1 | b |" in card and "| `blood` |" in card and 'source == "blood"' in card
    assert build(marrow, blood, tmp_path / "other") == 1
    assert "several sources need a name each" in capsys.readouterr().err


def test_patients_stay_in_one_split_and_given_splits_are_kept(tmp_path: Path) -> None:
    tops = [f"{split}/{label}/patient_{split}" for split in ("train", "test") for label in "ab"]
    names = [f"{top}{i}" for top in tops for i in range(4)]
    raw, out = noise_folder(tmp_path / "raw", names, 3), tmp_path / "out"
    copy = Image.open(raw / names[0] / "0.png").convert("RGB").rotate(90)
    copy.save(raw / names[-1] / "copy.png")  # of a training image, in the test split
    assert build(raw, out, "--group_by", "patient", "--workers", "1") == 0
    rows = rows_of(out / "splits.csv")
    named = [row for row in rows if "/" in row["file_name"]]
    assert named and all((row["split"] == "test") == row["file_name"].startswith("test/") for row in named)
    pairs = {(row["group"], row["split"]) for row in rows}
    assert len(pairs) == len({group for group, _ in pairs}), "a group is in two splits"
    assert {row["split"] for row in rows} == {"train", "validation", "test"}
    assert {row["reason"] for row in rows_of(out / "rejected.csv")} == {"near-duplicate of a test image"}
    assert "The splits `train`, `test` came with the images" in (out / "README.md").read_text()


@pytest.mark.parametrize("raw", ["/nowhere", "kaggle:nobody", "bad.zip"])
def test_a_missing_or_damaged_source_is_one_line(raw: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    assert build(raw, tmp_path / "out") == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.real_data
def test_few_real_crops_overlap_and_the_published_list_is_test(real_images: Path, tmp_path: Path) -> None:
    names = real_images.parent / "published_test_names.txt"
    assert build(real_images, tmp_path / "out", "--test_names", names) == 0
    rows = rows_of(tmp_path / "out" / "splits.csv")
    rejected = [row for row in rows_of(tmp_path / "out" / "rejected.csv") if row["path"].endswith(".jpg")]
    assert len(rows) == 3490 and len(rejected) == 10
    assert {row["reason"] for row in rejected} == {"near-duplicate of a test image"}
    assert sum(row["on_test_list"] == "1" for row in rows) == 689
    assert all((row["split"] == "test") == (row["on_test_list"] == "1") for row in rows)
    sizes = Counter(row["group"] for row in rows)
    # 15 pairs of overlapping crops remain, confirmed by eye and correlation
    assert 10 <= sum(n > 1 for n in sizes.values()) <= 25
    split_of = {row["group"]: row["split"] for row in rows}
    assert all(split_of[row["group"]] == row["split"] for row in rows)
    assert "doi.org/10.7937/TCIA.AXH3-T579" in (tmp_path / "out" / "README.md").read_text()
