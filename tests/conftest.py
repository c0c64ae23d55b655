"""One local Hub for the test session, and test data of synthetic cells.

Hugging Face libraries read HF_ENDPOINT, HF_TOKEN and HF_HOME when they are imported, so the Hub is started when this file is
imported. Every test that uses "the Hub", in this process or in a subprocess, uses this one.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from local_hub import LocalHub

REPOSITORY = Path(__file__).resolve().parents[1]

early = sorted({"datasets", "evaluate", "huggingface_hub", "timm", "transformers"} & set(sys.modules))
if early:
    raise RuntimeError(f"imported before tests/conftest.py could set HF_ENDPOINT: {', '.join(early)}")

session_folder = Path(tempfile.mkdtemp(prefix="bone_marrow_tests_"))
atexit.register(shutil.rmtree, session_folder, ignore_errors=True)
session_hub = LocalHub(session_folder / "hub").__enter__()
atexit.register(session_hub.__exit__)
os.environ.update(session_hub.environment, HF_HOME=str(session_folder / "hf_home"))
os.environ.pop("HF_HUB_OFFLINE", None)
# subprocesses import the project from this checkout, whatever their working directory
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed every test, so that its random numbers do not depend on the tests before it."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def hub() -> LocalHub:
    """The running local Hub: `.endpoint`, `.token`, `.root`, `.environment`."""
    return session_hub


@pytest.fixture(scope="session")
def owner() -> str:
    """The user of the session's token."""
    return session_hub.tokens[session_hub.token]


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of real crops, one folder per class."""
    folder = Path(os.environ.get("BONE_MARROW_DATA", REPOSITORY.parent / "shared" / "data" / "bone_marrow"))
    if not folder.is_dir():
        pytest.skip(f"no real crops at {folder} (BONE_MARROW_DATA names another folder)")
    return folder


@pytest.fixture(scope="session")
def drawn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw folder of synthetic cells: seven classes of 24 images."""
    from dataset_script.synthetic_cells import draw_folder

    folder = tmp_path_factory.mktemp("drawn") / "raw"
    draw_folder(folder, per_class=24, seed=0)
    return folder


@pytest.fixture(scope="session")
def drawn_dataset(drawn_folder: Path) -> Path:
    """The dataset repo folder that `dataset_script build` makes of the synthetic cells."""
    out = drawn_folder.parent / "dataset"
    subprocess.run([sys.executable, "-m", "dataset_script", "build", str(drawn_folder), str(out)], check=True)
    return out


@pytest.fixture(scope="session")
def drawn_repo(drawn_dataset: Path, owner: str) -> str:
    """The repo id of the synthetic dataset on the local Hub."""
    repo_id = f"{owner}/drawn-cells"
    subprocess.run([sys.executable, "-m", "dataset_script", "push", str(drawn_dataset), repo_id], check=True)
    return repo_id


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model repo trained on synthetic cells."""
    from tests.small_model_repo import build

    return build(tmp_path_factory.mktemp("model") / "repo")
