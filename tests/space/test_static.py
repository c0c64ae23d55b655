"""The static Space: the model answers in a browser as it does in Python, offline, and no image leaves the machine."""

import csv
import hashlib
import itertools
import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform, resolve_data_config

from bench.browser import offline_page, served
from dataset_script.synthetic_cells import draw_cell
from hub_model.inference.appearance import STATISTICS, AppearanceReference, appearance
from hub_model.inference.calibration import names_in
from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import RepoError
from hub_model.inference.preprocessing import Preprocessing
from space import static_space
from space.__main__ import main
from tests.small_model_repo import LABELS
from tests.space.browser import chromium

ROOT = Path(__file__).parents[2]
CELLS = ROOT.parent / "shared" / "data" / "bone_marrow"


def in_thread(function, *arguments):
    """Playwright may have an event loop in the main thread, from an earlier test."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


def built(model: Path, folder: Path) -> Path:
    assert main(["build", "--static", str(folder), "--model", str(model)]) == 0
    return folder


def answers_of_the_page(folder: Path, images: list[Path] | Path) -> tuple[dict, list[str]]:
    """The answers of the offline page for images or a folder of them, and every request that it has made."""
    with offline_page(folder) as (page, requests):
        page.set_input_files("#folder" if isinstance(images, Path) else "#images", images)
        page.wait_for_selector("#state:has-text('Ready')")
        page.wait_for_selector("#summary:has-text('cell')")
        with page.expect_download() as download:
            page.click("#csv")
        results = {
            "answers": page.evaluate("window.answers"),
            "counts": [row.split("\t") for row in page.inner_text("#counts tbody").splitlines()],
            "csv": Path(download.value.path()).read_text("utf-8"),
            "summary": page.inner_text("#summary"),
            "cards": page.locator("#cells > li canvas").count(),
            "refused": page.evaluate(
                "fetch('https://example.org/').then(() => 'sent', (error) => error.name)"
            ),
        }
        page.click("#clear")
        results["after clear"] = page.text_content("#summary") + page.text_content("#cells")
    return results, requests


def assert_as_in_python(answers: list[dict], classifier: Classifier, images: list[Path]) -> None:
    expected = classifier.predict(images)
    assert [answer["label"] for answer in answers] == expected.labels
    probabilities = np.array([answer["probabilities"] for answer in answers])
    assert np.abs(probabilities - expected.probabilities).max() < 1e-4
    assert np.allclose([answer["oodScore"] for answer in answers], expected.ood_score, rtol=1e-4)
    assert [answer["verdict"]["kind"] for answer in answers] == [v.kind for v in expected.verdicts]
    for level, members in expected.sets.items():
        assert [answer["sets"][level] for answer in answers] == names_in(members, LABELS)


@pytest.mark.browser
def test_200_cells_are_answered_as_in_python_offline_and_nothing_is_sent(
    small_model: Path, tmp_path: Path
) -> None:
    folder, classifier = built(small_model, tmp_path / "static"), Classifier.from_pretrained(small_model)
    (tmp_path / "cells").mkdir()
    images = [tmp_path / "cells" / f"{number:03d}.png" for number in range(200)]
    for number, (path, label) in enumerate(zip(images, itertools.cycle(LABELS))):
        draw_cell(label, 900 + number).save(path)
    (tmp_path / "cells" / "=notes.png").write_bytes(b"no image")
    results, requests = in_thread(answers_of_the_page, folder, tmp_path / "cells")
    answers = {answer["name"]: answer for answer in results["answers"]}
    assert "not an image" in answers.pop("cells/=notes.png")["error"]
    assert_as_in_python([answers[f"cells/{path.name}"] for path in images], classifier, images)
    predicted = classifier.predict(images)
    expected = classifier.calibration.count(predicted.probabilities, predicted.ood_score)
    assert [row[:2] for row in results["counts"]] == [[entry.label, str(entry.cells)] for entry in expected]
    for row, entry in zip(results["counts"], expected, strict=True):
        shown = [float(number) / 100 for text in row[2:] for number in text.replace("%", "").split(" – ")]
        fractions = [entry.share, *entry.share_interval, entry.corrected]
        assert np.allclose(shown[:4], fractions, atol=0.00051), "to the displayed digits"
        assert np.allclose(shown[4:], entry.corrected_interval, atol=0.03), "to within the sampling error"
    rows = {row["file_name"]: row for row in csv.DictReader(results["csv"].splitlines())}
    assert len(rows) == 201 and rows["cells/000.png"]["predicted_label"] == answers["cells/000.png"]["label"]
    assert "not an image" in rows["cells/=notes.png"]["error"]
    assert results["cards"] == 200
    assert results["summary"].startswith("200 cells") and "1 unreadable" in results["summary"]
    served_files = {"/" + path.relative_to(folder).as_posix() for path in folder.rglob("*")} | {"/"}
    before, after = requests[: requests.index("offline")], requests[requests.index("offline") + 1 :]
    assert set(before) <= {f"GET {path}" for path in served_files}
    assert [request for request in after if "blob:" not in request and "example.org" not in request] == []
    assert results["refused"] == "TypeError", "the content security policy forbids other connections"
    assert results["after clear"] == "", "nothing of the old results is left"


@pytest.mark.browser
@pytest.mark.real_data
@pytest.mark.skipif(not CELLS.is_dir(), reason="the real crops are not on this machine")
def test_the_released_model_answers_200_real_crops_as_in_python(tmp_path: Path) -> None:
    release = ROOT / "hub_model" / "release"
    folder = built(release, tmp_path / "static")
    images = [path for label in LABELS for path in sorted((CELLS / label).glob("*.jpg"))[:29]][:200]
    results, _ = in_thread(answers_of_the_page, folder, images)
    assert_as_in_python(results["answers"], Classifier.from_pretrained(release), images)


@pytest.mark.browser
def test_a_drop_on_a_page_without_its_model_does_not_open_the_file(small_model: Path, tmp_path: Path) -> None:
    folder = built(small_model, tmp_path / "static")
    (folder / "model" / "settings.json").unlink()
    drop = "['dragover', 'drop'].map((type) => document.dispatchEvent(new DragEvent(type, { cancelable: true })))"

    def not_prevented() -> list[bool]:
        with served(folder) as address, chromium() as browser:
            page = browser.new_page()
            page.goto(address)
            page.wait_for_selector("#state:has-text('could not be loaded')")
            return page.evaluate(drop)

    assert in_thread(not_prevented) == [False, False]


@pytest.mark.browser
def test_the_pages_tensors_are_bit_identical_to_timms(tmp_path: Path) -> None:
    rng, cases, expected = np.random.default_rng(0), [], []
    modes, filters, sizes = ["center", "squash", "border"], ["bicubic", "bilinear"], [(150, 150), (73, 131)]
    for number, (mode, name, (height, width)) in enumerate(itertools.product(modes, filters, sizes)):
        config = {"crop_mode": mode, "interpolation": name, "mean": (0.1, 0.2, 0.3)}
        config["input_size"] = [(3, 96, 96), (3, 128, 80)][number % 2]
        config["crop_pct"] = [1.0, 0.875][number // 2 % 2]
        config = resolve_data_config(pretrained_cfg=config)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected.append(create_transform(**config, is_training=False)(Image.fromarray(pixels)).numpy())
        cases.append({"values": pixels.ravel().tolist(), "width": width, "height": height, "config": config})

    def tensors() -> list[list[float]]:
        with served(static_space.PAGE) as address, chromium() as browser:
            page = browser.new_page()
            page.goto(f"{address}/preprocess.js")
            return page.evaluate(
                """async (cases) => {
                    const { preprocess } = await import("/preprocess.js");
                    return cases.map(({ values, width, height, config }) =>
                        Array.from(preprocess(Uint8Array.from(values), width, height, config)));
                }""",
                json.loads(json.dumps(cases)),
            )

    for case, values, tensor in zip(cases, in_thread(tensors), expected, strict=True):
        assert np.array_equal(np.array(values, np.float32).reshape(tensor.shape), tensor), case["config"]


@pytest.mark.skipif(not shutil.which("node"), reason="node is not on this machine")
@pytest.mark.parametrize("size", [(96, 96), (75, 61)])
def test_the_page_computes_the_appearance_score_as_python_does(tmp_path: Path, size: tuple[int, int]) -> None:
    shutil.copy(static_space.PAGE / "appearance.js", tmp_path / "appearance.mjs")
    preprocess = Preprocessing({"input_size": (3, *size), "crop_mode": "squash"})
    pixels = preprocess([draw_cell(label, 5) for label in LABELS] + [Image.new("RGB", (9, 9), "white")])
    expected = appearance(preprocess.unnormalised(pixels))
    sources = {
        name: {
            "mean": rows.mean(axis=0).tolist(),
            "covariance": (np.cov(rows.T) + 0.1 * np.eye(len(STATISTICS))).tolist(),
            "class_means": [rows.mean(axis=0).tolist()],
            "deviation": rows.std(axis=0).tolist(),
        }
        for name, rows in (("a", expected[:4]), ("b", expected[4:]))
    }
    reference = {"sources": sources, "threshold": 3.0, "weight": 0.5, "statistics": list(STATISTICS)}
    script = """
        import { appearance, appearanceScore } from "./appearance.mjs";
        import { readFileSync } from "node:fs";
        const { pixels, shape, mean, std, reference } = JSON.parse(readFileSync(0));
        const statistics = pixels.map((values) => appearance(Float32Array.from(values), shape, mean, std));
        console.log(JSON.stringify({ statistics, scores: statistics.map(appearanceScore(reference)) }));"""
    inputs = {"pixels": pixels.reshape(len(pixels), -1).tolist(), "reference": reference}
    inputs |= {"shape": (3, *size), "mean": preprocess.config["mean"], "std": preprocess.config["std"]}
    done = subprocess.run(
        ["node", "--input-type=module", "--eval", script],
        input=json.dumps(inputs), cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    results = json.loads(done.stdout)
    assert np.abs(np.array(results["statistics"]) - expected).max() < 1e-6
    scores = AppearanceReference.read(reference).score(expected) / 3
    assert np.allclose(results["scores"], scores, rtol=1e-6)


def test_a_runtime_file_that_is_not_the_pinned_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.wasm").write_bytes(b"fetched")
    static_space.check_integrity(tmp_path, {"a.wasm": hashlib.sha256(b"fetched").hexdigest()})
    with pytest.raises(RepoError, match=r"a\.wasm"):
        static_space.check_integrity(tmp_path, {"a.wasm": hashlib.sha256(b"pinned").hexdigest()})
    with pytest.raises(RepoError, match=r"b\.mjs.*missing"):
        static_space.check_integrity(tmp_path, {"b.mjs": hashlib.sha256(b"pinned").hexdigest()})


def test_a_static_space_that_cannot_be_built_is_refused_in_one_sentence(
    small_model: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    damaged = shutil.copytree(small_model, tmp_path / "model")
    (damaged / "model.safetensors").write_bytes(b"damaged")
    for out, model, message in (
        ("full", small_model, "not an empty directory"),
        ("new", damaged, "model.safetensors does not fit"),
    ):
        assert main(["build", "--static", str(tmp_path / out), "--model", str(model)]) == 1
        assert message in (printed := capsys.readouterr().err) and printed.count("\n") == 1
    assert not (tmp_path / "new").exists()
