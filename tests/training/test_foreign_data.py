"""Datasets that others made, through the trainer's own command: trained on, or refused with one sentence; no traceback."""

from __future__ import annotations

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Image, Sequence, Value
from PIL import Image as Picture

from train_accelerate import main

ROWS = 8
TINY = ["--no-pretrained", "--model", "resnet10t", "--image_size", "32", "--epochs", "0", "--batch_size", "4"]


def pictures(count: int = ROWS) -> list[Picture.Image]:
    rng = np.random.default_rng(0)
    return [Picture.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(count)]


def write(folder: Path, columns: dict, features: dict | None = None, empty: str = "") -> Path:
    """Write train, validation and test of the same rows as Parquet; `empty` names one that has none."""
    numbers = {name: values for name, values in columns.items() if isinstance(values, pa.Array)}
    rest = {name: values for name, values in columns.items() if name not in numbers}
    kinds = {name: kind for name, kind in (features or {}).items() if name in rest}
    whole = datasets.Dataset.from_dict(rest, features=Features(kinds) if kinds else None)
    for name, values in numbers.items():
        whole = datasets.concatenate_datasets([whole, datasets.Dataset(pa.table({name: values}))], axis=1)
    for split in ("train", "validation", "test"):
        whole.to_parquet(folder / f"{split}.parquet")
        if split == empty:
            table = pq.read_table(folder / f"{split}.parquet")
            pq.write_table(table.slice(0, 0), folder / f"{split}.parquet")
    return folder


def train(folder: Path, out: Path, capsys: pytest.CaptureFixture, *more: str) -> tuple[int, str]:
    """Exit code, and the sentence that was printed for the person."""
    code = main(["--dataset", str(folder), "--output_dir", str(out), *TINY, *more])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == (0 if code == 0 else 1)
    return code, said[0] if said else ""


def plain(label: object) -> object:
    return label.as_py() if isinstance(label, pa.Scalar) else label


AB = [i % 2 for i in range(ROWS)]
REFUSED = {
    "no image column": ({"label": AB, "x": AB}, None, "has no column 'image' (found: 'label', 'x')"),
    "texts for images": ({"image": ["a.jpg"] * ROWS, "label": AB}, None, "not images"),
    "a list of images": (
        {"image": [[picture] for picture in pictures()], "label": AB},
        {"image": Sequence(Image()), "label": ClassLabel(names=["a", "b"])},
        "not images",
    ),
    "images in a struct": (
        {"image": [{"cell": picture} for picture in pictures()], "label": AB},
        {"image": {"cell": Image()}, "label": ClassLabel(names=["a", "b"])},
        "not images",
    ),
    "floats for labels": (
        {"image": pictures(), "label": [0.5, 1.5] * (ROWS // 2)},
        {"image": Image(), "label": Value("float32")},
        "not class labels",
    ),
    "labels in a struct": (
        {"image": pictures(), "label": [{"name": "a"}] * ROWS},
        {"image": Image(), "label": {"name": Value("string")}},
        "not class labels",
    ),
    "several labels a row": (
        {"image": pictures(), "label": [[0, 1]] * ROWS},
        {"image": Image(), "label": Sequence(ClassLabel(names=["a", "b"]))},
        "not class labels",
    ),
    "a null among texts": (
        {"image": pictures(), "label": ["a", "b", None, "a"] * (ROWS // 4)},
        {"image": Image(), "label": Value("string")},
        "rows without a label",
    ),
    "a null among class labels": (
        {"image": pictures(), "label": [0, 1, None, 1] * (ROWS // 4)},
        {"image": Image(), "label": ClassLabel(names=["a", "b"])},
        "has label None",
    ),
    "an unknown class label": (
        {"image": pictures(), "label": [0, 1, -1, 1] * (ROWS // 4)},
        {"image": Image(), "label": ClassLabel(names=["a", "b"])},
        "has label -1",
    ),
    "a null for an image": (
        {"image": [*pictures(ROWS - 1), None], "label": AB},
        {"image": Image(), "label": ClassLabel(names=["a", "b"])},
        "has no image",
    ),
}


@pytest.mark.parametrize("data", ["memory", "stream"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_on_is_one_sentence(
    name: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    columns, features, reason = REFUSED[name]
    folder = write(tmp_path / "data", columns, features)
    code, said = train(folder, tmp_path / "run", capsys, "--data", data)
    assert code == 1 and reason in said


@pytest.mark.parametrize("data", ["memory", "stream"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_empty_split_is_said_to_be_empty(
    split: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    kinds = {"image": Image(), "label": ClassLabel(names=["a", "b"])}
    folder = write(tmp_path / "data", {"image": pictures(), "label": AB}, kinds, empty=split)
    code, said = train(folder, tmp_path / "run", capsys, "--data", data)
    assert code == 1 and "split" in said and "is empty" in said


TAKEN = {
    "texts for labels": (["b", "a"] * (ROWS // 2), Value("string"), ["a", "b"]),
    "huge numbers for labels": ([2**62, 7] * (ROWS // 2), Value("int64"), ["7", str(2**62)]),
    "unsigned numbers": (
        pa.array([2**63 + 5, 0] * (ROWS // 2), pa.uint64()),
        Value("uint64"),
        ["0", str(2**63 + 5)],
    ),
    "bools": ([True, False] * (ROWS // 2), Value("bool"), ["False", "True"]),
    "floats that are whole": ([2.0, 1.0] * (ROWS // 2), Value("float64"), ["1", "2"]),
    "class labels of other names": (AB, ClassLabel(names=["Zelle, große", "x/y"]), ["Zelle, große", "x/y"]),
}


@pytest.mark.parametrize("data", ["memory", "stream"])
@pytest.mark.parametrize("name", TAKEN)
def test_what_can_be_trained_on_keeps_its_own_names(
    name: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    labels, kind, expected = TAKEN[name]
    columns, features = {"image": pictures(), "label": labels}, {"image": Image(), "label": kind}
    folder = write(tmp_path / "data", columns, features)
    code, said = train(folder, tmp_path / "run", capsys, "--data", data)
    assert code == 0, said
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["pretrained_cfg"]["label_names"] == expected
    table = pq.read_table(tmp_path / "run" / "logits_test.parquet")
    texts = [str(int(label) if isinstance(label, float) else label) for label in map(plain, labels)]
    assert table["label"].to_pylist() == (labels if "class" in name else [expected.index(t) for t in texts])


@pytest.mark.parametrize("data", ["memory", "stream"])
def test_encoded_images_in_a_binary_column_are_read(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    encoded = []
    for picture in pictures():
        file = io.BytesIO()
        picture.save(file, "PNG")
        encoded.append(file.getvalue())
    kinds = {"image": Value("binary"), "label": ClassLabel(names=["a", "b"])}
    folder = write(tmp_path / "data", {"image": encoded, "label": AB}, kinds)
    code, said = train(folder, tmp_path / "run", capsys, "--data", data)
    assert code == 0, said
