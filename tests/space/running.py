"""A Space in a process of its own, which can be stopped and started again on the same port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@dataclass
class RunningSpace:
    """`python *arguments`; its uploads and its log are in `folder`."""

    arguments: list[str]
    folder: Path
    cwd: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    python: str = sys.executable
    port: int = field(default_factory=free_port)
    process: subprocess.Popen | None = None
    seconds_to_ready: float = 0.0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def uploads(self) -> Path:
        return self.folder / "uploads"

    @property
    def log(self) -> str:
        return (self.folder / "space.log").read_text()

    def start(self) -> None:
        """Start the Space and wait until it responds, for at most five minutes."""
        settings = {
            "GRADIO_SERVER_NAME": "127.0.0.1",
            "GRADIO_SERVER_PORT": str(self.port),
            "GRADIO_TEMP_DIR": str(self.uploads),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with (self.folder / "space.log").open("a") as log:
            environment, command = os.environ | settings | self.environment, [self.python, *self.arguments]
            self.process = subprocess.Popen(command, cwd=self.cwd, env=environment, stdout=log, stderr=log)
        while time.monotonic() - started < 300 and self.process.poll() is None:
            with suppress(OSError):
                urllib.request.urlopen(f"{self.address}/config", timeout=5).close()
                self.seconds_to_ready = time.monotonic() - started
                return
            time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"python {' '.join(self.arguments)} did not start: {self.log[-2000:]}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def memory_mb(self) -> float:
        """Resident memory of the process and its children."""
        process = psutil.Process(self.process.pid)
        return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]) / 2**20


@contextmanager
def running(space: RunningSpace) -> Iterator[RunningSpace]:
    space.start()
    try:
        yield space
    finally:
        space.stop()


def of_repos(model: Path | str, dataset: Path | str, folder: Path) -> RunningSpace:
    """The Space of this checkout over two repos or their folders."""
    return RunningSpace(["-m", "space", "--model", str(model), "--dataset", str(dataset)], folder)
