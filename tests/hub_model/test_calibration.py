"""Calibration: each rule on simulated logits with known ground truth."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hub_model.contract import read_logits
from hub_model.inference.calibration import Calibration, conformal_threshold, softmax
from hub_model.inference.errors import RepoError
from hub_model.metrics.cell_classification.cell_classification import negative_log_likelihood
from hub_model.studies.calibration import (
    SHORTFALL,
    calibrate_folder,
    fit_calibration,
    fit_conformal,
    fit_sure,
    fit_temperature,
    write_json,
)
from hub_model.studies.calibration_report import calibration_metrics, source_figures, sure_figures

NAMES = ["BLA", "EOS", "LYT", "MON"]


def simulate(images: int, seed: int, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, 4] that are calibrated at temperature `sharpness`, and labels drawn from their probabilities."""
    rng = np.random.default_rng(seed)
    true = 2 * rng.standard_normal((images, len(NAMES)))
    labels = (true + rng.gumbel(size=true.shape)).argmax(axis=1)
    return sharpness * true, labels


@pytest.fixture
def run_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"label_names": NAMES}))
    for seed, split in enumerate(("validation", "test")):
        logits, labels = simulate(1000, seed, sharpness=3.0)
        columns = {"file_name": [f"{i}.jpg" for i in range(1000)], "label": labels}
        table = pa.table({**columns, "logits": pa.array(logits.tolist(), pa.list_(pa.float32()))})
        pq.write_table(table, tmp_path / f"logits_{split}.parquet")
    return tmp_path


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_temperature_scaling_recovers_a_known_temperature_and_minimizes_log_loss(sharpness):
    logits, labels = simulate(20_000, 0, sharpness)
    best = fit_temperature(logits, labels)
    assert best == pytest.approx(sharpness, rel=0.04)
    losses = [negative_log_likelihood(softmax(logits, best * f), labels) for f in (1, 0.5, 0.98, 1.02, 2)]
    assert losses[0] == min(losses)


def test_a_threshold_is_the_corrected_rank_and_1_for_a_class_with_too_few_images():
    scores = np.arange(19) / 100  # n + 1 = 20: the 18th smallest for 90 %, the 19th for 95 %
    assert [conformal_threshold(scores[::-1], level) for level in (0.90, 0.95)] == [0.17, 0.18]
    assert conformal_threshold(np.zeros(18), 0.95) == conformal_threshold(np.zeros(0), 0.90) == np.inf
    for images, threshold in ((41, 1.0), (42, 0.5)):  # 0.93 ** 42 < 0.05
        thresholds = fit_conformal(np.full((images, 2), 0.5), np.zeros(images, int), 0.95)
        assert thresholds.tolist() == [threshold, 1.0]
    probabilities = np.array([[0.9, 0.1]] * 50 + [[0.5, 0.5]] * 50)
    # no class has a lower threshold than all images pooled
    assert fit_conformal(probabilities, np.repeat([0, 1], 50), 0.9).tolist() == [0.5, 0.5]


def test_the_error_rate_of_sure_answers_is_bounded():
    """On average over calibration sets, for every class; MON is a hard one."""
    wrong, sure = np.zeros(4), np.zeros(4)
    for seed in range(200):
        logits, labels = simulate(1000, seed, 2.0)
        probabilities = softmax(2 * logits - [0, 0, 0, 1.5])
        thresholds = np.array([t or np.inf for t in fit_sure(probabilities[:500], labels[:500], 0.1)])
        predicted, held_out = probabilities[500:].argmax(axis=1), labels[500:]
        is_sure = probabilities[500:].max(axis=1) >= thresholds[predicted]
        sure += np.bincount(predicted[is_sure], minlength=4)
        wrong += np.bincount(predicted[is_sure & (predicted != held_out)], minlength=4)
    assert (sure > 1000).all() and (wrong / sure <= 0.1).all(), wrong / sure


@pytest.mark.parametrize(("images", "threshold"), [(32, None), (33, 0.99)])
def test_no_answer_is_sure_without_enough_images(images, threshold):
    assert fit_sure(np.array([[0.99, 0.01]] * images), np.zeros(images, int)) == [threshold, None]


def test_sure_answers_of_an_unidentifiable_class_have_their_own_verdict():
    calibration = Calibration(
        ("BLA", "NIF"), 1.0, {"0.95": np.ones(2)}, np.array([0.9, 0.9]), unidentifiable=frozenset({"NIF"})
    )
    verdicts = calibration.verdicts(np.array([[0.95, 0.05], [0.05, 0.95], [0.4, 0.6]]), None)
    assert [v.kind for v in verdicts] == ["sure", "unidentifiable", "between"]
    assert str(verdicts[1]) == "a cell that cannot be identified"


@pytest.mark.parametrize("level", [0.90, 0.95])
def test_nearly_every_calibration_set_covers_every_class_to_within_the_shortfall(level):
    """MON is a hard class."""
    held_out, truth = simulate(100_000, 1000)
    held_out = softmax(held_out - [0, 0, 0, 1.5])
    coverage = []
    for seed in range(300):
        logits, labels = simulate(400, seed)
        thresholds = fit_conformal(softmax(logits - [0, 0, 0, 1.5]), labels, level)
        covered = (1 - held_out <= thresholds)[np.arange(len(truth)), truth]
        coverage.append([covered[truth == c].mean() for c in range(len(NAMES))])
    assert (np.quantile(coverage, 0.05, axis=0) >= level - SHORTFALL - 0.005).all()
    assert np.mean(coverage, axis=0)[3] <= level + 0.04  # not overly conservative


