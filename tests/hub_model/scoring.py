"""Images to score, the command that scores them, and what it says when it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from hub_model.score import main
from tests.hub_model.small_classifier import SIDE


def write_images(folder: Path, count: int, seed: int = 0) -> Path:
    """Write noise as `FOLDER/i/j/NAME.png`."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        path = folder / str(number % 7) / str(number % 3) / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path, compress_level=0)
    return folder


def paths_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file())


def score(source, model, out, *more) -> int:
    return main([str(source), "--model", str(model), "--out", str(out), *map(str, more)])


def refusal(capsys, *arguments) -> str:
    """The one sentence that a run ends with."""
    assert score(*arguments) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and "Traceback" not in text
    return text
