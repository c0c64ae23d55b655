"""The metric module agrees with scikit-learn, however it is loaded and in any order of the images."""

import doctest
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import evaluate
import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
)

from hub_model.evaluation import bootstrap, evaluate_split
from hub_model.inference.calibration import softmax
from hub_model.metrics.cell_classification import cell_classification

METRIC_FOLDER = Path(cell_classification.__file__).parent
NAMES = ["BLA", "EOS", "LYT", "MON", "NGS", "NIF", "PMO"]


def random_scores(images: int = 301, classes: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, images)
    logits = generator.normal(size=(images, classes)) + 1.5 * np.eye(classes)[labels]
    return logits.astype(np.float32), labels


@pytest.fixture(scope="module")
def metric():
    return evaluate.load(str(METRIC_FOLDER))


def test_every_metric_agrees_with_scikit_learn(metric):
    logits, labels = random_scores()
    probabilities, predicted = softmax(logits), logits.argmax(axis=1)
    result = metric.compute(prediction_scores=logits, references=labels, label_names=NAMES)
    expected = {
        "accuracy": accuracy_score(labels, predicted),
        "balanced_accuracy": balanced_accuracy_score(labels, predicted),
        "macro_f1": f1_score(labels, predicted, average="macro"),
        "auc": roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
        "log_loss": log_loss(labels, probabilities),
    }
    assert {key: result[key] for key in expected} == pytest.approx(expected, abs=1e-12)
    assert result["confusion_matrix"] == confusion_matrix(labels, predicted).tolist()
    columns = precision_recall_fscore_support(labels, predicted)
    for key, column in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        assert [result["per_class"][name][key] for name in NAMES] == pytest.approx(column.tolist(), abs=1e-15)
    one = roc_auc_score(labels == 3, probabilities[:, 3])
    assert result["per_class"]["MON"]["auc"] == pytest.approx(one, abs=1e-12)


def test_calibration_error_is_the_mean_gap_of_fifteen_equal_bins():
    logits, labels = random_scores(seed=3)
    probabilities = softmax(logits)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for low, high in zip(np.linspace(0, 1, 16)[:-1], np.linspace(0, 1, 16)[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert cell_classification.measure(logits, labels)["ece"] == pytest.approx(expected, abs=1e-12)
    sure = np.array([[1.0, 0.0]] * 10)
    assert cell_classification.measure(sure, np.zeros(10, int))["ece"] == 0
    assert cell_classification.measure(sure, np.arange(10) % 2)["ece"] == 0.5


def test_batches_and_one_call_and_probabilities_give_the_same_metrics(metric):
    logits, labels = random_scores(images=53)
    for start in range(0, len(labels), 16):
        metric.add_batch(prediction_scores=logits[start : start + 16], references=labels[start : start + 16])
    in_batches = metric.compute(label_names=NAMES)
    at_once = metric.compute(prediction_scores=logits, references=labels, label_names=NAMES)
    assert in_batches == at_once
    other = metric.compute(prediction_scores=softmax(logits), references=labels, label_names=NAMES)
    assert other["confusion_matrix"] == at_once["confusion_matrix"]
    assert other["log_loss"] == pytest.approx(at_once["log_loss"], abs=1e-12)


def test_the_order_of_the_images_changes_nothing():
    logits, labels = random_scores()
    order, measure = np.random.default_rng(1).permutation(len(labels)), cell_classification.measure
    assert measure(logits, labels) == measure(logits[order], labels[order])


def test_absent_classes_give_defined_metrics_and_no_warning(metric):
    logits, _ = random_scores(images=20)
    labels = np.arange(20) % 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("error", UserWarning)
        result = cell_classification.measure(logits, labels, NAMES)
        alone = cell_classification.measure(logits, np.zeros(20, int), NAMES)
    assert result["per_class"]["PMO"]["support"] == 0 and result["per_class"]["PMO"]["auc"] is None
    assert result["auc"] == np.mean([result["per_class"][name]["auc"] for name in ("BLA", "EOS")])
    assert result["macro_f1"] == pytest.approx(
        f1_score(labels, logits.argmax(axis=1), average="macro"), abs=1e-15
    )
    assert alone["auc"] is None and 0 <= alone["balanced_accuracy"] <= 1
    assert json.loads(json.dumps(alone, allow_nan=False)) == alone


def test_huge_logits_do_not_overflow():
    result = cell_classification.measure(np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([0, 0]))
    assert math.isfinite(result["log_loss"]) and result["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("scores", "labels", "options", "sentence"),
    [
        ([[np.nan, 0.0]], [0], {}, "not finite"),
        ([[0.2, 0.8]], [2], {}, "labels from 0 to 1"),
        ([[0.2, 0.8]], [-1], {}, "labels from 0 to 1"),
        ([[0.2, 0.8]], [0, 1], {}, "1 images are scored"),
        ([[0.2, 0.8]], [0], {"label_names": ["A"]}, "2 different names"),
        ([[3.0, 0.8]], [0], {"kind": "probabilities"}, "does not sum to 1"),
        ([[3.0, 0.8]], [0], {"kind": "scores"}, "'auto', 'logits' or 'probabilities'"),
        (np.zeros((0, 2)), [], {}, "images x classes"),
    ],
)
def test_invalid_input_is_refused_with_the_reason(scores, labels, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        cell_classification.measure(np.array(scores), np.array(labels, dtype=int), **options)


def test_the_example_of_the_docstring_runs():
    example = doctest.DocTestParser().get_doctest(
        cell_classification._KWARGS_DESCRIPTION, {"evaluate": evaluate}, "example", None, 0
    )
    runner = doctest.DocTestRunner()
    assert runner.run(example).attempted >= 5
    assert runner.summarize().failed == 0


def test_it_loads_from_its_folder_offline(tmp_path):
    code = (
        "import evaluate, sys\n"
        "metric = evaluate.load(sys.argv[1])\n"
        "print(metric.compute(prediction_scores=[[2.0, 1.0], [0.0, 3.0]], references=[0, 1])['accuracy'])"
    )
    offline = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(METRIC_FOLDER)]
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True)
    assert done.stdout.strip() == "1.0", done.stderr


def test_the_bootstrap_is_seeded_and_its_interval_has_the_theoretical_width():
    correct = (np.arange(1000) < 800).astype(float)
    interval, again = (
        bootstrap(lambda index: np.array([correct[index].mean()]), 1000, resamples=2000) for _ in range(2)
    )
    assert np.array_equal(interval, again)
    half_width = 1.96 * math.sqrt(0.8 * 0.2 / 1000)
    assert interval[:, 0] == pytest.approx([0.8 - half_width, 0.8 + half_width], abs=0.004)


def test_intervals_contain_the_metric_and_are_none_where_it_is_undefined():
    logits, _ = random_scores(images=60, classes=3)
    labels = np.arange(60) % 2
    figures = evaluate_split(logits, labels, ["A", "B", "C"], resamples=100)
    for key in ("accuracy", "balanced_accuracy", "macro_f1", "auc", "log_loss"):
        low, high = figures["intervals"][key]
        assert low <= figures[key] <= high
    assert figures["intervals"]["per_class"]["C"]["auc"] is None
    json.dumps(figures, allow_nan=False)


def test_the_module_is_self_contained_for_its_space():
    text = Path(cell_classification.__file__).read_text()
    assert "hub_model" not in text.replace('evaluate.load("hub_model/metrics/cell_classification")', "")
