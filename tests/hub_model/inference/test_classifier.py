"""The public entry: the same logits as timm's own, from a folder or the Hub, and nothing unsafe is loaded."""

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


def changed(small_model: Path, folder: Path, **config: object) -> Path:
    """A copy of the model repo whose config.json says something else."""
    shutil.copytree(small_model, folder)
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**found, **config}))
    return folder


def test_the_timm_backend_gives_the_logits_of_timms_one_line(small_model: Path, cells: list) -> None:
    model = timm.create_model(f"local-dir:{small_model}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        expected = model(torch.stack([transform(cell) for cell in cells])).numpy()
    answer = Classifier.from_pretrained(small_model, backend="timm").predict(cells)
    assert np.array_equal(answer.logits, expected)


def test_onnx_and_timm_give_the_same_answers(small_model: Path, cells: list) -> None:
    onnx, other = (
        Classifier.from_pretrained(small_model, backend=name).predict(cells) for name in ("onnx", "timm")
    )
    assert Classifier.from_pretrained(small_model).backend == "onnx"
    assert onnx.labels == other.labels
    assert [str(verdict) for verdict in onnx.verdicts] == [str(verdict) for verdict in other.verdicts]
    np.testing.assert_allclose(onnx.logits, other.logits, atol=1e-4)
    np.testing.assert_allclose(onnx.features, other.features, atol=1e-4)
    np.testing.assert_allclose(onnx.probabilities, other.probabilities, atol=1e-5)


def test_an_answer_does_not_depend_on_the_batch_nor_on_the_form_of_the_image(
    small_model: Path, tmp_path: Path
) -> None:
    classifier = Classifier.from_pretrained(small_model)
    paths = []
    for i in range(5):
        paths.append(tmp_path / f"{i}.png")
        draw_cell("BLA", i).save(paths[-1])
    expected = classifier.predict(paths).logits
    forms = [
        paths[0],
        str(paths[1]),
        paths[2].read_bytes(),
        Image.open(paths[3]),
        np.asarray(Image.open(paths[4])),
    ]
    np.testing.assert_allclose(classifier.predict(iter(forms), batch_size=2).logits, expected, atol=1e-5)
    assert len(classifier.predict([])) == 0
    assert classifier.predict(paths[0]).labels == classifier.predict(paths[:1]).labels


def test_threads_that_share_out_a_batch_change_no_bit_of_an_answer(small_model: Path, cells: list) -> None:
    one, two = (Classifier.from_pretrained(small_model, threads=number) for number in (1, 2))
    one.measures_appearance = two.measures_appearance = True
    expected, found = one.predict(cells + cells[:1]), two.predict(cells + cells[:1])
    for name in ("logits", "features", "ood_score", "appearance"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    pixels = two.preprocess(cells)
    assert np.array_equal(two.network(pixels)[0], found.logits[:7])
    assert np.array_equal(two.forward(pixels)[2], found.appearance[:7])


def test_an_ood_score_does_not_depend_on_the_batch() -> None:
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(1920, 128)))[0]
    rule = OodRule(rng.normal(size=(7, 1920)), directions, rng.uniform(1, 9, 128), 0.5, threshold=1.0)
    features = rng.normal(size=(9, 1920)).astype(np.float32)
    across = np.eye(1920) - directions @ directions.T
    covariance = (directions * rule.variances) @ directions.T + 0.5 * across
    away = features.astype(float)[:, None] - rule.class_means
    expected = np.einsum("ncd,ncd->nc", away, away @ np.linalg.inv(covariance)).min(axis=1)
    np.testing.assert_allclose(rule.score(features), expected, rtol=1e-9)
    np.testing.assert_allclose([rule.score(one[None])[0] for one in features], expected, rtol=1e-9)
    assert rule.score(features[:0]).shape == (0,)


def test_appearance_is_measured_only_for_a_reference(small_model: Path, cells: list) -> None:
    classifier = Classifier.from_pretrained(f"local-dir:{small_model}")
    assert classifier.predict(cells).appearance.shape == (len(cells), 0)
    classifier.measures_appearance = True
    assert classifier.predict(cells).appearance.shape == (len(cells), len(STATISTICS))


def test_a_hub_id_and_its_folder_answer_alike(small_model: Path, owner: str, cells: list) -> None:
    repo = f"{owner}/classifier-by-id"
    HfApi().create_repo(repo, exist_ok=True)
    commit = HfApi().upload_folder(repo_id=repo, folder_path=small_model)
    classifier = Classifier.from_pretrained(repo)
    assert classifier.repo.commit == commit.oid
    assert classifier.label_descriptions["NIF"] == "not identifiable"
    assert np.array_equal(
        classifier.predict(cells).logits, Classifier.from_pretrained(small_model).predict(cells).logits
    )


