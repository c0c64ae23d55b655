"""What the reference runs share: the dataset and model folders, rebuilt if their source has changed, and the embedded Hub.

Nothing here imports a Hugging Face library, since they read `HF_ENDPOINT` when they are imported.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from local_hub import LocalHub
from local_hub.server import ADDRESS, DEFAULT_PORT, DEFAULT_TOKENS

ROOT = Path(__file__).parent.parent
RELEASE = ROOT / "hub_model" / "release"
TEST_NAMES = "published_test_names.txt"  # beside the images: the test set of the DinoBloom evaluation
OWNER = "localdev"
# a file that identifies each of our repos
MARKERS = {"dataset": "splits.csv", "model": "metrics.json", "space": "app.py"}


def check_folders(data: Path | None, out: Path) -> None:
    """Create `out`; NotADirectoryError if that fails or `data` is not a directory."""
    if data and not data.is_dir():
        raise NotADirectoryError(f"{data} is not a directory")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotADirectoryError(f"cannot create directory {out}: {error.strerror}") from None


def embedded_hub(out: Path, user: str = OWNER) -> LocalHub:
    """The embedded Hub in `out`/hub, for one user; on the default port if it is free, since cards contain its URL."""
    with socket.socket() as probe:
        free = probe.connect_ex((ADDRESS, DEFAULT_PORT)) != 0
    return LocalHub(out / "hub", DEFAULT_PORT if free else 0, dict.fromkeys(DEFAULT_TOKENS, user))


def draw(out: Path, per_class: int) -> Path:
    """Draw synthetic cells into `out`/raw, one folder per class."""
    shutil.rmtree(out / "raw", ignore_errors=True)
    python("dataset_script", "synthetic", out / "raw", "--per_class", per_class)
    return out / "raw"


def build_dataset(raw: Path, out: Path) -> None:
    """Build the dataset repo folder, with the published test set if its list is beside the images."""
    test_names = raw.parent / TEST_NAMES
    build("dataset_script", raw, out, *(["--test_names", test_names] if test_names.is_file() else []))


def build(program: str, source: Path, out: Path, *options: object) -> None:
    """Build a repo folder with `python -m PROGRAM build`, and write what it was built from."""
    python(program, "build", source, out, "--overwrite", *options)
    files = [option for option in options if isinstance(option, Path)]
    stamp(out).write_text(fingerprint(source, *files))


def dataset_folder(data: Path | None, out: Path) -> Path:
    """The dataset repo folder: `data` if it is one, else `out`/dataset, rebuilt if `data` has changed."""
    built = out / "dataset"
    if data and (data / MARKERS["dataset"]).is_file():
        return data
    if data is None and (built / "README.md").is_file():
        return built
    raw = data or draw(out, per_class=60)
    if not is_built(built, raw, raw.parent / TEST_NAMES):
        build_dataset(raw, built)
    return built


def model_folder(model: Path, out: Path) -> Path:
    """The model repo folder: `model` if it is one, else `out`/model, rebuilt if that run folder has changed."""
    if not model.is_dir():
        raise NotADirectoryError(f"--model {model} is not a directory")
    if (model / MARKERS["model"]).is_file():
        return model
    if not is_built(out / "model", model):
        build("hub_model", model, out / "model")
    return out / "model"


def stamp(built: Path) -> Path:
    """The file with the fingerprint of what a folder was built from."""
    return built.with_name(f"{built.name}.sha256")


def is_built(built: Path, *sources: Path) -> bool:
    return built.is_dir() and stamp(built).is_file() and stamp(built).read_text() == fingerprint(*sources)


def fingerprint(*sources: Path) -> str:
    """A digest of the names, sizes and modification times of files and of all files in folders; missing ones do not count."""
    digest = hashlib.sha256()
    files = (path for source in sources for path in (source, *source.rglob("*")))
    for path in sorted(path for path in files if path.is_file() and "__pycache__" not in path.parts):
        status = path.stat()
        digest.update(f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def python(module: str, *arguments: object) -> None:
    run(sys.executable, "-m", module, *arguments)


def run(*command: object) -> None:
    """Print a command as one would type it, and run it."""
    words = [str(word) for word in command]
    print(f"$ {shlex.join([Path(words[0]).name, *words[1:]])}", flush=True)
    subprocess.run(words, check=True)
