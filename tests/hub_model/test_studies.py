"""The studies as commands: each measures a small model on synthetic cells of two laboratories and writes its part of the card."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataset_script.synthetic_cells import LOOKS, draw_cell
from hub_model.__main__ import main
from hub_model.inference.classifier import Classifier
from hub_model.studies import SECTIONS, crops
from hub_model.studies.ood_inputs import make_inputs
from hub_model.studies.perturbations import PERTURBATIONS, scale_channels
from hub_model.studies.robustness import score
from tests.hub_model.small_classifier import LABELS


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """40 to 60 images per split, alternately from laboratories a and b."""
    folder = tmp_path_factory.mktemp("dataset")
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(LABELS))}
    kinds |= {"file_name": datasets.Value("string"), "source": datasets.Value("string")}
    (folder / "data").mkdir()
    for split, first, images in (("train", 0, 60), ("validation", 100, 45), ("test", 200, 40)):
        rows = [
            (draw_cell(list(LOOKS)[i % 7], first + i), i % 3, f"{i}.png", "ab"[i % 2]) for i in range(images)
        ]
        records = [dict(zip(kinds, row, strict=True)) for row in rows]
        table = datasets.Dataset.from_list(records, datasets.Features(kinds))
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def folder(model, dataset, tmp_path_factory) -> Path:
    """A run folder after `ood`."""
    folder = Path(shutil.copytree(model, tmp_path_factory.mktemp("measured") / "run"))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "optimizer.bin").touch()
    assert main(["ood", str(folder), str(dataset), "--each", "5"]) == 0
    return folder


def measured(folder: Path, key: str) -> tuple[dict | list, str]:
    """The result that a study wrote, and its section of the card."""
    result = json.loads((folder / "measurements" / f"{key}.json").read_text())["result"]
    return result, SECTIONS[key](result)


def test_ood_fits_both_distances_and_measures_them(folder, tmp_path):
    result, section = measured(folder, "out_of_distribution")
    classifier = Classifier.from_pretrained(
        shutil.copytree(folder, tmp_path / "model", ignore=lambda *_: ["checkpoints"])
    )
    calibration = classifier.calibration
    assert calibration.appearance.sources == ("a", "b")
    thresholds = {"features": calibration.ood.threshold, "appearance": calibration.appearance.threshold}
    assert result["thresholds"] == thresholds
    assert result["cells"] == 40 and result["false_positive_rate"] < 0.2
    assert "| inverted cells | 1.000 [1.000, 1.000] | 100.0% |" in section
    assert classifier.predict(make_inputs("noise", 5, [])).ood_score.min() > 1


def test_shift_warns_of_other_laboratories_only(folder, dataset, tmp_path):
    for i in range(20):
        image = np.asarray(draw_cell(list(LOOKS)[i % 7], i))
        Image.fromarray(scale_channels(image, 0.5)).save(tmp_path / f"{i}.png")
    assert main(["shift", str(folder), str(dataset), "--left_out", str(tmp_path), "--images", "20"]) == 0
    result, section = measured(folder, "shift")
    assert all(of["images"] == 20 for of in result.values())
    known = {kind: of["warned"] for kind, of in result.items() if of["known"]}
    assert known == {"test images of a": 0.0, "test images of b": 0.0}
    assert result[f"{tmp_path.name} (left out of training)"]["warned"] == 1.0
    assert "| brightness × 0.7 (simulated) | unknown | 100.0% |" in section


def test_too_few_images_for_a_batch_are_a_one_line_error(folder, dataset, tmp_path, capsys):
    assert main(["shift", str(folder), str(dataset), "--left_out", str(tmp_path)]) == 1
    name = f"{tmp_path.name} (left out of training)"
    assert capsys.readouterr().err.endswith(f"error: 0 images ({name}) are too few: a batch has 20\n")


def test_robustness_and_input_size_start_with_the_accuracy_of_the_model(folder, dataset):
    """Their first row is that of unaltered images, and that of 32 px, the model's own size."""
    classifier = crops.open_classifier(folder)
    for split, command, options in (
        ("test", "robustness", ["--images", "40"]),
        ("validation", "input-size", ["--sizes", "64", "32"]),
    ):
        assert main([command, str(folder), str(dataset), *options]) == 0
        images = crops.read_crops(str(dataset), split)
        predicted = classifier.predict(images).logits.argmax(axis=1)
        rows, section = measured(folder, command.replace("-", "_"))
        assert rows[0]["accuracy"] == pytest.approx((predicted == images.labels).mean())
        assert section.count("\n| ") == 2 + len(rows)
    assert [row["size"] for row in rows] == [32, 64] and rows[0]["gmacs"] < rows[1]["gmacs"]
    assert len(measured(folder, "robustness")[0]) == len(PERTURBATIONS)


def test_robustness_scores_by_class_and_skips_classes_without_images():
    figures = score(np.array([0, 1, 0, 1]), np.array([0, 0, 0, 1]), ("A", "B", "C"))
    assert figures["recall"] == pytest.approx({"A": 2 / 3, "B": 1})
    assert figures["accuracy"] == 0.75 and figures["balanced_accuracy"] == pytest.approx(5 / 6)
    assert figures["interval"][0] < 5 / 6 <= figures["interval"][1]


def test_a_sample_is_spread_evenly_over_the_classes(dataset):
    images = crops.read_crops(str(dataset), "train")
    chosen = images.take(range(0, 60, 2)).sample(9, seed=1)
    assert np.bincount(chosen.labels).tolist() == [3, 3, 3]
    assert set(chosen.sources) == {"a"} and len(list(chosen)) == 9


def test_label_issues_are_held_out_images_with_a_likelier_label(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"label_names": LABELS}))
    labels = np.arange(120) % 3
    logits = 3 * np.eye(3)[labels] + np.random.default_rng(0).normal(size=(120, 3)) / 2
    wrong = dict.fromkeys(range(1, 13, 3), 0) | dict.fromkeys(range(62, 74, 3), 1)
    columns = {
        "file_name": [f"{i}.png" for i in range(120)],
        "label": [wrong.get(i, label) for i, label in enumerate(labels)],
        "logits": pa.array(logits.tolist(), pa.list_(pa.float32())),
    }
    for split, start in (("validation", 0), ("test", 60)):
        pq.write_table(pa.table(columns).slice(start, 60), tmp_path / f"logits_{split}.parquet")
    assert main(["label-issues", str(tmp_path), "--out", str(tmp_path / "issues.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "issues.csv").open()))
    assert len(rows) >= 6 and {row["file_name"] for row in rows} <= {f"{i}.png" for i in wrong}
    assert {(row["label"], row["suggested"]) for row in rows} == {("alpha", "beta"), ("beta", "gamma")}
    assert all(row["given_probability"] < row["suggested_probability"] for row in rows)


def test_label_issues_without_cleanlab_is_a_one_line_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    assert main(["label-issues", str(tmp_path)]) == 1
    assert "pip install 'bone-marrow-cells[audit]'" in capsys.readouterr().err


def test_a_folder_without_a_model_is_a_one_line_error(tmp_path, capsys):
    for sentence in ("run `python -m hub_model calibrate` first", "has no config.json"):
        assert main(["ood", str(tmp_path), "no-data"]) == 1
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1
        (tmp_path / "calibration.json").write_text(json.dumps({"temperature": {"value": 1}}))
