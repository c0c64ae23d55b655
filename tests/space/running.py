"""A Space in a process of its own: started, waited for, stopped, started again on the same port."""

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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@dataclass
class RunningSpace:
    """`arguments` follow `python`; uploads lie below `folder`, and so does what it prints."""

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

    def start(self, seconds: float = 300) -> None:
        """Start it and wait until it answers."""
        settings = {
            "GRADIO_SERVER_NAME": "127.0.0.1",
            "GRADIO_SERVER_PORT": str(self.port),
            "GRADIO_TEMP_DIR": str(self.uploads),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        with (self.folder / "space.log").open("a") as log:
            environment = os.environ | settings | self.environment
            self.process = subprocess.Popen(
                [self.python, *self.arguments], cwd=self.cwd, env=environment, stdout=log, stderr=log
            )
        while time.monotonic() - begin < seconds and self.process.poll() is None:
            with suppress(OSError):
                urllib.request.urlopen(f"{self.address}/config", timeout=5).close()
                self.seconds_to_ready = time.monotonic() - begin
                return
            time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"python {' '.join(self.arguments)} did not start: {self.log[-2000:]}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def memory_mb(self) -> float:
        """Resident memory of the process and its children."""
        program = psutil.Process(self.process.pid)
        return sum(p.memory_info().rss for p in [program, *program.children(recursive=True)]) / 2**20


@contextmanager
def running(space: RunningSpace) -> Iterator[RunningSpace]:
    space.start()
    try:
        yield space
    finally:
        space.stop()


def of_repos(model: Path | str, dataset: Path | str, folder: Path) -> RunningSpace:
    """The Space of this checkout over two repos, or their folders."""
    return RunningSpace(["-m", "space", "--model", str(model), "--dataset", str(dataset)], folder)
