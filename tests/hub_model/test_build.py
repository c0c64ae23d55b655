"""From a run folder to a model repo: building and checking it, and the run folders and repos that are refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file

from hub_model.__main__ import main
from hub_model.card import write_card
from hub_model.check import check
from hub_model.contract import read_logits
from hub_model.studies.calibration import calibrate_folder, fit_calibration
from hub_model.studies.crops import write_measurement
from hub_model.studies.ood import fit_rule, report, write_rule
from hub_model.studies.prevalence import simulate_samples

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def measured_folder(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repo with an OOD rule and measurements."""
    run = shutil.copytree(run_folder, tmp_path_factory.mktemp("measured") / "run")
    rng, features = np.random.default_rng(0), timm.create_model("test_mambaout").head_hidden_size
    cells, noise = (rng.normal(size=(60, features)) for _ in range(2))
    rule = replace(fit_rule(cells, rng.integers(0, 7, 60)), threshold=5.0)
    calibrate_folder(run)
    write_rule(run, rule)
    ood = report(rule.score(cells) / 5, {"noise": rule.score(noise) / 5})
    ood["thresholds"] = {"features": 5.0, "appearance": None}
    write_measurement(run, "out_of_distribution", ood)
    write_measurement(run, "prevalence", simulate_samples(run, np.full(7, 1 / 7), sizes=[20], samples=2))
    out = run.parent / "model"
    assert main(["build", str(run), str(out)]) == 0
    assert check(out) == []
    return out


def test_every_number_of_the_card_is_that_of_the_logits(model_folder):
    assert check(model_folder) == []
    metrics = json.loads((model_folder / "metrics.json").read_text())
    logits = read_logits(model_folder / "logits_test.parquet", 7)
    accuracy = float((logits.values.argmax(axis=1) == logits.labels).mean())
    assert metrics["splits"]["test"]["accuracy"] == pytest.approx(accuracy)
    card = ModelCard.load(model_folder / "README.md")
    assert card.data.eval_results is None  # no dataset on a Hub to attribute them to
    assert f"| Accuracy | {metrics['splits']['validation']['accuracy']:.3f} [" in card.text
    assert f"| {accuracy:.3f} [" in card.text
    assert card.data.library_name == "timm" and card.data.pipeline_tag == "image-classification"
    for name in ("confusion_matrix", "per_class", "curves", "reliability", "accuracy_against_coverage"):
        assert f"(figures/{name}.png)" in card.text  # and `check` has seen that each is a picture


def test_calibration_is_fitted_on_validation_alone(model_folder):
    names = json.loads((model_folder / "config.json").read_text())["pretrained_cfg"]["label_names"]
    logits = read_logits(model_folder / "logits_validation.parquet", len(names))
    written = json.loads((model_folder / "calibration.json").read_text())
    assert written == fit_calibration(logits.values, logits.labels, names)


def test_building_again_gives_the_same_bytes(run_folder, model_folder, tmp_path):
    assert main(["build", str(run_folder), str(tmp_path / "again")]) == 0
    again = {path.relative_to(tmp_path / "again"): path for path in (tmp_path / "again").rglob("*.*")}
    for name, path in again.items():
        assert path.read_bytes() == (model_folder / name).read_bytes(), name
    assert len(again) == len(list(model_folder.rglob("*.*")))


def sets(name: str, *keys: str, value: object, card: bool = False):
    """Return a change of one value in a JSON file, followed by rendering the card if `card`."""

    def change(folder: Path) -> None:
        inner = content = json.loads((folder / name).read_text())
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        (folder / name).write_text(json.dumps(content))
        if card:
            write_card(json.loads((folder / "metrics.json").read_text()), folder / "README.md")

    return change


edits = partial(sets, card=True)


def blank_weights(folder: Path) -> None:
    blank = {name: value * 0 for name, value in load_file(folder / "model.safetensors").items()}
    save_file(blank, folder / "model.safetensors")


def writes(name: str, data: bytes):
    return lambda folder: (folder / name).write_bytes(data)


def cut_logits(run: Path) -> None:
    table = pq.read_table(run / "logits_test.parquet")
    pq.write_table(table.slice(1), run / "logits_test.parquet")


