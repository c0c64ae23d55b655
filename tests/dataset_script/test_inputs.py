"""What people bring: split folders, patients, tables of labels, links, zips, names that look alike. Read, or asked for."""

from __future__ import annotations

import io
import os
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from PIL import Image

from dataset_script.__main__ import class_list
from dataset_script.classes import ClassFolders, arrange
from dataset_script.source import DatasetError, open_source
from tests.dataset_script.raw_folders import build, noise_folder, rows_of
from tests.pictures import encoded, noise

PICTURE = encoded(noise(np.random.default_rng(0), 32), "PNG")


def write(root: Path, *paths: str, **tables: bytes) -> Path:
    """Write pictures, and the bytes of tables (`labels_csv` is labels.csv), below a folder."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(PICTURE)
    for name, data in tables.items():
        (root / name.replace("_", ".")).write_bytes(data)
    return root


def counts(found: ClassFolders) -> dict[str, int]:
    return {name: len(paths) for name, paths in found.files.items()}


def each(tops: str, classes: str = "a b") -> list[str]:
    """The paths of one picture in each class folder of each top folder."""
    return [f"{top}/{name}/1.png" for top in tops.split() for name in classes.split()]


@pytest.mark.parametrize(
    ("paths", "splits"),
    [
        (each("TRAIN TEST TEST_SIMPLE"), {"train": 2, "test": 4}),
        (each("training testing"), {"train": 2, "test": 2}),
        (each("train_data test_data"), {"train": 2, "test": 2}),
        (each("Train Val test"), {"train": 2, "validation": 2, "test": 2}),
        (each("wrapper/train wrapper/valid"), {"train": 2, "validation": 2}),
        (each("seg_train/seg_train seg_test/seg_test"), {"train": 2, "test": 2}),
        (each("train/images validation/images"), {"train": 2, "validation": 2}),
        (each("TrainSet testset"), {"train": 2, "test": 2}),
        (each("train eval HOLDOUT"), {"train": 2, "validation": 2, "test": 2}),
        (each("a b", "train test"), {"train": 2, "test": 2}),
        (each("split=train split=test"), {"train": 2, "test": 2}),
    ],
)
def test_folders_that_are_splits_are_read_as_splits(paths: list[str], splits: dict, tmp_path: Path) -> None:
    found = arrange(open_source(str(write(tmp_path, *paths))))
    assert list(found.files) == ["a", "b"] and Counter(found.split_of.values()) == splits


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        (each("fold_0 fold_1 fold_2", "all hem"), "look like folds.*--classes all,hem.*--group_by fold"),
        (each("patient_01 patient_02"), "look like folds, patients"),
        (["Patient 1/1.png", "Patient 2/1.png"], "look like folds, patients"),
        (each("001 002", "neutrophil blast"), "hold folders of the same names.*--group_by patient"),
        (each("siteA siteB", "neutrophil blast"), "hold folders of the same names"),
        (each("part1", "a b") + each("part2", "c d"), "look like folds, patients or parts"),
        (each("mine", "BLA EOS") + each("yours", "LYT"), "hold folders that look like the classes"),
        (
            each("granulocytes", "neutrophil eosinophil") + each("lymphoid", "b t"),
            "hold several folders each",
        ),
        (each("train test unlabelled"), "are splits and some are not"),
        (each("a b", "train test other"), "hold folders of the same names"),
        (each("Fold1/train Fold1/test Fold2/train Fold2/test"), "look like folds.*--classes a,b"),
        (["train/1.png", "test/2.png"], "are splits and hold no folder a class.*--labels"),
        (["images/1.png", "masks/1.png"], "not like classes"),
    ],
)
def test_folders_that_may_be_no_classes_are_asked_for(
    paths: list[str], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=sentence):
        arrange(open_source(str(write(tmp_path, *paths))))


@pytest.mark.parametrize(
    "paths",
    [
        ["BLA/0001-1000/1.png", "EOS/0001-1000/1.png", "EOS/1001-2000/1.png"],  # the archive's
        ["a/0001/1.png", "b/0001/1.png", "b/0002/1.png"],
        ["a/patient1/1.png", "b/patient1/1.png", "b/patient2/1.png"],
        ["a/images/1.png", "b/images/1.png"],
        ["test/1.png", "control/1.png"],
        ["1/1.png", "2/1.png"],
    ],
)
def test_folders_that_can_only_be_classes_are_classes(paths: list[str], tmp_path: Path) -> None:
    found = arrange(open_source(str(write(tmp_path, *paths))))
    assert list(found.files) == sorted({path.split("/")[0] for path in paths}) and not found.split_of


@pytest.mark.parametrize(
    ("paths", "options", "groups"),
    [
        (each("patient_1 patient_2"), {"group_by": "patient"}, {"patient_1", "patient_2"}),
        (
            [f"{c}/Patient {i}/1.png" for c in "ab" for i in (1, 2)],
            {"group_by": "patient"},
            {"Patient 1", "Patient 2"},
        ),
        (each("001 002", "neutrophil blast"), {"group_by": "patient"}, {"001", "002"}),
        (each("train/p1 test/p2"), {"group_by": "p"}, {"p1", "p2"}),
        (each("fold_0 fold_1"), {"wanted": ("a", "b")}, set()),
        (each("fold_0 fold_1", "a b c"), {"wanted": ("a", "b"), "group_by": "fold"}, {"fold_0", "fold_1"}),
    ],
)
def test_the_answer_to_the_question_is_followed(
    paths: list[str], options: dict, groups: set, tmp_path: Path
) -> None:
    found = arrange(open_source(str(write(tmp_path, *paths))), **options)
    assert len(found.files) == 2 and sum(counts(found).values()) + found.left_out == len(paths)
    assert set(found.group_of.values()) == groups


def test_a_group_that_no_folder_is_named_by_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no folder's name begins so"):
        arrange(open_source(str(write(tmp_path, "a/1.png", "b/1.png"))), group_by="patient")


PLAIN = "file_name,label\n1.png,a\n2.png,b\n"


@pytest.mark.parametrize(
    "table",
    [
        PLAIN.encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.replace(",", ";").replace("\n", "\r\n").encode("utf-16"),
        PLAIN.replace(",", "\t").encode("utf-16-le"),
        b"Image Path,Cell Type,Patient\nC:\\data\\i\\1.png,a,7\nC:\\data\\i\\2.png,b,8\n",
        b"1.png,a\n2.png,b\n",
        b"a;i/1.png\nb;i/2.png\n",
        b"image_id,diagnosis\n1,a\n2,b\n",  # without endings
        b'file,class\n"1.png","a"\n"2.png","b"\n',
        b"x,file_name,notes,label\n0,1.png,,a\n0,2.png,,b\n",
        b"sep=;\r\nx;file_name;label\r\n0;1.png;a\r\n0;2.png;b\r\n",
        b'file_name,note,label\n1.png,"two\nlines",a\n2.png,,b\n',
        PLAIN.replace(",", "|").replace("\n", "\r").encode(),
        PLAIN.replace(".png", ".PNG").encode(),
        "Datei,Größe,label\n1.png,groß,a\n2.png,,b\n".encode("cp1252"),
    ],
    ids=["plain", "BOM", "UTF-16 ;", "UTF-16 tabs", "Windows", "no header", "label first", "ids", "quotes", "columns",
         "Excel", "line in a cell", "old Mac", "case", "code page"],
)  # fmt: skip
@pytest.mark.parametrize("named", [False, True])
def test_a_table_of_labels_is_read_whoever_wrote_it(table: bytes, named: bool, tmp_path: Path) -> None:
    raw = write(tmp_path, "i/1.png", "i/2.png", **({} if named else {"labels_csv": table}))
    found = arrange(open_source(str(raw)), labels=("mine.csv", table) if named else None)
    assert found.files == {"a": ["i/1.png"], "b": ["i/2.png"]}


def test_json_lines_are_a_table_as_the_hub_knows_it(tmp_path: Path) -> None:
    raw = write(tmp_path, "i/1.png", "i/2.png")
    (raw / "i/metadata.jsonl").write_text(
        '{"file_name": "1.png", "label": 0}\n{"label": 1, "file_name": "2.png"}\n'
    )
    assert arrange(open_source(str(raw))).files == {"0": ["i/1.png"], "1": ["i/2.png"]}


def test_a_table_tells_files_of_one_name_apart_by_case(tmp_path: Path) -> None:
    found = arrange(
        open_source(str(write(tmp_path, "i/x.png", "i/X.png"))), labels=("l.csv", b"x.png,a\nX.png,b\n")
    )
    assert found.files == {"a": ["i/x.png"], "b": ["i/X.png"]}


def test_a_table_may_be_parquet_and_give_splits_and_groups(tmp_path: Path) -> None:
    rows = {
        "file_name": ["1.png", "2.png"],
        "label": [0, 1],
        "split": ["Train", "val"],
        "patient_id": ["p", "q"],
    }
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    raw = write(tmp_path / "raw", "i/1.png", "i/2.png")
    found = arrange(open_source(str(raw)), labels=("t.parquet", (tmp_path / "t.parquet").read_bytes()))
    assert found.files == {"0": ["i/1.png"], "1": ["i/2.png"]}
    assert list(found.split_of.values()) == ["train", "validation"] and list(found.group_of.values()) == [
        "p",
        "q",
    ]


def test_a_table_tells_files_of_one_name_apart_by_their_folders(tmp_path: Path) -> None:
    table = b"file_name,label\nx/1,a\nC:\\data\\y\\1,b\n"  # files without an ending
    assert arrange(open_source(str(write(tmp_path, "x/1", "y/1"))), labels=("l.csv", table)).files == {
        "a": ["x/1"],
        "b": ["y/1"],
    }
    found = arrange(
        open_source(str(write(tmp_path, "x/2", "y/3"))), labels=("l.csv", table + b"1,a\n2,a\n3,b\n")
    )
    assert found.files == {"a": ["x/2"], "b": ["y/3"]}, (
        "a bare name that stands for several files labels none of them"
    )


def test_a_table_in_each_split_folder_speaks_of_that_folder(tmp_path: Path) -> None:
    raw = write(tmp_path, "train/1.png", "train/2.png", "test/1.png")
    (raw / "train/metadata.csv").write_text(PLAIN)
    (raw / "test/metadata.csv").write_text("file_name,label\n1.png,b\n")
    assert arrange(open_source(str(raw))).files == {"a": ["train/1.png"], "b": ["test/1.png", "train/2.png"]}


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (b"file_name,score,x\n1.png,1,2\n", "no column of label names .found: 'file_name', 'score', 'x'"),
        (b"label,score,x\na,1,2\n", "no column of file names"),
        (b"file_name,label\n7.png,a\n", "none of the 1 rows .* names a file that is here .for example 7.png"),
        (b"", "is empty"),
        (
            "file_name,label\n1.png,细胞\n2.png,b\n".encode("gb18030"),
            "unknown code page .*: save it as UTF-8",
        ),
        (
            "file_name,label\n1.png,бласты\n2.png,b\n".encode("cp1251"),
            "unknown code page .*: save it as UTF-8",
        ),
        (b"file_name,label\n1.png,a\n2.png,a\n", "two classes .* found: a"),
        (
            b"file_name,label\n1.png,a\n1.png,b\n2.png,\n",
            "found: none; passed over: .*several labels in the table",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_one_sentence(table: bytes, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=sentence):
        arrange(open_source(str(write(tmp_path, "i/1.png", "i/2.png"))), labels=("labels.csv", table))


def test_a_table_and_folders_that_tell_of_other_classes_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="two kinds of classes"):
        arrange(open_source(str(write(tmp_path, "x/1.png", "y/2.png", labels_csv=PLAIN.encode()))))


@pytest.mark.parametrize("follow", [False, True])
def test_links_are_followed_inside_the_folder_and_out_of_it_when_asked(follow: bool, tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", "o.png")
    raw = write(tmp_path / "raw", "store/a/1.png", "blobs/x", "b/2.png")
    os.symlink(raw / "store/a", raw / "a")
    os.symlink("../blobs/x", raw / "b/3.png")
    os.symlink(raw, raw / "b/loop")
    os.symlink(outside, raw / "c")
    found = arrange(open_source(str(raw), follow))
    assert counts(found) == {"a": 1, "b": 2} | ({"c": 1} if follow else {})
    reasons = Counter(item.reason for item in found.rejected)
    assert (
        reasons["read through a symlink to it"] == 2
        and reasons["symlink to a folder that is read already"] == 1
    )
    assert reasons["symlink out of the folder"] == (not follow)
    assert all(
        open_source(str(raw), follow).read(path) == PICTURE
        for paths in found.files.values()
        for path in paths
    )


def test_a_link_that_turned_outwards_since_the_listing_is_not_read(tmp_path: Path) -> None:
    secret, raw = write(tmp_path, "secret/1.png"), write(tmp_path / "raw", "a/1.png", "b/1.png")
    source = open_source(str(raw))
    arrange(source)
    (raw / "a").rename(raw / "old")
    os.symlink(secret / "secret", raw / "a")
    with pytest.raises(OSError, match="link out of the folder"):
        source.read("a/1.png")


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        (
            ["a/1.svs", "b/2.svs"],
            r"found: none; passed over: 2 .svs \(folder without pictures that are read: save",
        ),
        (
            ["1.png", "2.png"],
            r"found: none; passed over: 2 .png \(outside the class folders: .*--labels FILE",
        ),
        ([], r"found: none \(it is empty\)"),
        (["a.tar.gz", "b.rar"], r"passed over: 1 .gz \(archive that is not read: unpack it"),
        (["a/1.npy", "b/1.npy"], r"passed over: 2 .npy \(folder without pictures that are read"),
    ],
)
def test_found_none_never_stands_alone(paths: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=sentence):
        arrange(open_source(str(write(tmp_path, *paths))))


def test_a_picture_without_an_ending_is_read_and_a_class_that_cannot_be_is_named(tmp_path: Path) -> None:
    found = arrange(open_source(str(write(tmp_path, "a/1", "b/2", "c/3.svs"))))
    assert counts(found) == {"a": 1, "b": 1}
    assert found.notes == ["no pictures that are read in the folders c"]


def zipped(names: list[str], encoding: str = "utf-8") -> bytes:
    """A zip of pictures whose names are in an encoding, without the mark of UTF-8."""
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for number, name in enumerate(names):
            archive.writestr("QXZ"[number] * len(name.encode(encoding)), PICTURE)
    data = buffer.getvalue()
    for number, name in enumerate(names):
        raw = name.encode(encoding)
        data = data.replace(b"QXZ"[number : number + 1] * len(raw), raw)
    return data


@pytest.mark.parametrize(
    ("names", "encoding", "told", "classes"),
    [
        (["blåst/11.png", "бласты/22.png"], "utf-8", None, ["blåst", "бласты"]),  # macOS
        (["Größe/111.png", "b/22222222.png"], "cp850", None, ["Größe", "b"]),
        (["бласты/1.png", "b/222222222.png"], "cp866", "cp866", ["b", "бласты"]),
        (["细胞/11.png", "b/222222222.png"], "gbk", "gbk", ["b", "细胞"]),
        (["Größe/111.png", "b/22222222.png"], "cp1252", "cp1252", ["Größe", "b"]),
        (["BLA\\", "BLA\\11.png", "EOS\\222222.png"], "utf-8", None, ["BLA", "EOS"]),
        (["./BLA/11.png", "EOS/.//22222.png", "BLA/inner.zip"], "utf-8", None, ["BLA", "EOS"]),
    ],
)
def test_names_in_zips_are_read_or_their_code_page_is_asked_for(
    names: list[str], encoding: str, told: str | None, classes: list[str], tmp_path: Path
) -> None:
    (tmp_path / "raw.zip").write_bytes(zipped(names, encoding))
    if told:
        with pytest.raises(DatasetError, match=r"unknown code page .*--zip_encoding"):
            arrange(open_source(str(tmp_path / "raw.zip")))
    assert list(arrange(open_source(str(tmp_path / "raw.zip"), zip_encoding=told)).files) == classes


def test_a_zip_in_a_folder_counts_as_a_folder(tmp_path: Path) -> None:
    raw = write(tmp_path, "b/9.png")
    (raw / "a.zip").write_bytes(zipped(["11.png", "222.png"]))
    (raw / "c.zip").write_bytes(b"PK no zip")
    source = open_source(str(raw))
    found = arrange(source)
    assert found.files == {"a": ["a.zip/11.png", "a.zip/222.png"], "b": ["b/9.png"]}
    assert source.read("a.zip/11.png") == PICTURE
    assert [(item.path, item.reason) for item in found.rejected] == [("c.zip", "damaged zip")]


@pytest.mark.parametrize(
    "pair",
    [
        ("BLA", "bla"),
        ("BLA", "BLA "),
        ("\u00e9", "e\u0301"),
        ("a b", "a  b"),
        ("a_b", "a b"),
        ("BLA\u200b", "BLA"),
        ("x", "x\u00ad"),
        ("B", "\u0412"),
        ("b-cell", "b\u2013cell"),
        ("stra\u00dfe", "strasse"),
    ],
)
def test_classes_that_look_alike_are_refused(pair: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="look alike"):
        arrange(open_source(str(write(tmp_path, *(f"{name}/1.png" for name in pair)))))


def test_a_class_list_may_hold_names_with_commas() -> None:
    assert class_list('"blast, small",BLA') == ("blast, small", "BLA")


ODD_NAMES = [
    "1e3", "no", "0777", "2024-01-01", "~", "null", "+5", "0x1F", "blast, large", "🧬 cell", "e\u0301", "a: b", "'q'", "y",
]  # fmt: skip


def test_every_class_name_is_the_same_text_in_yaml_parquet_and_figures(tmp_path: Path, recwarn) -> None:
    raw = noise_folder(tmp_path / "raw", ODD_NAMES, 4)
    assert build(raw, tmp_path / "out", "--workers", "1") == 0
    wanted = sorted("\u00e9" if name == "e\u0301" else name for name in ODD_NAMES)
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    front = (tmp_path / "out/README.md").read_text().split("---\n")[1]
    names = yaml.safe_load(front)["dataset_info"]["features"][1]["dtype"]["class_label"]["names"]
    assert list(names.values()) == wanted
    for line in (
        front.splitlines()
    ):  # YAML 1.2, as the Hub reads it, takes these for numbers when they are not quoted
        if line.strip().startswith("'"):
            value = line.split(": ", 1)[1]
            assert value[0] in "'\"" or value[0] not in "0123456789.+-~", line
    assert load_dataset(str(tmp_path / "out"), split="train").features["label"].names == wanted


def test_sources_have_a_column_a_table_in_the_card_and_their_own_strata(tmp_path: Path, capsys) -> None:
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
    rows = rows_of(out / "splits.csv")
    assert Counter((r["source"], r["label"]) for r in rows) == {
        ("marrow", "a"): 24,
        ("marrow", "b"): 24,
        ("blood", "b"): 20,
    }
    in_test = Counter((row["source"], row["label"]) for row in rows if row["split"] == "test")
    assert in_test == {("marrow", "a"): 2, ("marrow", "b"): 1, ("blood", "b"): 4}, (
        "20% where the list names nothing"
    )
    in_validation = Counter((row["source"], row["label"]) for row in rows if row["split"] == "validation")
    assert min(in_validation.values()) >= 2 and len(in_validation) == 3
    data = load_dataset(str(out), split="test")
    assert Counter(data["source"]) == {"marrow": 3, "blood": 4}
    card = (out / "README.md").read_text()
    assert "| 1 | b |" in card and "| `blood` |" in card and 'source == "blood"' in card
    assert build(marrow, blood, tmp_path / "other") == 1
    assert "several sources need a name each" in capsys.readouterr().err


def test_a_patients_images_stay_in_one_split_and_the_users_splits_are_kept(tmp_path: Path) -> None:
    names = [
        f"{split}/{label}/patient_{split}{i}"
        for split in ("train", "test")
        for label in "ab"
        for i in range(4)
    ]
    raw = noise_folder(tmp_path / "raw", names, 3)
    copy = Image.open(raw / names[0] / "0.png").convert("RGB").rotate(90)
    copy.save(raw / names[-1] / "copy.png")  # of a training image, in the test split
    assert build(raw, tmp_path / "out", "--group_by", "patient", "--workers", "1") == 0
    rows = {row["file_name"]: row for row in rows_of(tmp_path / "out/splits.csv")}
    assert all(
        (row["split"] == "test") == name.startswith("test/") for name, row in rows.items() if "/" in name
    )
    split_of = {(row["group"], row["split"]) for row in rows.values()}
    assert len(split_of) == len({group for group, _ in split_of}), "a group never straddles two splits"
    assert {row["split"] for row in rows.values()} == {"train", "validation", "test"}
    rejected = rows_of(tmp_path / "out/rejected.csv")
    assert {row["reason"] for row in rejected} == {"near-duplicate of a test image"} and len(rejected) >= 1
    assert "`test` came with the images" in (tmp_path / "out/README.md").read_text().replace(
        "splits `train`, ", ""
    )


def test_heic_and_avif_are_built_from(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    rng = np.random.default_rng(0)
    for name, kind, ending in (("a", "HEIF", "heic"), ("b", "AVIF", "avif")):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "raw" / name / f"{i}.{ending}").write_bytes(encoded(noise(rng), kind))
    assert build(tmp_path / "raw", tmp_path / "out", "--workers", "1") == 0
    assert len(rows_of(tmp_path / "out/splits.csv")) == 8


def test_a_pushed_card_names_its_repo(drawn_repo: str) -> None:
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(drawn_repo).text
    assert f'load_dataset("{drawn_repo}", split="train", streaming=True)' in card and "OWNER/NAME" not in card
