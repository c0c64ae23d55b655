"""Out-of-distribution inputs and the rule that rejects them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from dataset_script.synthetic_cells import LOOKS, draw_cell
from hub_model.__main__ import main
from hub_model.inference.appearance import STATISTICS, AppearanceReference, appearance
from hub_model.inference.calibration import Calibration
from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import RepoError
from hub_model.studies import shift
from hub_model.studies.ood import (
    auroc,
    fit_appearance,
    fit_rule,
    histogram,
    report,
    section,
    set_threshold,
    write_rule,
)
from hub_model.studies.ood_inputs import FROM_CELLS, MAKERS, background_patches, make_from_cells, make_inputs
from hub_model.studies.perturbations import blur, brightness
from tests.hub_model.small_classifier import LABELS

CLASSES, DIMENSIONS = 3, 20


def cells(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features in three tight clusters of a few directions, and their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, images)
    features = np.full((images, DIMENSIONS), 2.0) + 0.1 * rng.standard_normal((images, DIMENSIONS))
    features[:, :3] += 3 * np.eye(3)[labels] + 0.5 * rng.standard_normal((images, 3))
    return features.astype(np.float32), labels


def far(images: int, seed: int) -> np.ndarray:
    """Features away from the cells across their directions."""
    return cells(images, seed)[0] + np.float32([0] * 3 + [1.5] * (DIMENSIONS - 3))


@pytest.fixture(scope="module")
def drawn() -> list[np.ndarray]:
    """Cells of every class in many shades."""
    return [np.asarray(draw_cell(list(LOOKS)[i % 7], i)) for i in range(120)]


def looks(drawn: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Appearance of half of the drawn cells, their classes, their two laboratories, and appearance of the other half."""
    statistics = appearance(pixels_of(drawn))
    return statistics[:60], np.eye(7)[np.arange(60) % 7], ["a", "b"] * 30, statistics[60:]


def pixels_of(images: list[np.ndarray]) -> np.ndarray:
    """[N, 3, 96, 96] in 0…1."""
    small = [np.asarray(Image.fromarray(image).resize((96, 96))) for image in images]
    return np.stack(small).transpose(0, 3, 1, 2) / np.float32(255)


@pytest.mark.parametrize("kind", [*MAKERS, *FROM_CELLS])
def test_ood_inputs_are_frames_of_the_right_size_and_repeat_by_seed(kind, drawn):
    first, again = (
        make_inputs(kind, 3, seed=1) if kind in MAKERS else make_from_cells(kind, drawn[:5], 3, seed=1)
        for _ in range(2)
    )
    for image, twin in zip(first, again, strict=True):
        assert image.shape == (250, 250, 3)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, twin)
    assert not np.array_equal(first[0], first[1])


def test_background_patches_hold_no_nucleus():
    field = np.full((100, 100, 3), (240, 220, 210), dtype=np.uint8)
    one_cell, crowded = field.copy(), field.copy()
    one_cell[55:95, 55:95] = (90, 40, 140)
    crowded[::4] = (90, 40, 140)
    patches = background_patches([one_cell, crowded, field], images=5)
    assert len(patches) == 2
    assert all((patch == field[0, 0]).all() for patch in patches)


def test_the_score_is_the_distance_of_the_full_covariance_when_nothing_is_left_out():
    features, labels = cells(4000, 0)
    rule = fit_rule(features, labels, directions=DIMENSIONS - 1)
    means = np.stack([features[labels == c].mean(axis=0) for c in range(CLASSES)]).astype(np.float64)
    centred = features - means[labels]
    precision = np.linalg.inv(centred.T @ centred / (len(centred) - CLASSES))
    away = features[:50, None] - means
    expected = np.einsum("ncd,de,nce->nc", away, precision, away).min(axis=1)
    np.testing.assert_allclose(rule.score(features[:50]), expected, rtol=0.02)


def test_the_score_works_with_fewer_images_than_features():
    assert np.isfinite(fit_rule(*cells(12, 1)).score(far(5, 2))).all()


def test_the_threshold_keeps_its_false_positive_rate_on_new_cells():
    rule, rates = fit_rule(*cells(500, 0)), []
    for seed in range(100):
        fitted = set_threshold(rule, cells(500, 2 * seed)[0], 0.05)
        rates.append((rule.score(cells(500, 2 * seed + 1)[0]) > fitted.threshold).mean())
    assert 0.044 <= np.mean(rates) <= 0.053
    with pytest.raises(RepoError, match="10 validation images are too few"):
        set_threshold(rule, cells(10, 0)[0], 0.05)


