"""What the browser comparison stands on: pinned files, a server of three folders, and the page's own resizing."""

import hashlib
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from bench.browser import check_integrity, served
from hub_model.inference.errors import RepoError
from tests.space.browser import chromium


def test_a_fetched_file_that_is_not_the_pinned_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.wasm").write_bytes(b"fetched")
    check_integrity(tmp_path, {"a.wasm": hashlib.sha256(b"fetched").hexdigest()})
    with pytest.raises(RepoError, match=r"a\.wasm"):
        check_integrity(tmp_path, {"a.wasm": hashlib.sha256(b"pinned").hexdigest()})
    with pytest.raises(RepoError, match=r"b\.mjs.*missing"):
        check_integrity(tmp_path, {"b.mjs": hashlib.sha256(b"pinned").hexdigest()})


def test_the_page_can_read_the_model_and_nothing_beside_it_and_upload_nothing(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "secret").write_text("secret")
    with served({"model": tmp_path / "model"}) as address:
        assert b"preprocess" in urllib.request.urlopen(f"{address}/page.js").read()
        answer = urllib.request.urlopen(f"{address}/model/config.json")
        assert answer.read() == b"{}"
        assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"  # WASM threads need it
        for path, data, status in (("model/../secret", None, 404), ("model/config.json", b"image", 501)):
            with pytest.raises(urllib.error.HTTPError) as refusal:
                urllib.request.urlopen(f"{address}/{path}", data=data)
            assert refusal.value.code == status


@pytest.mark.browser
@pytest.mark.parametrize(
    ("shape", "config"),
    [
        ((250, 250), {"input_size": (3, 144, 144), "crop_pct": 1.0}),
        ((173, 301), {"input_size": (3, 96, 96), "crop_pct": 0.9, "mean": (0.1, 0.2, 0.3)}),
        ((64, 40), {"input_size": (3, 128, 128), "crop_pct": 0.875, "std": (0.3, 0.2, 0.1)}),
    ],
    ids=["crop", "wide", "small"],
)
def test_the_pages_tensors_are_bit_identical_to_timms(shape: tuple[int, int], config: dict) -> None:
    config = resolve_data_config(pretrained_cfg={**config, "interpolation": "bicubic"})
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = create_transform(**config, is_training=False)(Image.fromarray(pixels))
    numbers = {
        "values": pixels.ravel().tolist(),
        "width": shape[1],
        "height": shape[0],
        "config": {key: list(v) if isinstance(v, tuple) else v for key, v in config.items()},
    }
    with ThreadPoolExecutor(1) as pool:  # Playwright may have a loop in the main thread, from an earlier test
        found = pool.submit(preprocessed, numbers).result()
    assert torch.equal(torch.tensor(found, dtype=torch.float32).reshape(expected.shape), expected)


def preprocessed(numbers: dict) -> list[float]:
    """What the page's `preprocess` makes of the pixels."""
    with served({}) as address, chromium() as browser:
        page = browser.new_page()
        page.goto(f"{address}/preprocess.js")
        return page.evaluate(
            """async ({ values, width, height, config }) => {
                const { preprocess } = await import("/preprocess.js");
                return Array.from(preprocess(Uint8Array.from(values), width, height, config));
            }""",
            numbers,
        )
