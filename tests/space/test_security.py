"""Attacks by visitors on the Space, and through it by a hostile model or dataset repo."""

from __future__ import annotations

import csv
import json
import re
import shutil
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import datasets
import httpx2
import pytest
from playwright.sync_api import Browser, expect

import space
from dataset_script.synthetic_cells import draw_cell
from space.charts import class_bars, share_pie
from space.dataset_repo import Sample, open_dataset_repo
from space.resources import is_readable
from tests.space.bad_uploads import jpeg
from tests.space.running import RunningSpace, running
from tests.space.screenshots import TABS, open_tab, visit
from tests.space.small_dataset_repo import build

FOLDER = Path(space.__file__).parent
EVIL = {
    "BLA": "<img src=x onerror=window.hacked=1>",
    "EOS": "=HYPERLINK(1)",
    "LYT": "../../../escaped",
    "MON": "<a href='https://evil.example'>click</a>",
    "NGS": "<script>window.hacked=1</script>",
    "NIF": "{0.__class__}",
    "PMO": "__i18n__PMO",
}


def get(url: str) -> tuple[int, bytes]:
    """Status and content; `httpx2.Request` does not normalise the path."""
    with httpx2.Client(timeout=60) as client:
        response = client.send(httpx2.Request("GET", url))
        return response.status_code, response.content


def call(space: RunningSpace, endpoint: str, data: object) -> str:
    """Call an endpoint with any data; "complete" or "error".

    (`gradio_client` would look for a path in the data on this machine and upload the file.)
    """
    url = f"{space.address}/gradio_api/call/{endpoint}"
    response = httpx2.post(url, json={"data": [data]}, timeout=60)
    if response.status_code != 200:
        return "error"
    text = httpx2.get(f"{url}/{response.json()['event_id']}", timeout=60).text
    return re.findall(r"^event: (complete|error)$", text, re.MULTILINE)[-1]


def file(path: object, **more: object) -> dict:
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}, **more}


# ---- files of the server
@pytest.fixture
def private_files(space: RunningSpace, small_model: Path, tmp_path: Path) -> list[Path]:
    """Files that visitors must not read: of the system, of this repo, of the model, of another program."""
    other = tmp_path / "other-program.txt"
    other.write_text("none of your business")
    outside = [Path("/etc/passwd"), Path("/proc/self/environ"), other, small_model / "model.safetensors"]
    return [*outside, FOLDER / "app.py", FOLDER.parent / "pyproject.toml", FOLDER.parent / ".git" / "config"]


def test_no_url_serves_a_file_of_the_server(space: RunningSpace, private_files: list[Path]) -> None:
    for path in private_files:
        for route in (
            f"gradio_api/file={path}",
            f"gradio_api/file={quote(str(path), safe='')}",
            f"gradio_api/file={space.uploads}/../../../../../../../../..{path}",
            f"gradio_api/file=..%2f..%2f..%2f..%2f..{quote(str(path), safe='')}",
            f"gradio_api/file=file://{path}",
            f"gradio_api/stream/{path}",
            f"static/..%2f..%2f..%2f..{quote(str(path), safe='')}",
            f"assets/../../../../../..{path}",
            f"gradio_api/proxy=file://{path}",
        ):
            status, content = get(f"{space.address}/{route}")
            secret = path.read_bytes()[:40] if path.stat().st_size else b"PATH="
            assert secret not in content, route
            assert status in (400, 403, 404, 405, 422, 500), (route, status)


def test_a_path_in_a_request_is_no_upload(
    space: RunningSpace, private_files: list[Path], cell_file: Path
) -> None:
    climbing = space.uploads / ".." / ".." / cell_file.parent.name / cell_file.name
    for path in [*private_files, cell_file, climbing]:
        for endpoint in ("predict", "field"):
            assert call(space, endpoint, file(path)) == "error"
        for endpoint in ("predict_many", "count"):
            assert call(space, endpoint, [file(path)]) == "error"
        assert path.exists()


def test_the_space_fetches_no_url_that_a_visitor_names(space: RunningSpace) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/cell.jpg"
        for payload in (file(url), file("x.jpg", url=url), file("https://127.0.0.1:9/cell.jpg")):
            assert call(space, "predict", payload) == "error"
            assert call(space, "count", [payload]) == "error"
        get(f"{space.address}/gradio_api/file={url}")
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has connected
            listener.accept()


@pytest.mark.parametrize(
    "name", ["../../../climb.jpg", "/etc/climb.jpg", "..\\climb.jpg", "a/b/../climb.jpg", "..", "."]
)
def test_the_name_of_an_upload_leads_nowhere(space: RunningSpace, cell_file: Path, name: str) -> None:
    upload = {"files": (name, cell_file.read_bytes())}
    (path,) = httpx2.post(f"{space.address}/gradio_api/upload", files=upload).json()
    assert Path(path).resolve().is_relative_to(space.uploads.resolve())
    folder = Path(path).parent.parent
    assert folder.parent == space.uploads and folder.name.startswith("space-")
    Path(path).unlink()