@pytest.mark.parametrize(
    "kind", ["purple discs", "inverted cells", "single colours", "whole fields", "noise"]
)
def test_what_looks_like_no_training_image_is_rejected_though_its_features_are_those_of_a_cell(kind, drawn):
    inputs = make_inputs(kind, 20) if kind in MAKERS else make_from_cells(kind, drawn, 20)
    rule = set_threshold(fit_rule(*cells(500, 0)), cells(500, 1)[0])
    found = fit_appearance(*looks(drawn), rule.score(cells(60, 2)[0]) / rule.threshold)
    calibration = Calibration(("A", "B"), ood=rule, appearance=AppearanceReference.read(found))
    score = calibration.ood_score(cells(20, 3)[0], appearance(pixels_of(inputs)))
    assert calibration.rejected(score, 20).mean() >= 0.95


def test_both_distances_together_keep_the_false_positive_rate_and_see_what_neither_does(drawn):
    *_, held_out = looks(drawn)
    rule = set_threshold(fit_rule(*cells(500, 0)), cells(500, 1)[0])
    features = cells(60, 2)[0]
    reference = AppearanceReference.read(fit_appearance(*looks(drawn), rule.score(features) / rule.threshold))
    calibration = Calibration(("A", "B"), ood=rule, appearance=reference)
    assert 0.2 < reference.weight < 0.8
    assert (calibration.ood_score(features, held_out) > 1).mean() <= 0.05

    # features and looks as far off as those of one cell in ten: neither alone is rejected
    tenth = [np.argsort(distances)[-6:-5] for distances in (rule.score(features), reference.score(held_out))]
    assert rule.score(features[tenth[0]]) < rule.threshold
    assert calibration.ood_score(features[tenth[0]], held_out[tenth[1]]) > 1


def test_a_malformed_weight_is_refused(drawn):
    found = fit_appearance(*looks(drawn), np.linspace(0.1, 1, 60))
    with pytest.raises(ValueError, match="weight"):
        AppearanceReference.read(found | {"weight": 1.5})


def test_a_batch_from_another_camera_is_told_with_the_reason(drawn):
    found = fit_appearance(*looks(drawn), np.linspace(0.1, 1, 60))
    reference = AppearanceReference.read(found)
    assert reference.sources == ("a", "b")
    rng = np.random.default_rng(0)
    batches = [rng.choice(120, 20, replace=False) for _ in range(100)]
    statistics, classes = appearance(pixels_of(drawn)), np.eye(7)[np.arange(120) % 7]
    assert sum(reference.shift(statistics[batch], classes[batch]) is not None for batch in batches) <= 1
    changed = {
        "are more blurred": lambda image: blur(image, 0.02),
        "have a darker background": lambda image: brightness(image, 0.6),
    }
    for reason, change in changed.items():
        statistics = appearance(pixels_of([change(image) for image in drawn[:20]]))
        sentence = str(reference.shift(statistics, classes[:20]))
        assert reason in sentence or "are darker" in sentence
        assert reference.shift(statistics[:19], classes[:19]) is None, "fewer than 20 images say too little"


def test_a_batch_of_one_class_is_no_other_laboratory():
    """Class 0 is as dark as no other; a batch of it is as expected, a batch of others as dark as it is not."""
    rng = np.random.default_rng(0)
    labels = np.eye(3)[np.arange(300) % 3]
    statistics = rng.standard_normal((300, len(STATISTICS))) - 6 * labels[:, :1] * (
        np.arange(len(STATISTICS)) == 3
    )
    found = fit_appearance(statistics, labels, ["a"] * 300, statistics, np.linspace(0.1, 1, 300))
    reference, dark = AppearanceReference.read(found), labels[:, 0] == 1
    assert reference.shift(statistics[dark], labels[dark]) is None
    assert reference.shift(statistics[~dark], labels[~dark]) is None
    shift = reference.shift(statistics[dark], labels[~dark][:100])
    assert shift.statistic == "mean_red" and shift.off == pytest.approx(-6, abs=0.5)


def test_a_laboratory_without_a_class_expects_its_mean_there():
    labels = np.eye(3)[np.arange(60) % 2]
    statistics = np.random.default_rng(0).standard_normal((60, len(STATISTICS)))
    found = fit_appearance(statistics, labels, ["a"] * 60, statistics, np.linspace(0.1, 1, 60))["sources"][
        "a"
    ]
    np.testing.assert_allclose(found["class_means"][2], found["mean"])


def test_auroc_counts_ties_half():
    assert auroc(np.array([0, 1]), np.array([1, 2])) == 0.875


