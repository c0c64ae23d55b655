"""Foreign datasets: what is wrong with each is said in one sentence that names the way out."""

import os
import time

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.training.small import data_options
from training import TrainingError
from training.source import open_source, revision_of

PICTURE = Image.new("RGB", (8, 8))


def write(folder, rows, features=None, splits=("train", "validation")):
    for split in splits:
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def features(**columns):
    return datasets.Features({"image": datasets.Image(), **columns})


def refusal(folder, **given) -> str:
    with pytest.raises(TrainingError) as caught:
        open_source(data_options(folder, **given), streaming=False)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_missing_label_column_lists_those_there_are_and_names_the_flag(tmp_path):
    write(
        tmp_path,
        {"image": [PICTURE] * 2, "target": [0, 1]},
        features(target=datasets.ClassLabel(names=["a", "b"])),
    )
    text = refusal(tmp_path)
    assert "'image', 'target'" in text and "--label_column target" in text


def test_a_missing_image_column_names_the_flag(tmp_path):
    columns = datasets.Features({"cell": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    write(tmp_path, {"cell": [PICTURE] * 2, "label": [0, 1]}, columns)
    assert "--image_column cell" in refusal(tmp_path)


def test_a_column_of_texts_is_not_taken_for_images(tmp_path):
    write(tmp_path, {"image": ["x.jpg", "y.jpg"], "label": [0, 1]})
    assert "not images" in refusal(tmp_path)


def test_one_class_only_is_refused(tmp_path):
    write(
        tmp_path,
        {"image": [PICTURE] * 2, "label": [0, 0]},
        features(label=datasets.ClassLabel(names=["only"])),
    )
    assert "one class only (only)" in refusal(tmp_path)


def test_a_missing_validation_split_lists_the_splits(tmp_path):
    kinds = features(label=datasets.ClassLabel(names=["a", "b"]))
    write(tmp_path, {"image": [PICTURE] * 2, "label": [0, 1]}, kinds, splits=("train", "test"))
    text = refusal(tmp_path)
    assert "no split 'validation' (it has: train, test)" in text and "--validation_split" in text


@pytest.mark.parametrize("stream", [False, True])
def test_a_label_that_training_does_not_have_is_refused_at_opening(tmp_path, stream):
    kinds = features(label=datasets.Value("int64"))
    write(tmp_path, {"image": [PICTURE] * 3, "label": [10, 20, 10]}, kinds, splits=("train",))
    write(tmp_path, {"image": [PICTURE] * 3, "label": [10, 20, 1]}, kinds, splits=("validation",))
    with pytest.raises(TrainingError, match=r"1 of 3 rows in split 'validation' .*row 2 has label 1\)"):
        open_source(data_options(tmp_path), streaming=stream)


@pytest.mark.parametrize("stream", [False, True])
def test_hidden_test_labels_are_found_at_opening_and_may_be_left_out(tmp_path, stream):
    kinds = features(label=datasets.ClassLabel(names=["a", "b"]))
    write(tmp_path, {"image": [PICTURE] * 2, "label": [0, 1]}, kinds)
    write(tmp_path, {"image": [PICTURE] * 2, "label": [-1, -1]}, kinds, splits=("test",))
    with pytest.raises(TrainingError, match=r"2 of 2 rows in split 'test' .* pass --test_split none"):
        open_source(data_options(tmp_path), streaming=stream)
    source = open_source(data_options(tmp_path, test_split="none"), streaming=stream)
    assert source.sizes == {"train": 2, "validation": 2}


def test_several_configurations_are_named_with_the_option(tmp_path):
    kinds = features(label=datasets.ClassLabel(names=["a", "b"]))
    for name in ("bone_marrow", "blood"):
        write(tmp_path / name, {"image": [PICTURE] * 2, "label": [0, 1]}, kinds)
    configs = "".join(f"- config_name: {name}\n  data_dir: {name}\n" for name in ("bone_marrow", "blood"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    text = refusal(tmp_path)
    assert "bone_marrow, blood" in text and "--dataset_config" in text
    assert open_source(data_options(tmp_path, dataset_config="blood"), streaming=False).sizes["train"] == 2


@pytest.mark.parametrize("described", ["[a, b]", "text", "{a: one}"])
def test_descriptions_in_a_card_are_used_where_they_name_classes(described, tmp_path):
    kinds = features(label=datasets.ClassLabel(names=["a", "b"]))
    write(tmp_path, {"image": [PICTURE] * 2, "label": [0, 1]}, kinds)
    (tmp_path / "README.md").write_text(f"---\nlabel_descriptions: {described}\n---\n")
    source = open_source(data_options(tmp_path), streaming=False)
    assert source.label_descriptions == {"a": "one" if ":" in described else "a", "b": "b"}


def test_a_streamed_file_is_not_read_ahead_of_a_slow_reader(tmp_path):
    """40 row groups of a megabyte: pyarrow's own scanner had all of them in memory by the third row."""
    kinds = features(label=datasets.ClassLabel(names=["a", "b"])).arrow_schema
    picture = {"bytes": os.urandom(2**20), "path": None}
    for split in ("train", "validation"):
        with pq.ParquetWriter(tmp_path / f"{split}.parquet", kinds, compression="none") as writer:
            for number in range(40 if split == "train" else 1):
                writer.write_table(pa.table({"image": [picture], "label": [number % 2]}, schema=kinds))
    source = open_source(data_options(tmp_path), streaming=True)
    before, started = pa.total_allocated_bytes(), time.monotonic()
    for number, row in enumerate(source.rows("train", shuffle=(0, 2))):
        if number < 3:
            time.sleep(0.3)
            assert pa.total_allocated_bytes() - before < 8 * 2**20
        assert len(row.data) == 2**20
    assert number == 39
    assert time.monotonic() - started < 5, "datasets waits that long for the scanner's threads"


def test_a_card_does_not_change_what_pins_the_data(tmp_path):
    kinds = features(label=datasets.ClassLabel(names=["a", "b"]))
    write(tmp_path, {"image": [PICTURE] * 2, "label": [0, 1]}, kinds)
    before = revision_of(data_options(tmp_path))
    (tmp_path / "README.md").write_text("# Cells")
    assert revision_of(data_options(tmp_path)) == before
    write(tmp_path, {"image": [PICTURE] * 4, "label": [0, 1, 0, 1]}, kinds, splits=("test",))
    assert revision_of(data_options(tmp_path)) != before


def test_text_labels_are_taken_in_sorted_order(tmp_path):
    write(
        tmp_path,
        {"image": [PICTURE] * 3, "label": ["pmo", "bla", "pmo"]},
        features(label=datasets.Value("string")),
    )
    source = open_source(data_options(tmp_path), streaming=False)
    assert source.label_names == ["bla", "pmo"]
    assert [row.label for row in source.rows("train")] == [1, 0, 1]
    assert source.class_counts("train") == [1, 2]


def test_a_data_set_that_is_not_there_is_named(tmp_path):
    assert "nobody/nothing" in refusal("nobody/nothing")
    assert "--dataset is empty" in refusal("")
    assert str(tmp_path) in refusal(tmp_path)


def test_an_unreachable_hub_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "nobody/unreachable" in refusal("nobody/unreachable")