def test_the_harder_laboratory_determines_the_calibration():
    """Half of the images are from a laboratory in which every answer is right and confident."""
    logits, labels = simulate(2000, 7, 2.0)
    easy = np.arange(2000) % 2 == 0
    logits[easy] = 30.0 * np.eye(4)[labels[easy]]
    sources = np.where(easy, "easy", "hard")
    pooled, by_source = (fit_calibration(logits, labels, NAMES, given) for given in (None, sources))
    hard = fit_calibration(logits[~easy], labels[~easy], NAMES)
    assert by_source["temperature"] == hard["temperature"] != pooled["temperature"]
    for level in ("0.90", "0.95"):
        of_hard, of_all = (list(of["conformal"][level]["thresholds"].values()) for of in (hard, pooled))
        assert list(by_source["conformal"][level]["thresholds"].values()) == of_hard
        assert np.greater(of_hard, of_all).all()
    assert by_source["sure"]["thresholds"] == hard["sure"]["thresholds"]


def test_the_report_measures_the_sets_that_inference_predicts(tmp_path):
    logits, labels = simulate(400, 5)
    calibration = fit_calibration(logits, labels, NAMES)
    write_json(tmp_path / "calibration.json", calibration)
    applied = Calibration.from_folder(tmp_path, NAMES)
    sets = applied.sets(applied.probabilities(logits))
    report = calibration_metrics(logits, labels, NAMES, calibration, resamples=2)
    assert set(sets) == set(report["conformal"])
    for level, members in sets.items():
        measured = report["conformal"][level]
        assert measured["mean_set_size"]["all"] == members.sum(axis=1).mean()
        assert measured["coverage"]["all"] == members[np.arange(400), labels].mean() >= float(level)
    assert sum(point["images"] for point in report["reliability"]) == 400
    rows = labels != 2
    report = calibration_metrics(logits[rows], labels[rows], NAMES, calibration, resamples=5)
    measured = report["conformal"]["0.90"]
    assert measured["coverage"]["LYT"] is measured["intervals"]["coverage"]["LYT"] is None


def test_temperature_lowers_calibration_error_and_confident_answers_are_more_accurate():
    logits, labels = simulate(4000, 2, 4.0)
    calibration = fit_calibration(logits[:2000], labels[:2000], NAMES)
    before, after = (
        calibration_metrics(logits[2000:], labels[2000:], NAMES, of, resamples=50)
        for of in (calibration | {"temperature": {"value": 1.0}}, calibration)
    )
    assert after["calibrated"]["ece"] < 0.5 * before["calibrated"]["ece"]
    assert after["calibrated"]["log_loss"] < before["calibrated"]["log_loss"]
    points = after["accuracy_against_coverage"]
    assert points[-1]["accuracy"] == (logits[2000:].argmax(axis=1) == labels[2000:]).mean()
    assert points[3]["accuracy"] > points[-1]["accuracy"] + 0.1
    assert [p["threshold"] for p in points] == sorted((p["threshold"] for p in points), reverse=True)
    assert all(p["interval"][0] <= p["accuracy"] <= p["interval"][1] for p in points)


def test_sure_answers_are_counted_by_class_and_laboratory():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.1, 0.9]])
    calibration = {
        "temperature": {"value": 1.0},
        "sure": {"thresholds": {"A": 0.7, "B": None}},
        "conformal": {"0.95": {"thresholds": {"A": 0.15, "B": 0.5}}},
    }
    labels = np.array([0, 1, 0, 1])
    assert sure_figures(probabilities, labels, ["A", "B"], calibration) == {
        "A": {"sure": 2, "right": 1}, "B": {"sure": 0, "right": 0}, "all": {"sure": 2, "right": 1}
    }  # fmt: skip
    measured = source_figures(np.log(probabilities), labels, ["A", "B"], calibration)
    assert measured["coverage"] == {"A": 0.5, "B": 0.5} and measured["sure"] == {"sure": 2, "right": 1}


def test_a_folder_is_calibrated_on_validation_only_and_keeps_its_ood_part(run_folder):
    rule = {"out_of_distribution": {"threshold": 7}}
    (run_folder / "calibration.json").write_text(json.dumps(rule))
    calibration = calibrate_folder(run_folder)
    validation = read_logits(run_folder / "logits_validation.parquet", len(NAMES))
    assert calibration == fit_calibration(validation.values, validation.labels, NAMES) | rule
    assert calibration == json.loads((run_folder / "calibration.json").read_text())
    (run_folder / "logits_test.parquet").unlink()
    assert calibrate_folder(run_folder) == calibration


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("logits_validation.parquet", None, "it is missing"),
        ("logits_validation.parquet", "PAR1", "cannot be read"),
        ("config.json", None, "config.json is missing"),
        ("config.json", '{"label_names": ["A", "B"]}', "rows of 4 logits for 2 classes"),
        ("config.json", '{"pretrained_cfg": null}', "pretrained_cfg must be an object"),
        *(("config.json", f'{{"label_names": {names}}}', "label_names")
          for names in ("5", '"ABCDEFG"', '["A"]', '["A", "A"]', "[1, 2]", "null")),
    ],
)  # fmt: skip
def test_an_invalid_folder_is_a_one_line_error(run_folder, file, content, message):
    (run_folder / file).unlink()
    if content:
        (run_folder / file).write_text(content)
    with pytest.raises(RepoError, match=message) as caught:
        calibrate_folder(run_folder)
    assert "\n" not in str(caught.value)


def test_json_with_a_number_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(RepoError, match="not finite"):
        write_json(tmp_path / "x.json", {"error": float("nan")})
    assert not list(tmp_path.iterdir())