def test_report_and_histogram_count_everything():
    rule = set_threshold(fit_rule(*cells(600, 6)), cells(300, 7)[0])
    scores = (rule.score(features) / rule.threshold for features in (cells(250, 8)[0], far(50, 9)))
    result = report(next(scores), {"far": next(scores)})
    found = result["kinds"]["far"]
    assert found["auroc"] > 0.99 and found["detection_rate"] > 0.95
    low, high = found["intervals"]["auroc"]
    assert low <= found["auroc"] <= high
    assert result["false_positive_rate"] < 0.08
    assert sum(result["histogram"]["cells"]) == 250
    assert sum(histogram(np.arange(5.0), {"a": np.array([1e9, -1e9])})["ood"]["a"]) == 2


def test_the_written_rule_answers_as_the_fitted_one(tmp_path):
    (tmp_path / "calibration.json").write_text(json.dumps({"schema": 1}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    rule = set_threshold(fit_rule(*cells(300, 1)), cells(100, 3)[0], rate=0.025)
    write_rule(tmp_path, rule)
    read = Calibration.from_folder(tmp_path, ["A", "B", "C"])
    inputs = np.concatenate([far(40, 2), cells(40, 4)[0]])
    np.testing.assert_array_equal(read.ood_score(inputs), rule.score(inputs) / rule.threshold)
    assert read.ood.threshold == rule.threshold < math.inf
    assert read.rejected(read.ood_score(inputs), 80).tolist() == [True] * 40 + [False] * 40


def test_a_folder_that_is_no_model_is_one_sentence(tmp_path, capsys):
    for sentence in ("run `python -m hub_model calibrate` first", "has no config.json"):
        assert main(["ood", str(tmp_path), "no-data"]) == 1
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1
        (tmp_path / "calibration.json").write_text(json.dumps({"temperature": {"value": 1}}))


@pytest.fixture(scope="module")
def measured(model, tmp_path_factory) -> tuple[Path, Path]:
    """A model repo and a dataset of two laboratories, after `ood`."""
    folder, dataset = (tmp_path_factory.mktemp("measured") / name for name in ("model", "dataset"))
    shutil.copytree(model, folder)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(LABELS)),
            "file_name": datasets.Value("string"),
            "source": datasets.Value("string"),
        }
    )
    (dataset / "data").mkdir(parents=True)
    for split, first, images in (("train", 0, 60), ("validation", 100, 45), ("test", 200, 40)):
        rows = [
            {
                "image": draw_cell(list(LOOKS)[i % 7], first + i),
                "label": i % 3,
                "file_name": f"{i}.png",
                "source": "ab"[i % 2],
            }
            for i in range(images)
        ]
        part = datasets.Dataset.from_list(rows, features)
        part.to_parquet(dataset / "data" / f"{split}-00000-of-00001.parquet")
    assert main(["ood", str(folder), str(dataset), "--each", "5"]) == 0
    return folder, dataset


def test_ood_fits_both_distances_and_measures_them(measured):
    folder, _ = measured
    found = json.loads((folder / "measurements" / "out_of_distribution.json").read_text())["result"]
    classifier = Classifier.from_pretrained(folder)
    calibration = classifier.calibration
    assert calibration.appearance.sources == ("a", "b")
    assert found["thresholds"] == {
        "features": calibration.ood.threshold,
        "appearance": calibration.appearance.threshold,
    }
    assert found["cells"] == 40 and found["false_positive_rate"] < 0.2
    assert found["kinds"]["inverted cells"] | {"intervals": 0} == {
        "inputs": 5, "auroc": 1.0, "detection_rate": 1.0, "intervals": 0
    }  # fmt: skip
    assert "| inverted cells | 1.000 [1.000, 1.000] | 100.0% |" in section(found)
    assert classifier.predict(make_inputs("noise", 5)).ood_score.min() > 1


def test_shift_warns_of_another_laboratory_alone(measured, drawn, tmp_path, capsys):
    folder, dataset = measured
    for i, image in enumerate(drawn[:20]):
        Image.fromarray(brightness(image, 0.5)).save(tmp_path / f"{i}.png")
    assert main(["shift", str(folder), str(dataset), "--left_out", str(tmp_path), "--images", "20"]) == 0
    found = json.loads((folder / "measurements" / "shift.json").read_text())["result"]
    assert all(of["images"] == 20 for of in found.values())
    assert {kind: of["warned"] for kind, of in found.items() if of["known"]} == {
        "test images of a": 0.0, "test images of b": 0.0
    }  # fmt: skip
    assert found[f"{tmp_path.name} (left out of training)"]["warned"] == 1.0
    assert "| brightness × 0.7 (simulated) | unknown | 100.0% |" in shift.section(found)
    assert "test images of a" in capsys.readouterr().out
