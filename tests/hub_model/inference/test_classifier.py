"""The public API: the same logits as timm's, from a folder or the Hub, and nothing unsafe is loaded."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import HfApi
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from dataset_script.synthetic_cells import draw_cell
from hub_model.inference.appearance import STATISTICS
from hub_model.inference.calibration import Calibration
from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import RepoError
from hub_model.inference.images import to_rgb
from hub_model.inference.ood import OodRule
from hub_model.studies.ood import write_rule
from tests.small_model_repo import LABELS


@pytest.fixture(scope="module")
def cells() -> list[Image.Image]:
    return [draw_cell(label, 300 + i) for i, label in enumerate(LABELS)]


@pytest.fixture
def folder(small_model: Path, tmp_path: Path) -> Path:
    """A copy of the model repo that a test may change."""
    return shutil.copytree(small_model, tmp_path / "repo")


def test_the_timm_backend_gives_the_logits_of_timm_create_model(small_model: Path, cells: list) -> None:
    model = timm.create_model(f"local-dir:{small_model}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        expected = model(torch.stack([transform(cell) for cell in cells])).numpy()
    answer = Classifier.from_pretrained(small_model, backend="timm").predict(cells)
    assert np.array_equal(answer.logits, expected)


def test_a_batch_of_no_images_is_refused(small_model: Path, cells: list) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        Classifier.from_pretrained(small_model).predict(cells, batch_size=0)


def test_onnx_and_timm_give_the_same_predictions(small_model: Path, cells: list) -> None:
    classifiers = [Classifier.from_pretrained(small_model, backend=name) for name in ("onnx", "timm")]
    by_onnx, by_timm = (classifier.predict(cells) for classifier in classifiers)
    assert Classifier.from_pretrained(small_model).backend == "onnx"
    assert by_onnx.labels == by_timm.labels
    assert [str(verdict) for verdict in by_onnx.verdicts] == [str(verdict) for verdict in by_timm.verdicts]
    np.testing.assert_allclose(by_onnx.logits, by_timm.logits, atol=1e-4)
    np.testing.assert_allclose(by_onnx.features, by_timm.features, atol=1e-4)
    np.testing.assert_allclose(by_onnx.probabilities, by_timm.probabilities, atol=1e-5)


def test_predictions_depend_on_neither_batch_nor_image_type(small_model: Path, tmp_path: Path) -> None:
    classifier = Classifier.from_pretrained(small_model)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        draw_cell("BLA", i).save(path)
    expected = classifier.predict(paths).logits
    image, array = Image.open(paths[3]), np.asarray(Image.open(paths[4]))
    forms = [paths[0], str(paths[1]), paths[2].read_bytes(), image, array]
    np.testing.assert_allclose(classifier.predict(iter(forms), batch_size=2).logits, expected, atol=1e-5)
    assert len(classifier.predict([])) == 0
    assert classifier.predict(paths[0]).labels == classifier.predict(paths[:1]).labels


def test_predictions_are_bit_identical_for_any_number_of_threads(small_model: Path, cells: list) -> None:
    one, two = (Classifier.from_pretrained(small_model, threads=threads) for threads in (1, 2))
    one.measures_appearance = two.measures_appearance = True
    expected, parallel = one.predict(cells + cells[:1]), two.predict(cells + cells[:1])
    for name in ("logits", "features", "ood_score", "appearance"):
        assert np.array_equal(getattr(parallel, name), getattr(expected, name)), name
    pixels = two.preprocess(cells)
    assert np.array_equal(two.network(pixels)[0], parallel.logits[:7])
    assert np.array_equal(two.forward(pixels)[2], parallel.appearance[:7])


def test_an_ood_score_does_not_depend_on_the_batch() -> None:
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(1920, 128)))[0]
    rule = OodRule(rng.normal(size=(7, 1920)), directions, rng.uniform(1, 9, 128), 0.5, threshold=1.0)
    features = rng.normal(size=(9, 1920)).astype(np.float32)
    residual = np.eye(1920) - directions @ directions.T
    covariance = (directions * rule.variances) @ directions.T + 0.5 * residual
    centred = features.astype(float)[:, None] - rule.class_means
    expected = np.einsum("ncd,ncd->nc", centred, centred @ np.linalg.inv(covariance)).min(axis=1)
    np.testing.assert_allclose(rule.score(features), expected, rtol=1e-9)
    np.testing.assert_allclose([rule.score(one[None])[0] for one in features], expected, rtol=1e-9)
    assert rule.score(features[:0]).shape == (0,)


def test_appearance_is_measured_only_for_a_reference(small_model: Path, cells: list) -> None:
    classifier = Classifier.from_pretrained(f"local-dir:{small_model}")
    assert classifier.predict(cells).appearance.shape == (len(cells), 0)
    classifier.measures_appearance = True
    assert classifier.predict(cells).appearance.shape == (len(cells), len(STATISTICS))


def test_a_hub_id_and_its_folder_give_the_same_logits(small_model: Path, owner: str, cells: list) -> None:
    repo = f"{owner}/classifier-by-id"
    HfApi().create_repo(repo, exist_ok=True)
    commit = HfApi().upload_folder(repo_id=repo, folder_path=small_model)
    classifier, local = Classifier.from_pretrained(repo), Classifier.from_pretrained(small_model)
    assert classifier.repo.commit == commit.oid
    assert classifier.label_descriptions["NIF"] == "not identifiable"
    assert np.array_equal(classifier.predict(cells).logits, local.predict(cells).logits)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "old/weights.PTH", "training_state.pkl"])
def test_a_repo_with_a_pickle_is_refused_with_the_name_of_the_file(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(RepoError, match=name):
        Classifier.from_pretrained(folder)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"label_names": None}, "label_names"),
        ({"label_names": ["A", "A", *"BCDEF"]}, "label_names"),
        ({"num_classes": 9}, "num_classes is 9"),
        ({"architecture": "resnet18"}, "model.safetensors does not fit"),
        ({"model_args": {"nonsense": 1}}, "does not fit"),
    ],
)
def test_a_malformed_config_is_refused_in_one_sentence(folder: Path, config: dict, reason: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(RepoError, match=reason) as refusal:
        Classifier.from_pretrained(folder, backend="timm").predict(draw_cell("BLA", 0))
    assert "\n" not in str(refusal.value)


def test_a_cached_download_works_offline_and_a_missing_one_is_an_error(
    small_model: Path, owner: str, tmp_path: Path
) -> None:
    repo = f"{owner}/classifier-cached"
    HfApi().create_repo(repo, exist_ok=True)
    HfApi().upload_folder(repo_id=repo, folder_path=small_model)
    code = f"""
