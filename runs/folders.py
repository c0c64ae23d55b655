"""The folders that are published, built where that is needed, and the embedded Hub that they are tried on.

Nothing here imports a Hugging Face library: they read `HF_ENDPOINT` at import, so the Hub comes first.
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
MARKERS = {"dataset": "splits.csv", "model": "metrics.json", "space": "app.py"}  # what each of our repos has


def check_folders(data: Path | None, out: Path) -> None:
    """Raise NotADirectoryError where `data` is not a directory or `out` cannot be one."""
    if data and not data.is_dir():
        raise NotADirectoryError(f"{data} is not a directory")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotADirectoryError(f"{out} cannot be a folder ({error.strerror})") from None


def embedded_hub(out: Path, user: str = OWNER) -> LocalHub:
    """The embedded Hub in `out`/hub, for one user; on the default port if it is free, since published cards hold the address."""
    with socket.socket() as probe:
        free = probe.connect_ex((ADDRESS, DEFAULT_PORT)) != 0
    return LocalHub(out / "hub", DEFAULT_PORT if free else 0, dict.fromkeys(DEFAULT_TOKENS, user))


def draw(out: Path, per_class: int) -> Path:
    """Draw synthetic cells into `out`/raw, a folder for each class."""
    shutil.rmtree(out / "raw", ignore_errors=True)
    python("dataset_script", "synthetic", out / "raw", "--per_class", per_class)
    return out / "raw"


def build_dataset(raw: Path, out: Path) -> None:
    """Build the dataset repo folder, with the published test set where its list lies beside the images."""
    listed = raw.parent / TEST_NAMES
    names = ["--test_names", listed] if listed.is_file() else []
    python("dataset_script", "build", raw, out, "--overwrite", *names)
    stamp(out).write_text(fingerprint(raw))


def build_model(run_folder: Path, out: Path) -> None:
    """Build the model repo folder of a run folder."""
    python("hub_model", "build", run_folder, out, "--overwrite")
    stamp(out).write_text(fingerprint(run_folder))


def dataset_folder(data: Path | None, out: Path) -> Path:
    """The dataset repo folder: `data` if it is one, else `out`/dataset, built from `data` where that has changed."""
    built = out / "dataset"
    if data and (data / MARKERS["dataset"]).is_file():
        return data
    if data is None and (built / "README.md").is_file():
        return built
    raw = data or draw(out, per_class=60)
    if not is_built(raw, built):
        build_dataset(raw, built)
    return built


def model_folder(model: Path, out: Path) -> Path:
    """The model repo folder: `model` if it is one, else `out`/model, built from that run folder where it has changed."""
    if not model.is_dir():
        raise NotADirectoryError(f"--model {model} is not a directory")
    if (model / MARKERS["model"]).is_file():
        return model
    if not is_built(model, out / "model"):
        build_model(model, out / "model")
    return out / "model"


def stamp(built: Path) -> Path:
    """The file that says what a folder was built from."""
    return built.with_name(f"{built.name}.sha256")


def is_built(source: Path, built: Path) -> bool:
    return built.is_dir() and stamp(built).is_file() and stamp(built).read_text() == fingerprint(source)


def fingerprint(*folders: Path) -> str:
    """A digest of the names, sizes and modification times of all files below `folders`."""
    digest = hashlib.sha256()
    files = (path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts)
    for path in sorted(path for path in files if path.is_file()):
        status = path.stat()
        digest.update(f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def python(module: str, *arguments: object) -> None:
    run(sys.executable, "-m", module, *arguments)


def run(*command: object) -> None:
    """Print a command as a person would type it, and run it."""
    words = [str(word) for word in command]
    print(f"$ {shlex.join([Path(words[0]).name, *words[1:]])}", flush=True)
    subprocess.run(words, check=True)
