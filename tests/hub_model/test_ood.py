"""Out-of-distribution inputs and the rule that rejects them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from dataset_script.synthetic_cells import LOOKS, draw_cell
from hub_model.inference.appearance import STATISTICS, AppearanceReference, appearance
from hub_model.inference.calibration import Calibration
from hub_model.inference.errors import RepoError
from hub_model.inference.ood import OodRule
from hub_model.studies.ood import fit_appearance, fit_rule, histogram, report, set_threshold, write_rule
from hub_model.studies.ood_inputs import MAKERS, background_patches, make_inputs
from hub_model.studies.perturbations import blur, scale_channels

CLASSES, DIMENSIONS = 3, 20


def cells(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features in three tight clusters of a few directions, and their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, images)
    features = np.full((images, DIMENSIONS), 2.0) + 0.1 * rng.standard_normal((images, DIMENSIONS))
    features[:, :3] += 3 * np.eye(3)[labels] + 0.5 * rng.standard_normal((images, 3))
    return features.astype(np.float32), labels


def far(images: int, seed: int) -> np.ndarray:
    """Features far from the cells, orthogonal to the directions in which those vary."""
    return cells(images, seed)[0] + np.float32([0] * 3 + [1.5] * (DIMENSIONS - 3))


@pytest.fixture(scope="module")
def rule() -> OodRule:
    return set_threshold(fit_rule(*cells(500, 0)), cells(500, 1)[0])


@pytest.fixture(scope="module")
def drawn() -> list[np.ndarray]:
    """Synthetic cells of every class in many shades."""
    return [np.asarray(draw_cell(list(LOOKS)[i % 7], i)) for i in range(120)]


def statistics_of(images: list[np.ndarray]) -> np.ndarray:
    """Appearance statistics of images at 96 × 96 pixels."""
    small = [np.asarray(Image.fromarray(image).resize((96, 96))) for image in images]
    return appearance(np.stack(small).transpose(0, 3, 1, 2) / np.float32(255))


def fitted(statistics: np.ndarray, feature_scores: np.ndarray) -> dict:
    """`appearance` fitted to the first half of drawn cells, alternately from two laboratories; threshold from the others."""
    classes = np.eye(7)[np.arange(60) % 7]
    return fit_appearance(statistics[:60], classes, ["a", "b"] * 30, statistics[60:], feature_scores)


@pytest.fixture(scope="module")
def calibration(drawn, rule) -> Calibration:
    """With both distances."""
    reference = fitted(statistics_of(drawn), rule.score(cells(60, 2)[0]) / rule.threshold)
    return Calibration(("A", "B"), ood=rule, appearance=AppearanceReference.read(reference))


@pytest.mark.parametrize("kind", MAKERS)
def test_ood_inputs_have_the_size_of_crops_and_are_seeded(kind, drawn):
    first, again = (make_inputs(kind, 3, drawn[:5], seed=1) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.shape(first) == (3, 250, 250, 3) and first[0].dtype == np.uint8
    assert not np.array_equal(first[0], first[1])


def test_background_patches_have_no_nucleus():
    field = np.full((100, 100, 3), (240, 220, 210), dtype=np.uint8)
    one_cell, crowded = field.copy(), field.copy()
    one_cell[55:95, 55:95] = (90, 40, 140)
    crowded[::4] = (90, 40, 140)
    patches = background_patches([one_cell, crowded, field], images=5)
    assert len(patches) == 2
    assert all((patch == field[0, 0]).all() for patch in patches)


def test_the_score_with_all_directions_is_the_full_mahalanobis_distance():
    features, labels = cells(4000, 0)
    rule = fit_rule(features, labels, directions=DIMENSIONS - 1)
    means = np.stack([features[labels == c].mean(axis=0) for c in range(CLASSES)]).astype(np.float64)
    centred = features - means[labels]
    precision = np.linalg.inv(centred.T @ centred / (len(centred) - CLASSES))
    offsets = features[:50, None] - means
    expected = np.einsum("ncd,de,nce->nc", offsets, precision, offsets).min(axis=1)
    np.testing.assert_allclose(rule.score(features[:50]), expected, rtol=0.02)
    assert np.isfinite(fit_rule(*cells(12, 1)).score(far(5, 2))).all(), "fewer images than features"


def test_the_threshold_keeps_its_false_positive_rate_on_new_cells(rule):
    rates = []
    for seed in range(100):
        again = set_threshold(rule, cells(500, 2 * seed)[0])
        rates.append((rule.score(cells(500, 2 * seed + 1)[0]) > again.threshold).mean())
    assert 0.044 <= np.mean(rates) <= 0.053
    with pytest.raises(RepoError, match="10 validation images are too few"):
        set_threshold(rule, cells(10, 0)[0])


@pytest.mark.parametrize(
    "kind", ["purple discs", "inverted cells", "single colours", "whole fields", "noise"]
)
def test_inputs_that_look_like_no_training_image_are_rejected_despite_features_of_a_cell(
    kind, drawn, calibration
):
    score = calibration.ood_score(cells(20, 3)[0], statistics_of(make_inputs(kind, 20, drawn)))
    assert calibration.rejected(score, 20).mean() >= 0.95


def test_both_distances_together_keep_the_false_positive_rate_and_detect_what_neither_does(
    drawn, rule, calibration
):
    features, held_out, reference = cells(60, 2)[0], statistics_of(drawn[60:]), calibration.appearance
    assert 0.2 < reference.weight < 0.8
    assert (calibration.ood_score(features, held_out) > 1).mean() <= 0.05
    # features and appearance as far off as those of one cell in ten: neither alone is rejected
    tenth = [np.argsort(distances)[-6:-5] for distances in (rule.score(features), reference.score(held_out))]
    assert rule.score(features[tenth[0]]) < rule.threshold
    assert calibration.ood_score(features[tenth[0]], held_out[tenth[1]]) > 1


def test_the_weight_is_in_0_to_1_even_if_all_held_out_images_are_equally_far(drawn):
    statistics = statistics_of(drawn)
    for held_out in (statistics[60:], np.repeat(statistics[60:61], 60, axis=0)):
        reference = fitted(np.concatenate([statistics[:60], held_out]), np.ones(60))
        assert reference["weight"] == 0.5 and math.isfinite(reference["threshold"])
    with pytest.raises(ValueError, match="weight"):
        AppearanceReference.read(reference | {"weight": 1.5})


def test_a_batch_from_another_camera_gets_a_warning_with_the_reason(drawn, calibration):
    reference, classes = calibration.appearance, np.eye(7)[np.arange(120) % 7]
    assert reference.sources == ("a", "b")
    rng, statistics = np.random.default_rng(0), statistics_of(drawn)
    batches = [rng.choice(120, 20, replace=False) for _ in range(100)]
    assert sum(reference.shift(statistics[batch], classes[batch]) is not None for batch in batches) <= 1
    changed = {
        "are more blurred": lambda image: blur(image, 0.02),
        "have a darker background": lambda image: scale_channels(image, 0.6),
    }
    for reason, change in changed.items():
        statistics = statistics_of([change(image) for image in drawn[:20]])
        sentence = str(reference.shift(statistics, classes[:20]))
        assert reason in sentence or "are darker" in sentence
        assert reference.shift(statistics[:19], classes[:19]) is None, "fewer than 20 images are too few"


def test_a_batch_of_one_class_is_not_another_laboratory():
    """Class 0 is darker than the others: a batch of it is expected to be dark, a batch of others is not."""
    rng, labels = np.random.default_rng(0), np.eye(4)[np.arange(300) % 3]  # of class 3 there is no image
    red = np.arange(len(STATISTICS)) == 3
    statistics = rng.standard_normal((300, len(STATISTICS))) - 6 * labels[:, :1] * red
    fitted = fit_appearance(statistics, labels, ["a"] * 300, statistics, np.linspace(0.1, 1, 300))
    reference, dark = AppearanceReference.read(fitted), labels[:, 0] == 1
    assert reference.shift(statistics[dark], labels[dark]) is None
    assert reference.shift(statistics[~dark], labels[~dark]) is None
    shift = reference.shift(statistics[dark], labels[~dark][:100])
    assert shift.statistic == "mean_red" and shift.off == pytest.approx(-6, abs=0.5)
    source = fitted["sources"]["a"]
    np.testing.assert_allclose(source["class_means"][3], source["mean"])


def test_the_report_and_its_histogram_count_all_inputs(rule):
    scores = (rule.score(features) / rule.threshold for features in (cells(250, 8)[0], far(50, 9)))
    result = report(next(scores), {"far": next(scores)})
    kind = result["kinds"]["far"]
    assert kind["auroc"] > 0.99 and kind["detection_rate"] > 0.95
    low, high = kind["intervals"]["auroc"]
    assert low <= kind["auroc"] <= high
    assert result["false_positive_rate"] < 0.08
    assert sum(result["histogram"]["cells"]) == 250
    assert sum(histogram(np.arange(5.0), {"a": np.array([1e9, -1e9])})["ood"]["a"]) == 2


def test_the_rule_survives_writing_and_reading(rule, tmp_path):
    (tmp_path / "calibration.json").write_text(json.dumps({"schema": 1}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    write_rule(tmp_path, rule)
    read = Calibration.from_folder(tmp_path, ["A", "B", "C"])
    inputs = np.concatenate([far(40, 2), cells(40, 4)[0][:20]])
    np.testing.assert_array_equal(read.ood_score(inputs), rule.score(inputs) / rule.threshold)
    assert read.rejected(read.ood_score(inputs), 60)[:40].all()