def test_two_uploads_of_the_same_picture_are_two_files_that_nobody_can_guess(
    space: RunningSpace, cell_file: Path
) -> None:
    """Deleting the file of one visitor after the answer must not delete that of the other."""
    upload = {"files": ("cell.jpg", cell_file.read_bytes())}
    paths = [httpx2.post(f"{space.address}/gradio_api/upload", files=upload).json()[0] for _ in range(2)]
    assert paths[0] != paths[1]
    assert all(re.fullmatch(r"upload-[0-9a-f]{32}", Path(path).parent.name) for path in paths)
    for path in paths:
        assert call(space, "predict", file(path)) == "complete"
        assert not Path(path).parent.exists()


def test_a_visitor_cannot_delete_the_examples_of_the_page(space: RunningSpace) -> None:
    examples = {str(path) for path in space.uploads.rglob("examples/*.png")}
    assert examples
    for path in sorted(examples)[:3]:
        assert call(space, "predict", file(path)) == "complete"
        assert call(space, "count", [file(path)]) == "complete"
        assert Path(path).is_file()


# ---- text of repos
def test_names_in_charts_are_escaped() -> None:
    bars = class_bars({"train": [1, 2]}, ["<b>x</b>", "<a href='javascript:1'>y</a>"], "en").to_json()
    pie = share_pie({"<b>x</b>": 1, "y": 2}, "en").to_json()
    assert "<b>" not in bars + pie and "<a" not in bars
    assert "&lt;b&gt;x" in json.loads(bars)["data"][0]["x"][0]


def test_a_dataset_with_gaps_gives_no_wrong_label(tmp_path: Path) -> None:
    """Rows without an image or a label, as foreign datasets have them (-1 stands for an unknown label)."""
    picture = {"bytes": jpeg(), "path": None}
    kinds = {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])}
    rows = {"image": [picture, None, picture, picture], "label": [1, 0, -1, None]}
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(tmp_path / "train.parquet")
    repo = open_dataset_repo(tmp_path)
    assert repo.counts == {"train": [1, 1]}
    samples = list(repo.samples("train", 10))
    assert sorted((sample.label, is_readable(sample)) for sample in samples) == [("a", False), ("b", True)]
    assert not is_readable(Sample(b"damaged", "a", "x.jpg"))


@pytest.fixture(scope="module")
def hostile_space(
    small_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningSpace, Path]]:
    """A Space over repos in which every label, description and file name is an attack."""
    top = tmp_path_factory.mktemp("hostile")
    model = shutil.copytree(small_model, top / "model")
    for name in ("config.json", "calibration.json", "metrics.json"):
        text = (model / name).read_text()
        for label, evil in EVIL.items():
            text = text.replace(json.dumps(label), json.dumps(evil))
        text = text.replace('"promyelocyte"', json.dumps("<img src=x onerror=window.hacked=2>"))
        (model / name).write_text(text)
    names, file_name = list(EVIL.values()), "../../<svg onload=window.hacked=3>.sh"
    data = build(top / "data", {"train": 2, "test": 2}, names, file_name)
    arguments = ["-m", "space", "--model", str(model), "--dataset", str(data)]
    with running(RunningSpace(arguments, top / "space", environment={"TMPDIR": str(top)})) as started:
        yield started, top


@pytest.mark.browser
@pytest.mark.timeout(900)
def test_no_name_of_a_repo_or_file_runs_in_the_page(
    hostile_space: tuple[RunningSpace, Path], browser: Browser, tmp_path: Path
) -> None:
    space, top = hostile_space
    page = browser.new_page(locale="en-US")
    visit(page, space.address, "en")
    draw_cell("PMO", 3).save(tmp_path / "=1+1.jpg")
    with zipfile.ZipFile(tmp_path / "cells.zip", "w") as archive:
        for name in ("=1+1.jpg", "<img src=x onerror=window.hacked=4>.jpg", "@SUM(A1).jpg"):
            archive.write(tmp_path / "=1+1.jpg", name)
        archive.writestr("<script>window.hacked=5</script>.txt", "no picture")
    page.set_input_files("#cell-picture input[type=file]", tmp_path / "=1+1.jpg")
    expect(page.locator("#cell-answer .answer")).to_be_visible()
    open_tab(page, "cells")
    page.set_input_files("#cells-files input[type=file]", [tmp_path / "cells.zip", tmp_path / "=1+1.jpg"])
    page.locator("#cells-run").click()
    expect(page.locator("#cells-desk .tile").first).to_be_visible()
    page.locator("#cells-export").click()
    expect(page.locator("#cells-exported a").first).to_be_visible()
    with page.expect_download() as waiting:
        page.locator("#cells-exported a").first.click()
    waiting.value.save_as(tmp_path / "cells.csv")
    rows = list(csv.reader((tmp_path / "cells.csv").read_text("utf-8-sig").splitlines()))[1:]
    names = [cell for row in rows for cell in row]
    assert len(rows) == 5 and "'=1+1.jpg" in names
    assert not [cell for cell in names if cell.startswith(("=", "+", "-", "@"))]
    for name in TABS:
        open_tab(page, name)
        page.wait_for_timeout(1500)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src='x'], svg[onload], a[href*='evil.example']").count() == 0
    assert "__class__" not in page.inner_text("body").replace("{0.__class__}", "")
    page.close()
    folders = (top, *list(top.parents)[:3])
    assert [path for folder in folders for path in folder.glob("*escaped*")] == []
