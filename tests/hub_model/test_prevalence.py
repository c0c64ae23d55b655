"""Counts at another prevalence: the true mixture of simulated samples comes back."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hub_model.__main__ import main
from hub_model.calibration import write_json
from hub_model.inference.calibration import softmax
from hub_model.inference.errors import RepoError
from hub_model.prevalence import (
    METHODS,
    Labelled,
    adjusted_prevalence,
    differential_count,
    em_prevalence,
    parse_prevalence,
    reweight,
    simulate_samples,
)

NAMES = ["BLA", "EOS", "LYT", "MON"]
RARE = np.array([0.02, 0.08, 0.6, 0.3])
FLAT = np.full(4, 0.25)


def cells(prevalence: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors under a flat prior, exact by construction (Gaussian classes of unit spread), and true classes."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, n, p=prevalence)
    points = 1.7 * np.eye(4)[labels] + rng.standard_normal((n, 4))
    return softmax(1.7 * points), labels


def test_reweighting_to_the_training_prior_changes_nothing():
    probabilities, _ = cells(FLAT, 50, 0)
    np.testing.assert_allclose(reweight(probabilities, FLAT, FLAT), probabilities)


def test_reweighting_two_classes_is_bayes_rule():
    moved = reweight(np.array([[0.8, 0.2]]), np.array([0.5, 0.5]), np.array([0.1, 0.9]))
    np.testing.assert_allclose(moved, [[0.08 / 0.26, 0.18 / 0.26]])


def test_em_finds_the_mixture_that_plain_counting_misses():
    probabilities, labels = cells(RARE, 20_000, 1)
    plain = np.bincount(probabilities.argmax(axis=1), minlength=4) / 20_000
    truth = np.bincount(labels, minlength=4) / 20_000
    assert np.abs(plain - truth).max() > 0.05
    assert np.abs(em_prevalence(probabilities, FLAT) - truth).max() < 0.015


def test_adjusted_count_inverts_the_confusion():
    confusion = np.array([[80, 10, 5, 5], [10, 70, 10, 10], [0, 5, 90, 5], [20, 0, 10, 70.0]])
    counts = RARE @ (confusion / 100) * 1000
    np.testing.assert_allclose(adjusted_prevalence(counts, confusion), RARE, atol=1e-6)


def test_adjusted_count_stays_a_prevalence_where_the_inverse_does_not():
    confusion = np.array([[60, 40.0], [40, 60.0]])
    np.testing.assert_allclose(adjusted_prevalence(np.array([100, 0]), confusion), [1, 0], atol=1e-6)


@pytest.mark.parametrize("method", ["known", "em", "adjusted"])
def test_intervals_hold_the_truth_about_as_often_as_they_say(method):
    held = []
    trials, truth = cells(FLAT, 2000, 99)
    labelled = Labelled(trials.argmax(axis=1), truth)
    for seed in range(25):
        probabilities, _ = cells(RARE, 400, seed)
        count = differential_count(probabilities, NAMES, method, None, RARE, labelled, resamples=60)
        assert count.shares.sum() == pytest.approx(1)
        held.append((count.interval[0] <= RARE) & (count.interval[1] >= RARE))
    assert np.mean(held) > 0.85, np.mean(held, axis=0)


def test_a_training_prior_that_is_not_flat_is_taken_into_account():
    probabilities, labels = cells(RARE, 5000, 3)
    trained_on = np.array([0.4, 0.3, 0.2, 0.1])
    skewed = reweight(probabilities, FLAT, trained_on)
    count = differential_count(skewed, NAMES, "em", prior=trained_on, resamples=2)
    assert np.abs(count.shares - np.bincount(labels, minlength=4) / 5000).max() < 0.02


def test_rows_name_the_classes_and_sum_to_the_cells():
    rows = differential_count(cells(RARE, 300, 4)[0], NAMES, "plain", resamples=20).rows()
    assert [row["label"] for row in rows] == NAMES
    assert sum(row["cells"] for row in rows) == pytest.approx(300)
    assert all(row["low"] <= row["share"] <= row["high"] for row in rows)


def test_corrected_counts_are_nearer_on_samples_drawn_from_test_logits(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"label_names": NAMES}))
    (tmp_path / "calibration.json").write_text(json.dumps({"temperature": {"value": 1.0}}))
    for seed, split in enumerate(("validation", "test")):
        probabilities, labels = cells(FLAT, 800, seed)
        columns = {"file_name": [str(i) for i in range(800)], "label": labels}
        logits = pa.array(np.log(probabilities).tolist(), pa.list_(pa.float32()))
        pq.write_table(pa.table({**columns, "logits": logits}), tmp_path / f"logits_{split}.parquet")
    error = simulate_samples(tmp_path, RARE, samples=20)["mean_absolute_error"]
    assert set(error) == set(METHODS)
    assert error["em"] < 0.6 * error["plain"]
    assert error["adjusted"] < 0.8 * error["plain"]


def test_what_bulk_scoring_wrote_and_logits_make_the_same_count(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"label_names": NAMES}))
    (tmp_path / "calibration.json").write_text(json.dumps({"temperature": {"value": 0.5}}))
    probabilities = cells(RARE, 100, 0)[0]
    logits = pa.array((np.log(probabilities) * 0.5).tolist(), pa.list_(pa.float64()))
    pq.write_table(pa.table({"logits": logits}), tmp_path / "logits.parquet")
    unreadable = {f"probability_{name}": [None] for name in NAMES}
    scored = pa.table({f"probability_{n}": probabilities[:, i] for i, n in enumerate(NAMES)})
    scored = pa.concat_tables([scored, pa.table(unreadable, schema=scored.schema)])
    pq.write_table(scored, tmp_path / "predictions.parquet")
    pq.write_table(pa.table({"other": [1.0]}), tmp_path / "other.parquet")
    counts = []
    for name in ("logits", "predictions"):
        assert main(["prevalence", str(tmp_path), str(tmp_path / f"{name}.parquet")]) == 0
        counts.append(capsys.readouterr().out)
    assert counts[0] == counts[1] and counts[0].startswith("label,share,low,high,cells\nBLA,")
    assert main(["prevalence", str(tmp_path), str(tmp_path / "other.parquet")]) == 1
    assert "neither the columns probability_BLA" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("BLA=0.1,EOS=0.2,LYT=0.3", "MON is missing"),
        ("BLA=0.1,EOS=0.2,LYT=0.3,MON=0.4,XYZ=1", "unknown classes in the prevalence: XYZ"),
        ("BLA=0.1,EOS=0.2,LYT=0.3,MON=0", "above 0"),
        ("BLA=much,EOS=1,LYT=1,MON=1", "not of the form"),
        ("BLA=1,BLA=2,EOS=1,LYT=1,MON=1", "BLA is given twice"),
        ("BLA=1e308,EOS=1e308,LYT=1e308,MON=1e308", "finite"),
        ("BLA=1,EOS=1,LYT=1,MON=nan", "finite"),
    ],
)
def test_a_wrong_prevalence_is_said_in_one_sentence(text, message):
    with pytest.raises(RepoError, match=message):
        parse_prevalence(text, NAMES)


@pytest.mark.parametrize("row", [[np.nan] * 4, [0.0] * 4, [1.5, -0.5, 0.0, 0.0], [0.9, 0.9, 0.9, 0.9]])
def test_what_is_no_probability_is_not_counted(tmp_path, capsys, row):
    (tmp_path / "config.json").write_text(json.dumps({"label_names": NAMES}))
    scored = {f"probability_{name}": [0.25, row[i]] for i, name in enumerate(NAMES)}
    pq.write_table(pa.table(scored), tmp_path / "scored.parquet")
    assert main(["prevalence", str(tmp_path), str(tmp_path / "scored.parquet")]) == 1
    said = capsys.readouterr()
    assert "cell 2 has no probabilities" in said.err and not said.out


@pytest.mark.parametrize("logit", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_not_counted(tmp_path, capsys, logit):
    (tmp_path / "config.json").write_text(json.dumps({"label_names": NAMES}))
    (tmp_path / "calibration.json").write_text(json.dumps({"temperature": {"value": 1}}))
    pq.write_table(pa.table({"logits": [[1.0, 2.0, 3.0, logit]]}), tmp_path / "logits.parquet")
    assert main(["prevalence", str(tmp_path), str(tmp_path / "logits.parquet")]) == 1
    assert "cell 1 has no probabilities" in capsys.readouterr().err


@pytest.mark.parametrize(
    "calibration",
    [{}, {"temperature": None}, *({"temperature": {"value": value}} for value in (0, -1, "x", None, [], float("nan")))],
)  # fmt: skip
def test_a_temperature_that_is_none_is_said_in_one_sentence(tmp_path, capsys, calibration):
    (tmp_path / "config.json").write_text(json.dumps({"label_names": NAMES}))
    (tmp_path / "calibration.json").write_text(json.dumps(calibration))
    assert main(["prevalence", str(tmp_path), "--simulate", "--prevalence", "BLA=1,EOS=1,LYT=1,MON=1"]) == 1
    error = capsys.readouterr().err
    assert "calibration.json" in error and error.count("\n") == 1
    assert not (tmp_path / "measurements").exists()


def test_a_measurement_that_is_no_number_is_not_written(tmp_path):
    with pytest.raises(RepoError, match="not finite"):
        write_json(tmp_path / "x.json", {"error": float("nan")})
    assert not list(tmp_path.iterdir())


def test_no_cells_and_missing_inputs_are_refused():
    some = cells(FLAT, 5, 0)[0]
    with pytest.raises(RepoError, match="no cells"):
        differential_count(some[:0], NAMES)
    with pytest.raises(RepoError, match="needs the known prevalence"):
        differential_count(some, NAMES, "known")
    with pytest.raises(RepoError, match="unknown method"):
        differential_count(some, NAMES, "guess")
