"""Differential counts recover the true prevalence of simulated samples, on the command line as in the Space."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hub_model.__main__ import main
from hub_model.inference.calibration import Calibration, softmax
from hub_model.inference.counts import (
    confusion_of,
    differential_count,
    em_prevalence,
    reweight,
    wilson_interval,
)
from hub_model.inference.errors import RepoError
from hub_model.inference.ood import OodRule
from hub_model.studies.ood import write_rule
from hub_model.studies.prevalence import ARCHIVE_COUNTS, parse_prevalence, prevalence_of, simulate_samples

RELEASE = Path(__file__).resolve().parents[2] / "hub_model" / "release"
NAMES = ("BLA", "EOS", "LYT", "MON")
RARE = np.array([0.02, 0.08, 0.6, 0.3])
FLAT = np.full(4, 0.25)


def cells(prevalence: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors under a flat prior, exact by construction (Gaussian classes of unit variance), and true classes."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, n, p=prevalence)
    points = 1.7 * np.eye(4)[labels] + rng.standard_normal((n, 4))
    return softmax(1.7 * points), labels


def shares_of(labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels, minlength=4) / len(labels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with a temperature, a prior, and an OOD rule."""
    (tmp_path / "config.json").write_text(json.dumps({"label_names": NAMES}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    prior = {"shares": dict(zip(NAMES, [0.4, 0.3, 0.2, 0.1], strict=True))}
    (tmp_path / "calibration.json").write_text(json.dumps({"temperature": {"value": 0.5}, "prior": prior}))
    write_rule(tmp_path, OodRule(np.zeros((4, 2)), np.eye(2)[:, :1], np.ones(1), 1.0, 10.0))
    return tmp_path


def write_scored(path: Path, probabilities: np.ndarray, ood_score: np.ndarray | None = None) -> None:
    """Write a file as bulk scoring does, with one row for an unreadable image."""
    columns = {f"probability_{n}": [*probabilities[:, i].tolist(), None] for i, n in enumerate(NAMES)}
    if ood_score is not None:
        columns["ood_score"] = [*ood_score.tolist(), None]
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize(
    ("successes", "trials", "interval"),
    [(0, 10, (0.0, 0.2775)), (5, 10, (0.2366, 0.7634)), (10, 10, (0.7225, 1.0)), (0, 0, (0.0, 1.0))],
)
def test_the_wilson_interval_agrees_with_published_values(successes, trials, interval):
    assert wilson_interval(successes, trials) == pytest.approx(interval, abs=1e-4)


def test_reweighting_is_bayes_rule():
    probabilities, _ = cells(FLAT, 50, 0)
    np.testing.assert_allclose(reweight(probabilities, FLAT, FLAT), probabilities)
    reweighted = reweight(np.array([[0.8, 0.2]]), np.array([0.5, 0.5]), np.array([0.1, 0.9]))
    np.testing.assert_allclose(reweighted, [[0.08 / 0.26, 0.18 / 0.26]])


def test_em_estimates_the_prevalence_that_plain_counts_miss():
    probabilities, labels = cells(RARE, 20_000, 1)
    plain = shares_of(probabilities.argmax(axis=1))
    assert np.abs(plain - shares_of(labels)).max() > 0.05
    assert np.abs(em_prevalence(probabilities, FLAT) - shares_of(labels)).max() < 0.015


def test_em_takes_a_training_prior_that_is_not_flat_into_account():
    probabilities, labels = cells(RARE, 5000, 3)
    prior = np.array([4, 3, 2, 1])
    counts = differential_count(NAMES, reweight(probabilities, FLAT, prior / 10), prior)
    assert np.abs([c.corrected for c in counts] - shares_of(labels)).max() < 0.02


@pytest.mark.parametrize("known", [None, RARE])
def test_intervals_cover_the_truth_about_as_often_as_stated(known):
    covered = []
    for seed in range(25):
        probabilities, _ = cells(RARE, 400, seed)
        for count, share in zip(differential_count(NAMES, probabilities, known=known), RARE, strict=True):
            covered.append(count.corrected_interval[0] <= share <= count.corrected_interval[1])
    assert np.mean(covered) > 0.85


def test_one_cell_gives_a_wide_interval():
    for confusion in (None, np.repeat(np.eye(4) * 15 + 1, 2, axis=1)):
        count = differential_count(NAMES, np.array([[0.001, 0.997, 0.001, 0.001]]), confusion=confusion)[1]
        assert count.corrected > 0.9 and count.corrected_interval[0] < 0.6


def test_a_classifier_with_more_labelled_errors_gets_wider_intervals():
    probabilities, labels = cells(RARE, 300, 7)
    right = confusion_of(probabilities, np.eye(4)[labels])
    wrong = right + 0.3 * right.mean(axis=0)
    widths = []
    for confusion in (right * 100, right, wrong):
        counts = differential_count(NAMES, probabilities, confusion=confusion)
        widths.append(np.mean([c.corrected_interval[1] - c.corrected_interval[0] for c in counts]))
    assert widths[0] < widths[1] < widths[2]


@pytest.mark.parametrize("cells_counted", [50, 200, 500])
def test_intervals_of_the_release_cover_at_marrow_prevalence(cells_counted):
    prevalence = prevalence_of(ARCHIVE_COUNTS, list(ARCHIVE_COUNTS))
    sizes = simulate_samples(RELEASE, prevalence, [cells_counted], samples=50, seed=1)["sizes"]
    assert min(sizes[str(cells_counted)]["coverage"].values()) >= 0.88  # 0.90 less the noise of 50 samples


def test_shares_sum_to_1_and_no_cells_give_no_count():
    counts = differential_count(NAMES, cells(RARE, 50, 2)[0], prior=np.array([5, 3, 2, 1]))
    assert [count.label for count in counts] == list(NAMES)
    assert sum(c.cells for c in counts) == 50
    assert sum(c.share for c in counts) == pytest.approx(1)
    assert sum(c.corrected for c in counts) == pytest.approx(1, abs=1e-4)
    assert all(c.corrected_interval[0] <= c.corrected <= c.corrected_interval[1] for c in counts)
    assert differential_count(NAMES, np.zeros((0, 4))) == []


def counted(capsys, *arguments: object) -> list[list[str]]:
    """The rows that the command prints, without the header."""
    assert main(["prevalence", *map(str, arguments)]) == 0
    return [line.split(",") for line in capsys.readouterr().out.splitlines()[1:]]


def test_the_command_line_counts_the_same_cells_as_the_space(folder, capsys):
    """Both start from the prior of `calibration.json` and skip OOD cells; a flat prior or all cells give other shares."""
    probabilities, _ = cells(RARE, 200, 5)
    ood_score = np.where(np.arange(200) % 4 == 0, 1.1, 0.9)
    write_scored(folder / "scored.parquet", probabilities, ood_score)
    rows = counted(capsys, folder, folder / "scored.parquet")
    counts = Calibration.from_folder(folder, NAMES).count(probabilities, ood_score)  # what the Space calls
    assert [(row[0], int(row[1]), float(row[5])) for row in rows] == [
        (c.label, c.cells, pytest.approx(c.corrected, abs=1e-4)) for c in counts
    ]
    assert sum(c.cells for c in counts) == 150
    flat_and_all = differential_count(NAMES, probabilities)
    assert max(abs(a.corrected - b.corrected) for a, b in zip(counts, flat_and_all, strict=True)) > 0.01
    known = counted(
        capsys, folder, folder / "scored.parquet", "--prevalence", "BLA=0.02,EOS=0.08,LYT=0.6,MON=0.3"
    )
    assert [row[5] for row in known] != [row[5] for row in rows]


def test_corrected_counts_are_closer_on_samples_of_test_logits(folder):
    (folder / "calibration.json").write_text(json.dumps({"temperature": {"value": 1.0}}))
    probabilities, labels = cells(FLAT, 800, 1)
    columns = {"file_name": [str(i) for i in range(800)], "label": labels}
    logits = pa.array(np.log(probabilities).tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table({**columns, "logits": logits}), folder / "logits_test.parquet")
    result = simulate_samples(folder, RARE, sizes=[500], samples=20)["sizes"]["500"]
    error = result["mean_absolute_error"]
    assert error["known"] < error["em"] < 0.6 * error["plain"]
    assert min(result["coverage"].values()) >= 0.9


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
def test_an_invalid_prevalence_is_refused(text, message):
    with pytest.raises(RepoError, match=message):
        parse_prevalence(text, NAMES)


def refusal(capsys, *arguments: object) -> str:
    """The one-line error of the command."""
    assert main(["prevalence", *map(str, arguments)]) == 1
    output = capsys.readouterr()
    assert output.err.count("\n") == 1 and not output.out
    return output.err


@pytest.mark.parametrize("row", [[np.nan] * 4, [0.0] * 4, [1.5, -0.5, 0.0, 0.0], [0.9, 0.9, 0.9, 0.9]])
def test_rows_that_are_not_probabilities_are_refused(folder, capsys, row):
    write_scored(folder / "scored.parquet", np.array([[0.25] * 4, row]))
    assert "cell 2 has no probabilities" in refusal(capsys, folder, folder / "scored.parquet")


def test_invalid_input_is_a_one_line_error(folder, capsys):
    pq.write_table(pa.table({"other": [1.0]}), folder / "other.parquet")
    write_scored(folder / "unread.parquet", np.zeros((0, 4)))
    assert "pass the predictions" in refusal(capsys, folder)
    for name, sentence in (
        ("other", "has no column probability_BLA"), ("unread", "has no cells to count"), ("none", "cannot be read")
    ):  # fmt: skip
        assert sentence in refusal(capsys, folder, folder / f"{name}.parquet")
    for value in (0, -1, "x", None, [], float("nan")):
        (folder / "calibration.json").write_text(json.dumps({"temperature": {"value": value}}))
        assert "calibration.json" in refusal(capsys, folder, folder / "unread.parquet")
