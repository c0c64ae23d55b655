"""The way from a run folder to a model repo on a Hub: built, checked, published, loaded back; and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from huggingface_hub import HfApi, ModelCard
from transformers import pipeline

from hub_model.__main__ import main
from hub_model.build import check
from hub_model.calibration import fit_calibration
from hub_model.contract import ContractError, read_logits
from hub_model.publish import push, verify
from hub_model.trust_commands import write_measurement

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run_folder(drawn_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of the real trainer on drawn cells."""
    out = tmp_path_factory.mktemp("run") / "run"
    command = [
        sys.executable,
        REPOSITORY / "train_accelerate.py",
        "--dataset",
        drawn_dataset,
        "--output_dir",
        out,
    ]
    command += ["--no-pretrained", "--model", "test_mambaout", "--image_size", "64", "--epochs", "1"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def model_folder(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "model"
    assert main(["build", str(run_folder), str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def repo(model_folder: Path, owner: str) -> str:
    name = f"{owner}/built-model"
    push(model_folder, name)
    return name


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_every_number_of_the_card_is_that_of_the_logits(model_folder: Path) -> None:
    assert check(model_folder) == []
    metrics = json.loads((model_folder / "metrics.json").read_text())
    logits = read_logits(model_folder / "logits_test.parquet", 7)
    accuracy = float((logits.values.argmax(axis=1) == logits.labels).mean())
    assert metrics["splits"]["test"]["accuracy"] == pytest.approx(accuracy)
    card = ModelCard.load(model_folder / "README.md")
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found["Accuracy"] == pytest.approx(accuracy)
    assert f"| Accuracy | {metrics['splits']['validation']['accuracy']:.3f} [" in card.text
    assert card.data.library_name == "timm" and card.data.pipeline_tag == "image-classification"
    for name in ("confusion_matrix", "per_class", "curves", "reliability", "accuracy_against_coverage"):
        assert (
            f"figures/{name}.png" in card.text
            and (model_folder / "figures" / f"{name}.png").stat().st_size > 5000
        )


def test_calibration_is_fitted_on_validation_alone(model_folder: Path) -> None:
    names = json.loads((model_folder / "config.json").read_text())["label_names"]
    logits = read_logits(model_folder / "logits_validation.parquet", len(names))
    written = json.loads((model_folder / "calibration.json").read_text())
    assert written == fit_calibration(logits.values, logits.labels, names)


def test_it_loads_in_one_line_and_gives_the_logits_of_the_run(
    repo: str, drawn_dataset: Path, model_folder: Path
) -> None:
    from datasets import load_dataset

    model = timm.create_model(f"hf-hub:{repo}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    rows = load_dataset(str(drawn_dataset), split="test").select(range(8))
    stored = read_logits(model_folder / "logits_test.parquet", 7)
    expected = dict(zip(stored.file_names, stored.values, strict=True))
    with torch.inference_mode():
        logits = model(torch.stack([transform(row["image"].convert("RGB")) for row in rows])).numpy()
    np.testing.assert_allclose(logits, [expected[row["file_name"]] for row in rows], atol=2e-4)
    answers = pipeline("image-classification", model=repo)([row["image"] for row in rows])
    names = model.pretrained_cfg["label_names"]
    assert [a[0]["label"] for a in answers] == [names[i] for i in logits.argmax(axis=1)]


def test_the_onnx_graph_gives_the_same_logits(model_folder: Path) -> None:
    import onnxruntime

    model = timm.create_model(f"local-dir:{model_folder}", pretrained=True).eval()
    images = torch.randn(3, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(model_folder / "onnx" / "model.onnx")
    found = session.run(["logits"], {"pixel_values": images.numpy()})[0]
    with torch.inference_mode():
        np.testing.assert_allclose(found, model(images).numpy(), atol=1e-4)


def test_verify_compares_in_a_fresh_process(repo: str, model_folder: Path, tmp_path: Path) -> None:
    found = verify(repo, model_folder)
    assert found["identical"] and found["timm_names"] == found["transformers_names"]
    other = copy(model_folder, tmp_path / "other")
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-3] ^= 0x41
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(ContractError, match="other logits"):
        verify(repo, other)


def test_the_same_push_again_makes_no_commit(repo: str, model_folder: Path) -> None:
    before = [commit.commit_id for commit in HfApi().list_repo_commits(repo)]
    push(model_folder, repo)
    assert [commit.commit_id for commit in HfApi().list_repo_commits(repo)] == before


def test_building_again_gives_the_same_bytes(run_folder: Path, model_folder: Path, tmp_path: Path) -> None:
    assert main(["build", str(run_folder), str(tmp_path / "again")]) == 0
    for path in model_folder.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(model_folder)).read_bytes(), (
                path
            )


def set_number(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["splits"]["test"]["accuracy"] += 0.01
    (folder / "metrics.json").write_text(json.dumps(metrics))


def set_temperature(folder: Path) -> None:
    calibration = json.loads((folder / "calibration.json").read_text())
    calibration["temperature"]["value"] *= 1.1
    (folder / "calibration.json").write_text(json.dumps(calibration))


def set_sentence(folder: Path) -> None:
    (folder / "README.md").write_text(
        (folder / "README.md").read_text().replace("Accuracy", "Best accuracy", 1)
    )


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (set_number, "splits.test.accuracy"),
        (set_temperature, "calibration.json: temperature.value"),
        (set_sentence, "README.md disagrees"),
        (lambda folder: (folder / "onnx" / "model.onnx").unlink(), "onnx/model.onnx is missing"),
        (lambda folder: (folder / "weights.pt").write_bytes(b""), "weights.pt can hold a pickle"),
        (lambda folder: (folder / ".env").write_text("x"), ".env is a hidden file"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"short"),
            "not a readable safetensors file",
        ),
        (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
    ],
)
def test_a_folder_that_breaks_the_contract_is_not_published(
    model_folder: Path, tmp_path: Path, owner: str, capsys: pytest.CaptureFixture, damage, named: str
) -> None:
    folder = copy(model_folder, tmp_path / "damaged")
    damage(folder)
    assert main(["push", str(folder), f"{owner}/never-published"]) == 1
    error = capsys.readouterr().err
    assert named in error and error.startswith("error: ") and error.count("\n") == 1
    assert not HfApi().repo_exists(f"{owner}/never-published")
    assert main(["check", str(folder)]) == 1


def test_measurements_go_to_the_card_unless_they_are_of_other_weights(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = copy(run_folder, tmp_path / "run")
    rows = [{"size": 64, "accuracy": 0.4321, "balanced_accuracy": 0.4, "gmacs": 0.125, "milliseconds": 1.5}]
    write_measurement(run, "size_curve", rows)
    assert main(["build", str(run), str(tmp_path / "model")]) == 0
    assert "| 64 px | 0.432 | 0.125 | 1.5 |" in (tmp_path / "model" / "README.md").read_text()
    assert (tmp_path / "model" / "figures" / "size_curve.png").is_file()
    weights = bytearray((run / "model.safetensors").read_bytes())
    weights[-3] ^= 0x41
    (run / "model.safetensors").write_bytes(weights)
    assert main(["build", str(run), str(tmp_path / "stale")]) == 1
    assert "belongs to other weights" in capsys.readouterr().err
    assert not (tmp_path / "stale").exists()


def test_a_run_that_is_not_there_or_not_whole_is_one_sentence(
    run_folder: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["build", str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert "there is no run folder" in capsys.readouterr().err
    assert main(["build", str(run_folder), str(model_folder)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["build", str(run_folder), str(run_folder), "--overwrite"]) == 1
    assert "holds no model repo" in capsys.readouterr().err
    broken = copy(run_folder, tmp_path / "broken")
    table = pq.read_table(broken / "logits_test.parquet")
    pq.write_table(table.slice(1), broken / "logits_test.parquet")
    assert main(["build", str(broken), str(tmp_path / "out")]) == 1
    assert "environment.json counts" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_is_fine_tuned_on_other_classes_to_a_repo_that_loads(
    run_folder: Path, drawn_folder: Path, tmp_path: Path
) -> None:
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
