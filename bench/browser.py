"""The released ONNX graph in a browser: the page in bench/browser/, its answers against `Classifier`, and its speed.

The page is served from 127.0.0.1, then Chromium goes offline and gets 50 images from disk. onnxruntime-web comes from the npm
registry into bench/.cache/, which git ignores; its version and the SHA-256 of each file are here.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.side_by_side import Row, rows
from hub_model.inference.errors import RepoError

HERE = Path(__file__).parent
PAGE = HERE / "browser"
CACHE = HERE / ".cache"
RELEASE = HERE.parent / "hub_model" / "release"
IMAGES = 50
PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA256 = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage"]
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
        with tempfile.TemporaryDirectory(dir=CACHE) as place:
            command = ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}", "--pack-destination", place]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"error: {' '.join(command)} failed: {done.stderr.strip()}")
            files = Path(place) / "files"
            files.mkdir()
            with tarfile.open(next(Path(place).glob("*.tgz"))) as archive:
                for name in SHA256:
                    (files / name).write_bytes(archive.extractfile(f"package/dist/{name}").read())
            check_integrity(files, SHA256)
            files.rename(folder)
    check_integrity(folder, SHA256)
    return folder


class Handler(http.server.SimpleHTTPRequestHandler):
    """Three folders, read only: the page at /, the runtime and the model repo below names of their own.

    Only GET is answered, so a page cannot upload anything. The headers isolate the page, which WASM threads need.
    """

    def __init__(self, *arguments, folders: dict[str, Path], **named) -> None:
        self.folders = folders
        super().__init__(*arguments, **named)

    def translate_path(self, path: str) -> str:
        clean = path.partition("?")[0].partition("#")[0].lstrip("/") or "index.html"
        first, _, rest = clean.partition("/")
        folder, rest = (self.folders[first], rest) if first in self.folders else (PAGE, clean)
        found = (folder / rest).resolve()
        return str(found if found.is_relative_to(folder.resolve()) else PAGE / "missing")

    def guess_type(self, path: str) -> str:
        return TYPES.get(Path(path).suffix) or super().guess_type(path)

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def served(folders: dict[str, Path]) -> Iterator[str]:
    """The address of a server of the page on a free port of 127.0.0.1."""
    handler = functools.partial(Handler, folders=folders)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def chosen(data: Path, count: int) -> list[Path]:
    """`count` images of a folder of classes, evenly spread over it."""
    files = sorted(data.glob("*/*.jpg"))
    return [files[i] for i in np.linspace(0, len(files) - 1, count).astype(int)]


def answers(address: str, images: list[Path], repeats: int) -> tuple[list[list[dict]], int, float]:
    """The page's answers, a list a turn; its threads; the seconds until it was ready. The browser is offline meanwhile."""
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    with sync_playwright() as playwright:
        found = next((path for path in map(shutil.which, CHROMIUM) if path), None)
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
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
    strange = [
        entry for entry in asked if not entry.startswith((f"GET {address}/", "GET data:", "GET blob:"))
    ]
    if strange or len(asked) != before:
        raise SystemExit(f"error: the page asked for {(strange or asked[before:])[0]}")
    return turns, threads, ready


def measure(data: Path, repeats: int) -> list[Row]:
    """One comparison: the page and Python, one image at a time, and how many of their decisions agree."""
    import time

    from hub_model.inference.classifier import Classifier

    images = chosen(data, IMAGES)
    classifier = Classifier.from_pretrained(RELEASE)
    names = list(classifier.label_names)
    expected = classifier.predict(images)
    print(f"{PACKAGE} {VERSION}: {runtime()}", file=sys.stderr)
    with served({PACKAGE: runtime(), "model": RELEASE}) as address:
        turns, threads, ready = answers(address, images, repeats)
    python = []
    for _ in range(repeats):
        started = time.perf_counter()
        for image in images:
            classifier.predict([image])
        python.append((time.perf_counter() - started) / len(images) * 1000)
    for answer in turns[0]:
        if "error" in answer:
            raise SystemExit(f"error: the page on {answer['file']}: {answer['error']}")
    labels = [answer["label"] for answer in turns[0]]
    equal = sum(ours == theirs for ours, theirs in zip(labels, expected.labels, strict=True))
    apart = np.abs(np.array([answer["probabilities"] for answer in turns[0]]) - expected.probabilities).max()
    prepare, network = (
        float(np.mean([answer[part] for turn in turns for answer in turn]))
        for part in ("prepare_ms", "network_ms")
    )
    values = {
        f"Python, {classifier.backend}": python,
        f"page in Chromium, WASM, {threads} threads": [
            float(np.mean([answer["prepare_ms"] + answer["network_ms"] for answer in turn])) for turn in turns
        ],
    }
    first, page = values
    note = (
        f"{equal} of {len(images)} decisions as Python's, probabilities at most {apart:.1e} apart over {len(names)} classes; "
        f"decode and resize {prepare:.1f} ms, network {network:.1f} ms; ready after {ready:.1f} s; offline"
    )
    size = classifier.preprocess.config["input_size"][-1]
    title = f"In the browser: JPEG file to probabilities, released model, {size} px, one image at a time"
    return rows(title, values, "ms", first, more_is_better=False, notes={page: note})
