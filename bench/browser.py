"""The static Space in Chromium: its answers compared with those of `Classifier`, and its speed.

The page is built with `python -m space build --static` and served from 127.0.0.1. Once it is ready, it is taken offline and gets
images from disk; a further request is an error.
"""

from __future__ import annotations

import argparse
import http.server
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.compare import RELEASE, Row, evenly, rows, run, seconds
from hub_model.inference.classifier import Classifier
from runs.chromium import FLAGS, find_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Page

IMAGES = 50
TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm"}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Answers GET only, so a page cannot upload anything. The headers isolate the page, as WASM threads require."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | TYPES

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port of 127.0.0.1 and yield its address."""
    handler = partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def offline_page(folder: Path) -> Iterator[tuple[Page, list[str]]]:
    """Serve the static Space in a folder, open it in Chromium, and take it offline once it is ready.

    Yields the page and the list of its requests: "METHOD PATH", or the full address if that is another server's, and "offline" at
    the point where the page went offline.
    """
    from playwright.sync_api import sync_playwright

    requests: list[str] = []
    with served(folder) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(600_000)
        page.on("request", lambda r: requests.append(f"{r.method} {r.url.removeprefix(address)}"))
        page.goto(address)
        page.wait_for_selector("#state:not(:has-text('Loading'))")
        if not (state := page.inner_text("#state")).startswith("Ready"):
            raise SystemExit(f"error: the page failed to load: {state}")
        page.context.set_offline(True)
        requests.append("offline")
        yield page, requests
        browser.close()


def answers(folder: Path, images: list[Path], repeats: int) -> tuple[list[list[dict]], str, float]:
    """The page's answers, one list per round; its status when it is ready, and the seconds until then."""
    rounds = []
    with offline_page(folder) as (page, requests):
        state, ready = page.inner_text("#state"), page.evaluate("performance.now()") / 1000
        page.set_input_files("#images", images[:1])  # warm-up
        page.wait_for_selector("#summary:has-text('1 cell')")
        for _ in range(repeats):
            page.click("#clear")
            page.set_input_files("#images", images)
            page.wait_for_selector(f"#summary:has-text('{len(images)} cells')")
            rounds.append(page.evaluate("window.answers"))
    if requests[-1] != "offline":
        raise SystemExit(f"error: the page requested {requests[-1]} while offline")
    return rounds, state, ready


def measure(options: argparse.Namespace) -> list[Row]:
    """One comparison: the page and Python, one image at a time, and how many of their decisions agree."""
    images, classifier = evenly(options.data, IMAGES), Classifier.from_pretrained(RELEASE)
    expected = classifier.predict(images)
    with tempfile.TemporaryDirectory() as folder:
        run([sys.executable, "-m", "space", "build", "--static", folder, "--model", RELEASE])
        rounds, state, ready = answers(Path(folder), images, options.repeats)
    labels = [answer["label"] for answer in rounds[0]]
    equal = sum(label == other for label, other in zip(labels, expected.labels, strict=True))
    probabilities = np.array([answer["probabilities"] for answer in rounds[0]])
    difference = np.abs(probabilities - expected.probabilities).max()
    stages = ("prepare_ms", "network_ms", "answer_ms")
    times = np.array([[[answer[stage] for stage in stages] for answer in answered] for answered in rounds])
    prepare, network, rest = times.mean(axis=(0, 1))
    python, page = (
        f"Python, {classifier.backend}",
        f"static Space in Chromium ({state.removeprefix('Ready: ')})",
    )
    one_by_one = partial(map, classifier.predict, [[image] for image in images])
    milliseconds = [seconds(lambda: list(one_by_one())) / IMAGES * 1000 for _ in range(options.repeats)]
    note = (
        f"{equal} of {IMAGES} decisions as Python's, probabilities at most {difference:.1e} apart; decode and resize "
        f"{prepare:.1f} ms, network {network:.1f} ms, calibration and OOD score {rest:.1f} ms; ready after {ready:.1f} s; offline"
    )
    size = classifier.preprocess.config["input_size"][-1]
    title = f"In the browser: JPEG file to calibrated answer, released model, {size} px, one image at a time"
    values = {python: milliseconds, page: times.sum(axis=2).mean(axis=1).tolist()}
    return rows(title, values, "ms", python, {page: note})
