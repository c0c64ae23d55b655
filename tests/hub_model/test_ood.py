"""Out-of-distribution inputs and the rule that rejects them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from hub_model.__main__ import main
from hub_model.inference.calibration import Calibration
from hub_model.inference.errors import RepoError
from hub_model.studies.ood import auroc, fit_rule, histogram, report, set_threshold, write_rule
from hub_model.studies.ood_inputs import MAKERS, background_patches, make_inputs

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


@pytest.mark.parametrize("kind", MAKERS)
def test_ood_inputs_are_frames_of_the_right_size_and_repeat_by_seed(kind):
    first, again = (make_inputs(kind, 3, seed=1) for _ in range(2))
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


def test_auroc_counts_ties_half():
    assert auroc(np.array([0, 1]), np.array([1, 2])) == 0.875


def test_report_and_histogram_count_everything():
    rule = set_threshold(fit_rule(*cells(600, 6)), cells(300, 7)[0])
    result = report(rule.score(cells(250, 8)[0]), {"far": rule.score(far(50, 9))}, rule.threshold)
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
    rule = set_threshold(fit_rule(*cells(300, 1)), cells(100, 3)[0])
    write_rule(tmp_path, rule)
    read = Calibration.from_folder(tmp_path, ["A", "B", "C"])
    inputs = np.concatenate([far(40, 2), cells(40, 4)[0]])
    np.testing.assert_array_equal(read.ood_score(inputs), rule.score(inputs))
    assert read.ood.threshold == rule.threshold < math.inf
    assert read.rejected(read.ood_score(inputs), 80).tolist() == [True] * 40 + [False] * 40


def test_a_folder_that_is_no_model_is_one_sentence(tmp_path, capsys):
    for sentence in ("run `python -m hub_model calibrate` first", "has no config.json"):
        assert main(["ood", str(tmp_path), "no-data"]) == 1
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1
        (tmp_path / "calibration.json").write_text(json.dumps({"temperature": {"value": 1}}))
