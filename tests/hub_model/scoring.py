"""Images to score, the command that scores them, and its error messages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from hub_model.__main__ import main
from tests.hub_model.small_classifier import SIDE
from tests.training.small import LAUNCH_TWO

MODULE = ["-m", "hub_model", "score"]
TWO = [*LAUNCH_TWO, *MODULE]
LAUNCHES = {"one process": MODULE, "two processes": TWO}


def write_images(folder: Path, count: int, seed: int = 0) -> Path:
    """Write images of noise as `FOLDER/i/j/NAME.png`."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        path = folder / str(number % 7) / str(number % 3) / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path, compress_level=0)
    return folder


def paths_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file())


def score(source, model, out, *more) -> int:
    return main(["score", str(source), "--model", str(model), "--out", str(out), *map(str, more)])


def refusal(capsys, *arguments) -> str:
    """The one-sentence error that a run ends with."""
    assert score(*arguments) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and "Traceback" not in text
    return text


def kill_midway(launch: list[str], arguments: list[str], shards: Path, at_least: int = 1) -> int:
    """Start, SIGKILL every process once `at_least` shards are written, and return how many are written."""
    process = subprocess.Popen(
        [sys.executable, *launch, *arguments], start_new_session=True, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 250
    while len(list(shards.glob("part-*"))) < at_least and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return len(list(shards.glob("part-*")))


def arguments_of(source: Path, model: Path, out: Path) -> list[str]:
    return [str(source), "--model", str(model), "--out", str(out), "--threads", "1"]