@pytest.mark.parametrize("name", ["pytorch_model.bin", "old/weights.PTH", "training_state.pkl"])
def test_a_repo_with_a_pickle_is_refused_by_the_name_of_the_file(
    small_model: Path, tmp_path: Path, name: str
) -> None:
    folder = changed(small_model, tmp_path / "repo")
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
def test_a_config_that_breaks_the_contract_is_refused_in_one_sentence(
    small_model: Path, tmp_path: Path, config: dict, reason: str
) -> None:
    with pytest.raises(RepoError, match=reason) as refusal:
        Classifier.from_pretrained(changed(small_model, tmp_path / "repo", **config), backend="timm").predict(
            draw_cell("BLA", 0)
        )
    assert "\n" not in str(refusal.value)


def test_without_a_hub_an_earlier_download_will_do_and_without_one_it_says_so(
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
def test_a_file_that_is_missing_or_cut_off_is_named(
    small_model: Path, tmp_path: Path, name: str, size: int | None, backend: str
) -> None:
    path = changed(small_model, tmp_path / "repo") / name
    data = path.read_bytes()[:size]
    path.unlink()
    if size:
        path.write_bytes(data)
    with pytest.raises(RepoError, match=path.name):
        Classifier.from_pretrained(tmp_path / "repo", backend=backend).predict(draw_cell("BLA", 0))


@pytest.mark.parametrize("model_id", ["", "nobody/nothing-here", "no such/id at all/x"])
def test_a_missing_repo_is_one_sentence(model_id: str) -> None:
    with pytest.raises(RepoError) as refusal:
        Classifier.from_pretrained(model_id)
    assert "\n" not in str(refusal.value)


def test_without_calibration_nothing_is_claimed(small_model: Path, tmp_path: Path, cells: list) -> None:
    folder = changed(small_model, tmp_path / "repo")
    (folder / "calibration.json").unlink()
    answer = Classifier.from_pretrained(folder).predict(cells)
    assert {verdict.kind for verdict in answer.verdicts} == {"uncalibrated"}
    assert answer.sets == {} and answer.ood_score is None
    exponentials = np.exp(answer.logits - answer.logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        answer.probabilities, exponentials / exponentials.sum(axis=1, keepdims=True), atol=1e-6
    )


@pytest.mark.parametrize(
    "calibration", ["{", "[]", '{"temperature": {"value": 0}}', '{"conformal": {"0.90": {"thresholds": {"BLA": 1}}}}',
                    '{"out_of_distribution": {"score": "guess", "threshold": 1}}',
                    json.dumps({"sure": {"thresholds": dict.fromkeys(LABELS, 0.9), "error": "few"}})]
)  # fmt: skip
def test_a_broken_calibration_is_refused(small_model: Path, tmp_path: Path, calibration: str) -> None:
    folder = changed(small_model, tmp_path / "repo")
    (folder / "calibration.json").write_text(calibration)
    with pytest.raises(RepoError, match=r"calibration\.json|out-of-distribution"):
        Classifier.from_pretrained(folder)


def test_verdicts_follow_the_thresholds(small_model: Path, tmp_path: Path) -> None:
    folder = changed(small_model, tmp_path / "repo")
    calibration = {
        "temperature": {"value": 2.0},
        "conformal": {"0.95": {"thresholds": {label: 0.6 for label in LABELS}}},
        "sure": {"thresholds": {label: 0.9 for label in LABELS} | {"EOS": None}},
    }
    (folder / "calibration.json").write_text(json.dumps(calibration))
    write_rule(folder, OodRule(np.zeros((1, 2)), np.eye(2)[:, :1], np.ones(1), 1.0, threshold=4.0))
    classifier = Classifier.from_pretrained(folder)
    sure, never, nameless, torn, lost = (
        [9, 0, 0, 0, 0, 0, 0],
        [0, 9, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 9, 0],
        [9, 0, 0, 0, 0, 0, 9],
        [9, 9, 9, 8.9, 0, 0, 0],
    )
    logits = np.array([sure, never, nameless, torn, lost, sure], np.float32)
    features = np.array([[0, 0]] * 3 + [[0, 1], [1, 0], [2, 2]], np.float32)
    answer = classifier.interpret(logits, features, np.zeros((6, 18)))
    assert [str(verdict) for verdict in answer.verdicts] == [
        "sure",
        "between EOS and BLA",
        "a cell that cannot be identified",
        "between BLA and PMO",
        "between BLA and EOS",
        "not a cell I know",
    ]


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "P", "1", "LA", "I", "F"])
def test_a_picture_of_any_mode_becomes_rgb(mode: str) -> None:
    cell = draw_cell("MON", 5) if mode in ("RGBA", "CMYK") else draw_cell("MON", 5).convert("L")
    assert to_rgb(cell.convert(mode)).mode == "RGB"


def test_doubt_names_the_likeliest_class_and_another() -> None:
    limits = {"0.95": np.array([0.3, 0.7, 0.3])}
    calibration = Calibration(("a", "b", "c"), 1.0, limits, sure=np.array([0.8, 0.9, 0.9]))
    probabilities = np.array([[0.55, 0.4, 0.05], [0.8, 0.15, 0.05], [0.5, 0.2, 0.3]])
    found = [(verdict.kind, verdict.labels) for verdict in calibration.verdicts(probabilities, None)]
    assert found == [("between", ("a", "b")), ("sure", ("a",)), ("between", ("a", "c"))]