from hub_model import Classifier
from hub_model.inference.errors import RepoError
try:
    print("loaded", Classifier.from_pretrained({repo!r}).label_names[0])
except RepoError as error:
    print(error)
"""

    def load(endpoint: str) -> str:
        environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": endpoint}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    nowhere = "http://127.0.0.1:9"
    assert load(nowhere).startswith(f"the Hub at {nowhere} cannot be reached for {repo}")
    assert load(os.environ["HF_ENDPOINT"]) == load(nowhere) == "loaded BLA"


@pytest.mark.parametrize(
    ("name", "size", "backend"),
    [("config.json", None, "auto"), ("model.safetensors", None, "auto"), ("model.safetensors", 5000, "timm"),
     ("onnx/model.onnx", 5000, "onnx"), ("onnx/model.onnx", None, "onnx")],
)  # fmt: skip
def test_a_missing_or_cut_file_is_named(folder: Path, name: str, size: int | None, backend: str) -> None:
    path = folder / name
    data = path.read_bytes()[:size]
    path.unlink()
    if size:
        path.write_bytes(data)
    with pytest.raises(RepoError, match=path.name):
        Classifier.from_pretrained(folder, backend=backend).predict(draw_cell("BLA", 0))


@pytest.mark.parametrize("model_id", ["", "nobody/nothing-here", "no such/id at all/x"])
def test_a_missing_repo_is_one_sentence(model_id: str) -> None:
    with pytest.raises(RepoError) as refusal:
        Classifier.from_pretrained(model_id)
    assert "\n" not in str(refusal.value)


def test_without_calibration_nothing_is_claimed(folder: Path, cells: list) -> None:
    (folder / "calibration.json").unlink()
    answer = Classifier.from_pretrained(folder).predict(cells)
    assert {verdict.kind for verdict in answer.verdicts} == {"uncalibrated"}
    assert answer.sets == {} and answer.ood_score is None
    exponentials = np.exp(answer.logits - answer.logits.max(axis=1, keepdims=True))
    softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answer.probabilities, softmax, atol=1e-6)


@pytest.mark.parametrize(
    "calibration", ["{", "[]", '{"temperature": {"value": 0}}', '{"conformal": {"0.90": {"thresholds": {"BLA": 1}}}}',
                    '{"out_of_distribution": {"score": "guess", "threshold": 1}}',
                    json.dumps({"sure": {"thresholds": dict.fromkeys(LABELS, 0.9), "error": "few"}})]
)  # fmt: skip
def test_a_malformed_calibration_is_refused(folder: Path, calibration: str) -> None:
    (folder / "calibration.json").write_text(calibration)
    with pytest.raises(RepoError, match=r"calibration\.json|out-of-distribution"):
        Classifier.from_pretrained(folder)


def test_verdicts_follow_the_thresholds(folder: Path) -> None:
    calibration = {
        "temperature": {"value": 2.0},
        "conformal": {"0.95": {"thresholds": {label: 0.6 for label in LABELS}}},
        "sure": {"thresholds": {label: 0.9 for label in LABELS} | {"EOS": None}},
    }
    (folder / "calibration.json").write_text(json.dumps(calibration))
    write_rule(folder, OodRule(np.zeros((1, 2)), np.eye(2)[:, :1], np.ones(1), 1.0, threshold=4.0))
    classifier = Classifier.from_pretrained(folder)
    cases = [
        ([9, 0, 0, 0, 0, 0, 0], [0, 0], "sure"),
        ([0, 9, 0, 0, 0, 0, 0], [0, 0], "between EOS and BLA"),
        ([0, 0, 0, 0, 0, 9, 0], [0, 0], "a cell that cannot be identified"),
        ([9, 0, 0, 0, 0, 0, 9], [0, 1], "between BLA and PMO"),
        ([9, 9, 9, 8.9, 0, 0, 0], [1, 0], "between BLA and EOS"),
        ([9, 0, 0, 0, 0, 0, 0], [2, 2], "not a cell I know"),
    ]
    logits, features, expected = zip(*cases, strict=True)
    arrays = np.array(logits, np.float32), np.array(features, np.float32)
    answer = classifier.interpret(*arrays, np.zeros((6, 18)))
    assert [str(verdict) for verdict in answer.verdicts] == list(expected)


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "P", "1", "LA", "I", "F"])
def test_a_picture_of_any_mode_becomes_rgb(mode: str) -> None:
    cell = draw_cell("MON", 5) if mode in ("RGBA", "CMYK") else draw_cell("MON", 5).convert("L")
    assert to_rgb(cell.convert(mode)).mode == "RGB"


def test_a_between_verdict_names_the_most_probable_class_and_another() -> None:
    thresholds = {"0.95": np.array([0.3, 0.7, 0.3])}
    calibration = Calibration(("a", "b", "c"), 1.0, thresholds, sure=np.array([0.8, 0.9, 0.9]))
    probabilities = np.array([[0.55, 0.4, 0.05], [0.8, 0.15, 0.05], [0.5, 0.2, 0.3]])
    verdicts = [(verdict.kind, verdict.labels) for verdict in calibration.verdicts(probabilities, None)]
    assert verdicts == [("between", ("a", "b")), ("sure", ("a",)), ("between", ("a", "c"))]