def removes(name: str):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (blank_weights, "calibration.json belongs to other weights"),
        (writes("model.safetensors", b"short"), "not a readable safetensors file"),
        (writes("weights.pt", b""), "weights.pt can hold a pickle"),
        (writes(".env", b"x"), ".env is a hidden file"),
        (removes("out_of_distribution.safetensors"), "out_of_distribution.safetensors is missing"),
        (writes("out_of_distribution.safetensors", b"junk"), "out_of_distribution.safetensors cannot be read"),
        (removes("onnx/model.onnx"), "onnx/model.onnx is missing"),
        (writes("onnx/model.onnx", b""), "onnx/model.onnx cannot be run"),
        (edits("calibration.json", "out_of_distribution", "weights_sha256", value="0"), "other weights"),
        (edits("config.json", "pretrained_cfg", "std", value=[0, 0, 0]), "every std must be above 0"),
        (removes("figures/per_class.png"), "figures/per_class.png"),
        (writes("figures/per_class.png", b""), "figures/per_class.png"),
        (writes("history.jsonl", b"5\n"), "history.jsonl, line 1"),
        (writes("config.json", b"[]"), "not a JSON object"),
        (writes("config.json", b'{"a":' * 100_000), "config.json cannot be read as JSON"),
        (writes("README.md", b"\xff"), "README.md is malformed"),
        (edits("config.json", "pretrained_cfg", value=None), "config.json: pretrained_cfg"),
        (edits("config.json", "label_names", value=[{}] * 7), "config.json: label_names"),
        (edits("calibration.json", "out_of_distribution", value="x"), "calibration.json is malformed"),
        (edits("calibration.json", "temperature", "value", value=[]), "calibration.json (TypeError"),
        (sets("metrics.json", "splits", value=[]), "metrics.json is malformed"),
        (sets("metrics.json", "label_descriptions", value=None), "metrics.json is malformed"),
        (sets("metrics.json", "model", "input_size", value=[3]), "metrics.json is malformed"),
        (sets("metrics.json", "splits", "test", "accuracy", value="x"), "metrics.json is malformed"),
        (sets("metrics.json", "splits", "test", "accuracy", value=0.5), "metrics.json: splits.test.accuracy is 0.5"),
        (sets("calibration.json", "temperature", "value", value=9.0), "calibration.json: temperature.value is 9.0"),
        (lambda folder: (folder / "README.md").open("a").write("The best."), "README.md disagrees"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_work_is_refused(measured_folder, tmp_path, damage, named):
    folder = shutil.copytree(measured_folder, tmp_path / "damaged")
    damage(folder)
    problems = check(folder)
    assert problems and named in problems[0], problems


def test_a_folder_that_breaks_the_contract_is_not_published(model_folder, tmp_path, owner, capsys):
    folder = shutil.copytree(model_folder, tmp_path / "damaged")
    (folder / "onnx" / "model.onnx").unlink()
    for command in (["push", str(folder), f"{owner}/never-published"], ["check", str(folder)]):
        assert main(command) == 1
        error = capsys.readouterr().err
        assert "onnx/model.onnx is missing" in error
        assert error.startswith("error: ") and error.count("\n") == 1
    assert not HfApi().repo_exists(f"{owner}/never-published")


def test_what_follows_from_other_files_is_compared_with_them(measured_folder, tmp_path):
    folder = shutil.copytree(measured_folder, tmp_path / "edited")
    for change in (
        edits("config.json", "label_descriptions", value={"BLA": "x"}),
        edits("calibration.json", "out_of_distribution", "threshold", value=1),
        edits("metrics.json", "model", "parameters", value=5),
        edits("metrics.json", "model", "best_epoch", value=7),
        edits("metrics.json", "training", "epochs_trained", value=2),
        edits("metrics.json", "label_descriptions", value={}),
        edits("metrics.json", "prevalence", "sizes", "20", "mean_absolute_error", "em", value=0.0),
    ):
        change(folder)
    problems = "\n".join(check(folder))
    for named in (
        "model.parameters is 5", "model.best_epoch is 7", "epochs_trained is 2", "label_descriptions.BLA",
        "mean_absolute_error.em is 0.0", "different OOD thresholds",
    ):  # fmt: skip
        assert named in problems, problems


def test_the_onnx_graph_reveals_weights_of_another_network(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "blank")
    blank_weights(folder)
    assert "onnx/model.onnx gives other outputs" in check(folder)[0]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (sets("environment.json", "dataset", value=None), "environment.json is malformed"),
        (sets("environment.json", "dataset", "splits", value="many"), "environment.json is malformed"),
        (sets("environment.json", "model", value=[]), "environment.json is malformed"),
        (sets("environment.json", "model", "teachers", value=[{}]), "environment.json is malformed"),
        (writes("history.jsonl", b"[]\n"), "history.jsonl, line 1, holds a list"),
        (writes("calibration.json", b'{"out_of_distribution": "x"}'), "calibration.json is malformed"),
        (lambda run: write_measurement(run, "robustness", {"a": 1}), "robustness.json is malformed"),
        (lambda run: write_measurement(run, "splits", {"test": {}}), "splits.json is not a known measurement"),
        (cut_logits, "environment.json counts"),
    ],
)  # fmt: skip
def test_a_run_folder_with_a_file_of_the_wrong_shape_is_one_sentence(
    run_folder, tmp_path, capsys, damage, named
):
    run = shutil.copytree(run_folder, tmp_path / "run")
    damage(run)
    assert main(["build", str(run), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_measurements_go_to_the_card_unless_they_are_of_other_weights(run_folder, tmp_path, capsys):
    run = shutil.copytree(run_folder, tmp_path / "run")
    rows = [{"size": 64, "accuracy": 0.4321, "balanced_accuracy": 0.4, "gmacs": 0.125, "milliseconds": 1.5}]
    write_measurement(run, "input_size", rows)
    assert main(["build", str(run), str(tmp_path / "model")]) == 0
    assert "| 64 px | 0.432 | 0.125 | 1.5 |" in (tmp_path / "model" / "README.md").read_text()
    assert (tmp_path / "model" / "figures" / "input_size.png").is_file()
    weights = bytearray((run / "model.safetensors").read_bytes())
    weights[-3] ^= 0x41
    (run / "model.safetensors").write_bytes(weights)
    assert main(["build", str(run), str(tmp_path / "stale")]) == 1
    assert "belongs to other weights" in capsys.readouterr().err
    assert not (tmp_path / "stale").exists()


def test_a_missing_run_or_an_existing_output_is_one_sentence(run_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for arguments, sentence in (
        ((tmp_path / "none", tmp_path / "out"), "there is no run folder"),
        ((run_folder, tmp_path), "already exists"),
        ((run_folder, tmp_path, "--overwrite"), "is not a model repo"),
        ((run_folder, tmp_path / "file" / "out"), f"{tmp_path / 'file'}: "),
    ):
        assert main(["build", *map(str, arguments)]) == 1
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_model_is_fine_tuned_on_other_classes_to_a_repo_that_loads(run_folder, drawn_folder, tmp_path):
    for old, new in (("BLA", "alpha"), ("EOS", "beta"), ("NGS", "gamma")):
        shutil.copytree(drawn_folder / old, tmp_path / "raw" / new)
    commands = (
        ["-m", "dataset_script", "build", "raw", "data"],
        [REPOSITORY / "train_accelerate.py", "--dataset", "data", "--init_from", run_folder, "--output_dir", "run",
         "--epochs", "1"],
        ["-m", "hub_model", "build", "run", "model"],
    )  # fmt: skip
    for command in commands:
        done = subprocess.run(
            [sys.executable, *map(str, command)], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    model = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    assert model.pretrained_cfg["label_names"] == ["alpha", "beta", "gamma"] and model.num_classes == 3
    before = timm.create_model(f"local-dir:{run_folder}", pretrained=True).state_dict()
    start, end = next(iter(before.values())), next(iter(model.state_dict().values()))
    assert torch.corrcoef(torch.stack([start.flatten(), end.flatten()]))[0, 1] > 0.9  # it began there
