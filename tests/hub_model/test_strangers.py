"""Strangers and the rule that turns them away."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from hub_model.__main__ import main
from hub_model.inference.errors import RepoError
from hub_model.inference.ood import SCORES
from hub_model.out_of_distribution import (
    Answers,
    auroc,
    choose,
    fit_mahalanobis,
    fit_neighbours,
    fit_rules,
    histogram,
    report,
    threshold_for,
    write_rule,
)
from hub_model.strangers import DRAWINGS, MAKERS, MICROSCOPY, PHOTOGRAPHS, background_patches, make_strangers

CLASSES, DIMENSIONS = 3, 20


def cells(images: int, seed: int) -> tuple[Answers, np.ndarray]:
    """Features in three tight clusters of a few directions; logits that follow them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, images)
    features = np.full((images, DIMENSIONS), 2.0) + 0.1 * rng.standard_normal((images, DIMENSIONS))
    features[:, :3] += 3 * np.eye(3)[labels] + 0.5 * rng.standard_normal((images, 3))
    return Answers(2 * features[:, :3], features.astype(np.float32)), labels


def far(images: int, seed: int) -> Answers:
    """Features away from the cells across their directions; logits as sure as any cell's."""
    answers, _ = cells(images, seed)
    return Answers(answers.logits, answers.features + np.float32([0] * 3 + [1.5] * (DIMENSIONS - 3)))


@pytest.mark.parametrize("kind", MAKERS)
def test_strangers_are_frames_of_the_right_size_and_repeat_by_seed(kind):
    first, again = (make_strangers(kind, 3, "reporting", seed=1) for _ in range(2))
    for image, twin in zip(first, again, strict=True):
        assert image.shape == (250, 250, 3)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, twin)
    assert not np.array_equal(first[0], first[1])


def test_what_chooses_the_score_does_not_report_it():
    for sources in (PHOTOGRAPHS, MICROSCOPY, DRAWINGS):
        assert not set(sources["choosing"]) & set(sources["reporting"])
    for kind in MAKERS:
        choosing, reporting = (make_strangers(kind, 4, half) for half in ("choosing", "reporting"))
        assert not any(np.array_equal(a, b) for a in choosing for b in reporting)


def test_background_patches_hold_no_nucleus():
    field = np.full((100, 100, 3), (240, 220, 210), dtype=np.uint8)
    one_cell, crowded = field.copy(), field.copy()
    one_cell[55:95, 55:95] = (90, 40, 140)
    crowded[::4] = (90, 40, 140)
    patches = background_patches([one_cell, crowded, field], images=5)
    assert len(patches) == 2
    assert all((patch == field[0, 0]).all() for patch in patches)


def test_mahalanobis_is_the_distance_of_the_full_covariance_when_nothing_is_left_out():
    answers, labels = cells(4000, 0)
    rule = fit_mahalanobis(answers.features, labels, directions=DIMENSIONS - 1)
    means = np.stack([answers.features[labels == c].mean(axis=0) for c in range(CLASSES)]).astype(np.float64)
    centred = answers.features - means[labels]
    precision = np.linalg.inv(centred.T @ centred / (len(centred) - CLASSES))
    away = answers.features[:50, None] - means
    expected = np.einsum("ncd,de,nce->nc", away, precision, away).min(axis=1)
    np.testing.assert_allclose(rule(Answers(answers.logits[:50], answers.features[:50])), expected, rtol=0.02)


def test_mahalanobis_works_with_fewer_images_than_features():
    answers, labels = cells(12, 1)
    assert np.isfinite(fit_mahalanobis(answers.features, labels)(far(5, 2))).all()


def test_neighbour_distance_is_that_to_the_kth_nearest_direction():
    training = np.eye(3, dtype=np.float32)
    rule = fit_neighbours(training, k=2)
    np.testing.assert_allclose(
        rule(Answers(np.zeros((1, 2)), np.float32([[5, 0, 0]]))), np.sqrt(2), rtol=1e-3
    )


def test_a_feature_distance_is_chosen_where_the_logits_see_no_difference():
    train, labels = cells(600, 3)
    rules = fit_rules(train, labels, temperature=1.0)
    assert set(rules) == set(SCORES)
    chosen, table = choose(rules, cells(200, 4)[0], {"far": far(200, 5)})
    assert chosen in ("mahalanobis", "neighbours")
    assert table[chosen]["far"] > 0.99
    assert 0.4 < table["energy"]["far"] < 0.6


def test_energy_falls_with_sure_logits():
    rule = fit_rules(*cells(60, 0), temperature=2.0)["energy"]
    sure, unsure = (rule(Answers(np.array([row]), np.zeros((1, 2)))) for row in ([9.0, 0, 0], [1.0, 1, 1]))
    assert sure < unsure
    np.testing.assert_allclose(unsure, -2 * np.log(3 * np.exp(0.5)))


def test_threshold_keeps_its_false_alarms_on_new_cells():
    alarms = []
    for seed in range(200):
        scores = np.random.default_rng(seed).standard_normal(1000)
        alarms.append((scores[500:] > threshold_for(scores[:500], 0.05)).mean())
    assert np.mean(alarms) <= 0.052
    assert np.mean(alarms) >= 0.045
    with pytest.raises(RepoError, match="too few"):
        threshold_for(np.zeros(10), 0.05)


def test_auroc_counts_ties_half():
    assert auroc(np.array([0, 1]), np.array([1, 2])) == 0.875


def test_report_and_histogram_count_everything():
    train, labels = cells(600, 6)
    rule = fit_rules(train, labels, 1.0)["mahalanobis"]
    known = cells(300, 7)[0]
    result = report(rule, threshold_for(rule(known)), cells(250, 8)[0], {"far": far(50, 9)})
    assert result["kinds"]["far"]["auroc"] > 0.99
    assert result["kinds"]["far"]["flagged"] > 0.95
    low, high = result["kinds"]["far"]["intervals"]["auroc"]
    assert low <= result["kinds"]["far"]["auroc"] <= high
    assert result["false_alarms"] < 0.08
    assert sum(result["histogram"]["cells"]) == 250
    assert sum(histogram(np.arange(5.0), {"a": np.array([1e9, -1e9])})["strangers"]["a"]) == 2


def test_the_written_rule_answers_as_the_fitted_one(tmp_path):
    (tmp_path / "calibration.json").write_text(json.dumps({"schema": 1}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    rules = fit_rules(*cells(300, 1), temperature=1.5)
    strangers = far(40, 2)
    for name, rule in rules.items():
        write_rule(tmp_path, rule, 1.25)
        written = json.loads((tmp_path / "calibration.json").read_text())["out_of_distribution"]
        assert written["threshold"] == 1.25
        assert written["fitted_on"] == "validation"
        path = tmp_path / "out_of_distribution.safetensors"
        assert path.exists() == bool(rule.arrays)
        arrays = load_file(path) if rule.arrays else {}
        np.testing.assert_array_equal(
            SCORES[name](strangers.logits, strangers.features, written, arrays), rule(strangers)
        )


def test_a_folder_that_is_no_model_is_one_sentence(tmp_path, capsys):
    (tmp_path / "calibration.json").write_text(json.dumps({"temperature": {"value": 1}}))
    assert main(["strangers", str(tmp_path), "no-data"]) == 1
    error = capsys.readouterr().err
    assert "it has no config.json" in error and error.count("\n") == 1
