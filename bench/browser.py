"""The released ONNX graph in a browser: the page in bench/browser/, its answers against `Classifier`, and its speed.

The page is served from 127.0.0.1, then Chromium goes offline and gets 50 images from disk. onnxruntime-web comes from the npm
registry into bench/.cache/, which git ignores; its version and the SHA-256 of each file are here.
"""

from __future__ import annotations

import hashlib
import http.server
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from bench.compare import RELEASE, Row, evenly, rows, seconds
from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import RepoError
from runs.chromium import FLAGS, find_chromium

HERE = Path(__file__).parent
PAGE = HERE / "browser"
CACHE = HERE / ".cache"
IMAGES = 50
PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA256 = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm"}


def check_integrity(folder: Path, sha256: dict[str, str]) -> None:
    """Raise RepoError naming the first file of `folder` that is missing or another than the pinned one."""
    for name, expected in sha256.items():
        path = folder / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
        if found != expected:
            raise RepoError(f"{path}: expected SHA-256 {expected}, found {found}")


def runtime() -> Path:
    """The folder with the files of onnxruntime-web, fetched with npm if they are not there yet."""
    folder = CACHE / f"{PACKAGE}-{VERSION}"
    if not folder.is_dir():
        if not shutil.which("npm"):
            raise SystemExit(
                f"error: npm is not installed; it fetches {PACKAGE} {VERSION} (apt-get install npm)"
            )
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as download:
            command = ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}", "--pack-destination", download]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"error: {' '.join(command)} failed: {done.stderr.strip()}")
            files = Path(download) / "files"
            files.mkdir()
            with tarfile.open(next(Path(download).glob("*.tgz"))) as archive:
                for name in SHA256:
                    (files / name).write_bytes(archive.extractfile(f"package/dist/{name}").read())
            check_integrity(files, SHA256)
            files.rename(folder)
    check_integrity(folder, SHA256)
    return folder


class Handler(http.server.SimpleHTTPRequestHandler):
    """Only GET is answered, so a page cannot upload anything. The headers isolate the page, which WASM threads need."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | TYPES

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def served(folders: dict[str, Path]) -> Iterator[str]:
    """Serve the page at / and `folders` below their names, on a free port of 127.0.0.1; yields the address."""
    with tempfile.TemporaryDirectory() as root:
        for name, target in ({path.name: path for path in PAGE.iterdir()} | folders).items():
            (Path(root) / name).symlink_to(target)
        handler = partial(Handler, directory=root)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()


def answers(address: str, images: list[Path], repeats: int) -> tuple[list[list[dict]], int, float]:
    """The page's answers, a list a turn; its threads; the seconds until it was ready. The browser is offline in between."""
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(600_000)
        page.on("request", lambda request: asked.append(f"{request.method} {request.url}"))
        page.goto(address)
        page.wait_for_function("window.ready || window.failed")
        if failure := page.evaluate("window.failed"):
            raise SystemExit(f"error: the page says: {failure}")
        ready = page.evaluate("performance.now()") / 1000
        page.context.set_offline(True)
        page.set_input_files("#images", images[:1])  # the first run is slower than all others
        page.wait_for_function("window.answers.length == 1")
        before, turns = len(asked), []
        for _ in range(repeats):
            page.evaluate("window.answers = []")
            page.set_input_files("#images", [])
            page.set_input_files("#images", images)
            page.wait_for_function(f"window.answers.length == {len(images)}")
            turns.append(page.evaluate("window.answers"))
        threads = page.evaluate("window.ready")
        browser.close()
    known = (f"GET {address}/", "GET data:", "GET blob:")
    if unexpected := [entry for entry in asked if not entry.startswith(known)] + asked[before:]:
        raise SystemExit(f"error: the page asked for {unexpected[0]}")
    return turns, threads, ready


def measure(data: Path, repeats: int) -> list[Row]:
    """One comparison: the page and Python, one image at a time, and how many of their decisions agree."""
    images, classifier = evenly(data, IMAGES), Classifier.from_pretrained(RELEASE)
    expected = classifier.predict(images)
    with served({PACKAGE: runtime(), "model": RELEASE}) as address:
        turns, threads, ready = answers(address, images, repeats)
    for answer in turns[0]:
        if "error" in answer:
            raise SystemExit(f"error: the page on {answer['file']}: {answer['error']}")
    labels = [answer["label"] for answer in turns[0]]
    equal = sum(ours == theirs for ours, theirs in zip(labels, expected.labels, strict=True))
    apart = np.abs(np.array([answer["probabilities"] for answer in turns[0]]) - expected.probabilities).max()
    times = np.array([[(answer["prepare_ms"], answer["network_ms"]) for answer in turn] for turn in turns])
    prepare, network = times.mean(axis=(0, 1))
    first, page = f"Python, {classifier.backend}", f"page in Chromium, WASM, {threads} threads"
    one_by_one = partial(map, classifier.predict, [[image] for image in images])
    python = [seconds(lambda: list(one_by_one())) / IMAGES * 1000 for _ in range(repeats)]
    note = (
        f"{equal} of {IMAGES} decisions as Python's, probabilities at most {apart:.1e} apart; decode and resize "
        f"{prepare:.1f} ms, network {network:.1f} ms; ready after {ready:.1f} s; offline"
    )
    size = classifier.preprocess.config["input_size"][-1]
    title = f"In the browser: JPEG file to probabilities, released model, {size} px, one image at a time"
    values = {first: python, page: times.sum(axis=2).mean(axis=1).tolist()}
    return rows(title, values, "ms", first, {page: note})
