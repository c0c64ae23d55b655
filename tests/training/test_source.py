"""Third-party datasets: opened with their own class names, or refused with an error that says what to do."""

import os
import time

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Sequence, Value
from PIL import Image

from hub_model.inference.images import read_image
from tests.pictures import encoded
from tests.training.small import data_options
from training import TrainingError
from training.source import open_source, revision_of

PICTURE = Image.new("RGB", (16, 16))
AB = ClassLabel(names=["a", "b"])
SPLITS = ("train", "validation", "test")


def write(
    folder, labels=(0, 1), kind=AB, images=None, image_kind=None, names=("image", "label"), splits=SPLITS
):
    """Write splits of the same rows; `names` are those of the two columns."""
    images = [PICTURE] * len(labels) if images is None else images
    kinds = Features({names[0]: image_kind or datasets.Image(), names[1]: kind})
    if kind == Value("uint64"):  # which `from_dict` cannot make of large numbers
        table = datasets.Dataset.from_dict({names[0]: images}, features=Features({names[0]: kinds[names[0]]}))
        numbers = datasets.Dataset(pa.table({names[1]: pa.array(labels, pa.uint64())}))
        table = datasets.concatenate_datasets([table, numbers], axis=1)
    else:
        table = datasets.Dataset.from_dict(
            dict(zip(names, (images, list(labels)), strict=True)), features=kinds
        )
    for split in splits:
        table.to_parquet(folder / f"{split}.parquet")
    return folder


def refusal(folder, stream=False, **given) -> str:
    """The one-line error of opening and reading a dataset."""
    with pytest.raises(TrainingError) as caught:
        for split in SPLITS:
            list(open_source(data_options(folder, **given), streaming=stream).rows(split))
    assert "\n" not in str(caught.value)
    return str(caught.value)


REFUSED = {
    "no label column": ({"names": ("image", "target")}, "(found: 'image', 'target'); pass --label_column target"),
    "no image column": ({"names": ("cell", "label")}, "(found: 'cell', 'label'); pass --image_column cell"),
    "texts for images": ({"images": ["a.jpg", "b.jpg"], "image_kind": Value("string")}, "not images"),
    "a list of images": ({"images": [[PICTURE]] * 2, "image_kind": Sequence(datasets.Image())}, "not images"),
    "images in a struct": ({"images": [{"cell": PICTURE}] * 2, "image_kind": {"cell": datasets.Image()}}, "not images"),
    "a null for an image": ({"images": [PICTURE, None]}, "has no image"),
    "fractions for labels": ({"labels": (0.5, 1.5), "kind": Value("float32")}, "not class labels"),
    "labels in a struct": ({"labels": [{"n": "a"}] * 2, "kind": {"n": Value("string")}}, "not class labels"),
    "several labels a row": ({"labels": [[0, 1]] * 2, "kind": Sequence(AB)}, "not class labels"),
    "a null among texts": ({"labels": ("a", "b", None), "kind": Value("string")}, "rows without a label"),
    "a null among class labels": ({"labels": (0, 1, None)}, "row 2 has label None"),
    "an unknown class label": ({"labels": (0, 1, -1)}, "1 of 3 rows in split 'train'"),
    "one class only": ({"kind": ClassLabel(names=["only"]), "labels": (0, 0)}, "one class only (only)"),
    "no validation split": ({"splits": ("train", "test")}, "no split 'validation' (it has: train, test)"),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True], ids=["memory", "stream"])
@pytest.mark.parametrize("name", REFUSED)
def test_an_unusable_dataset_is_one_error_message(name, stream, tmp_path):
    columns, sentence = REFUSED[name]
    assert sentence in refusal(write(tmp_path, **columns), stream)


@pytest.mark.parametrize("stream", [False, True], ids=["memory", "stream"])
@pytest.mark.parametrize("split", SPLITS)
def test_an_empty_split_is_reported(split, stream, tmp_path):
    file = write(tmp_path) / f"{split}.parquet"
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    message = refusal(tmp_path, stream)
    assert "split" in message and "is empty" in message


@pytest.mark.parametrize("stream", [False, True], ids=["memory", "stream"])
@pytest.mark.parametrize(
    ("split", "labels", "message"),
    [
        ("validation", (10, 1), "1 of 2 rows in split 'validation' .*row 1 has label 1.*name another split"),
        ("test", (-1, -1), "2 of 2 rows in split 'test' .* pass --test_split none"),
    ],
)
def test_labels_missing_from_the_training_split_are_reported_on_opening(
    split, labels, message, stream, tmp_path
):
    write(tmp_path, (10, 20), Value("int64"))
    write(tmp_path, labels, Value("int64"), splits=(split,))
    with pytest.raises(TrainingError, match=message):
        open_source(data_options(tmp_path), streaming=stream)
    if_left_out = data_options(tmp_path, **{f"{split}_split": "train" if split == "validation" else "none"})
    assert open_source(if_left_out, streaming=stream).sizes["train"] == 2


