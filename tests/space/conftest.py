"""One small model, one small dataset and one running Space for all tests of this folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from dataset_script.synthetic_cells import draw_cell
from tests.space.browser import chromium


@dataclass(frozen=True)
class RunningSpace:
    """A Space in a process of its own."""

    address: str
    process: subprocess.Popen
    uploads: Path


def start_space(
    arguments: list[str], uploads: Path, cwd: Path | None = None, seconds: float = 120, **environment: str
) -> RunningSpace:
    """Run it on a free port and wait until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env={
            **os.environ,
            "GRADIO_SERVER_PORT": str(port),
            "GRADIO_SERVER_NAME": "127.0.0.1",
            "GRADIO_TEMP_DIR": str(uploads),
            **environment,
        },
    )
    space = RunningSpace(f"http://127.0.0.1:{port}", process, uploads)
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{space.address}/config", timeout=5)
            return space
        except OSError:
            time.sleep(0.2)
    process.kill()
    raise RuntimeError(f"the Space did not start: python {' '.join(arguments)}")


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model repo that knows drawn cells."""
    from tests.space.small_model_repo import build

    return build(tmp_path_factory.mktemp("model") / "repo")


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dataset repo of drawn cells: 42 train, 14 validation, 28 test."""
    from tests.space.small_dataset_repo import build

    return build(tmp_path_factory.mktemp("dataset") / "repo", {"train": 6, "validation": 2, "test": 4})


@pytest.fixture(scope="session")
def space(
    small_model: Path, small_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningSpace]:
    """The Space over both, running."""
    arguments = ["-m", "space", "--model", str(small_model), "--dataset", str(small_dataset)]
    running = start_space(arguments, tmp_path_factory.mktemp("uploads"))
    yield running
    running.process.terminate()
    running.process.wait(20)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def cell_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn promyelocyte as a JPEG."""
    path = tmp_path_factory.mktemp("cell") / "cell.jpg"
    draw_cell("PMO", 77).save(path, quality=90)
    return path