ACCEPTED = {
    "texts": (("b", "a", "b"), Value("string"), ["a", "b"], [1, 0, 1]),
    "huge numbers": ((2**62, 7), Value("int64"), ["7", str(2**62)], [1, 0]),
    "unsigned numbers": ((2**63 + 5, 0), Value("uint64"), ["0", str(2**63 + 5)], [1, 0]),
    "bools": ((True, False), Value("bool"), ["False", "True"], [1, 0]),
    "floats that are whole": ((2.0, 1.0), Value("float64"), ["1", "2"], [1, 0]),
    "class labels": ((1, 0), ClassLabel(names=["Zelle, große", "x/y"]), ["Zelle, große", "x/y"], [1, 0]),
}


@pytest.mark.parametrize("stream", [False, True], ids=["memory", "stream"])
@pytest.mark.parametrize("name", ACCEPTED)
def test_labels_of_any_type_keep_their_names(name, stream, tmp_path):
    labels, kind, names, indices = ACCEPTED[name]
    source = open_source(data_options(write(tmp_path, labels, kind)), streaming=stream)
    assert source.label_names == names and source.labels["test"].tolist() == indices
    assert [row.label for row in source.rows("test")] == indices
    assert source.class_counts("train") == [indices.count(0), indices.count(1)]


@pytest.mark.parametrize("stream", [False, True], ids=["memory", "stream"])
def test_encoded_images_in_a_binary_column_are_read(stream, tmp_path):
    write(tmp_path, images=[encoded(PICTURE, "PNG")] * 2, image_kind=Value("binary"))
    rows = open_source(data_options(tmp_path), streaming=stream).rows("train")
    assert [read_image(row.data).size for row in rows] == [(16, 16)] * 2


def test_several_configurations_are_listed_with_the_option(tmp_path):
    for name in ("bone_marrow", "blood"):
        write(tmp_path / name)
    configs = "".join(f"- config_name: {name}\n  data_dir: {name}\n" for name in ("bone_marrow", "blood"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    text = refusal(tmp_path)
    assert "bone_marrow, blood" in text and "--dataset_config" in text
    assert open_source(data_options(tmp_path, dataset_config="blood"), streaming=False).sizes["train"] == 2


@pytest.mark.parametrize("described", ["[a, b]", "text", "{a: one}"])
def test_label_descriptions_come_from_the_card(described, tmp_path):
    (write(tmp_path) / "README.md").write_text(f"---\nlabel_descriptions: {described}\n---\n")
    source = open_source(data_options(tmp_path), streaming=False)
    assert source.label_descriptions == {"a": "one" if ":" in described else "a", "b": "b"}


def test_a_streamed_file_is_not_read_ahead_of_a_slow_consumer(tmp_path):
    """40 row groups of a megabyte: pyarrow's own scanner had all of them in memory by the third row."""
    kinds = Features({"image": datasets.Image(), "label": AB}).arrow_schema
    picture = {"bytes": os.urandom(2**20), "path": None}
    for split in ("train", "validation"):
        with pq.ParquetWriter(tmp_path / f"{split}.parquet", kinds, compression="none") as writer:
            for number in range(40 if split == "train" else 1):
                writer.write_table(pa.table({"image": [picture], "label": [number % 2]}, schema=kinds))
    source = open_source(data_options(tmp_path), streaming=True)
    before = pa.total_allocated_bytes()
    for number, row in enumerate(source.rows("train", shuffle=(0, 2))):
        if number < 3:
            time.sleep(0.3)
            assert pa.total_allocated_bytes() - before < 8 * 2**20
        assert len(row.data) == 2**20
    assert number == 39


def test_a_card_with_wrong_row_counts_is_one_error_message(tmp_path):
    write(tmp_path)
    card = "---\ndataset_info:\n  splits:\n  - name: train\n    num_bytes: 9\n    num_examples: 9\n---\n"
    (tmp_path / "README.md").write_text(card)
    assert "`dataset_info` in its card" in refusal(tmp_path)


def test_the_revision_of_a_folder_does_not_depend_on_its_card(tmp_path):
    before = revision_of(data_options(write(tmp_path)))
    (tmp_path / "README.md").write_text("# Cells")
    assert revision_of(data_options(tmp_path)) == before
    write(tmp_path, (0, 1, 0, 1), splits=("test",))
    assert revision_of(data_options(tmp_path)) != before


def test_the_error_for_a_missing_dataset_names_it(tmp_path, monkeypatch):
    assert "nobody/nothing" in refusal("nobody/nothing")
    assert "--dataset is empty" in refusal("")
    assert str(tmp_path) in refusal(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "nobody/unreachable" in refusal("nobody/unreachable")
