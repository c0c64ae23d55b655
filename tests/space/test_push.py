"""The Space repo: complete front matter, pinned requirements, a folder that runs alone, one commit to the Hub."""

import ast
import os
import subprocess
import sys
import sysconfig
import urllib.request
import venv
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from huggingface_hub import HfApi, SpaceCard, snapshot_download

import space
from hub_model.inference.errors import RepoError
from local_hub import LocalHub
from space.__main__ import main
from space.build import push_space
from space.resources import chosen_repos, front_matter
from tests.space.running import RunningSpace, running

FOLDER = Path(space.__file__).parent


@pytest.fixture(scope="module")
def repos(small_model: Path, small_dataset: Path, owner: str) -> tuple[str, str]:
    """The small model and dataset on the local Hub."""
    model, dataset = f"{owner}/space-model", f"{owner}/space-data"
    for repo, kind, folder in ((model, "model", small_model), (dataset, "dataset", small_dataset)):
        HfApi().create_repo(repo, repo_type=kind, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, repo_type=kind, folder_path=folder)
    return model, dataset


def test_the_front_matter_is_complete_and_pinned() -> None:
    declared = front_matter()
    pinned = dict(line.split("==") for line in pinned_requirements())
    assert declared["sdk"] == "gradio" and declared["sdk_version"] == pinned["gradio"]
    assert declared["app_file"] == "app.py"
    assert declared["python_version"] == "3.11" and declared["license"] == "apache-2.0"
    assert len(declared["short_description"]) <= 60
    assert declared["hf_oauth"] is True and declared["hf_oauth_scopes"] == ["contribute-repos"]
    for key in ("title", "emoji", "models", "datasets", "preload_from_hub", "suggested_hardware"):
        assert declared[key]


def test_the_requirements_are_those_of_the_project() -> None:
    tested = (FOLDER.parent / "constraints.txt").read_text().lower().splitlines()
    assert set(pinned_requirements()) <= set(tested)


def test_every_package_that_the_space_imports_is_required(built: Path) -> None:
    imported = set()
    for path in built.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    distributions = packages_distributions()
    needed = {
        distributions[name][0].lower() for name in imported - sys.stdlib_module_names if name in distributions
    }
    needed -= {"bone-marrow-cells"}
    assert imported >= {"gradio", "timm", "numpy"}
    # gradio pins the first; the others may be missing
    optional = {"gradio_client", "httpx", "pillow-heif", "pillow_heif"}
    assert needed <= {line.partition("==")[0].lower() for line in pinned_requirements()} | optional


def pinned_requirements() -> list[str]:
    lines = (FOLDER / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def built(repos: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `python -m space build` for the two repos."""
    out = tmp_path_factory.mktemp("built") / "space"
    assert main(["build", str(out), "--model", repos[0], "--dataset", repos[1]]) == 0
    return out


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the required packages and without this project."""
    folder = tmp_path_factory.mktemp("bare") / "environment"
    venv.create(folder, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # .pth files in this path are not read, so an editable install of the project is left out
    (site_packages / "required.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def test_the_built_folder_runs_alone(
    built: Path, bare_python: Path, repos: tuple[str, str], tmp_path: Path, cell_file: Path
) -> None:
    """With only that folder on the path: the other packages of the project cannot be imported."""
    alone = {"PYTHONPATH": "", "MODEL_ID": "", "DATASET_ID": "", "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("dataset_script", "training", "local_hub", "train_accelerate", "hub_model.push"):
        command = [bare_python, "-c", f"import {name}"]
        done = subprocess.run(command, cwd=built, env=os.environ | alone, capture_output=True)
        assert b"ModuleNotFoundError" in done.stderr, name
    with running(RunningSpace(["app.py"], tmp_path / "space", built, alone, str(bare_python))) as space:
        client = Client(space.address, verbose=False)
        assert client.predict(handle_file(cell_file), api_name="/predict")["label"] == "PMO"
        assert client.predict(api_name="/model")["model"] == repos[0]
        assert "Bone-marrow cells" in urllib.request.urlopen(space.address).read().decode()


def test_build_refuses_a_folder_with_files(repos: tuple[str, str], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["build", str(tmp_path), "--model", repos[0]]) == 1
    assert "is not an empty directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_push_is_one_commit_of_the_built_folder_and_a_second_push_makes_none(
    repos: tuple[str, str], owner: str, built: Path, tmp_path: Path
) -> None:
    name = f"{owner}/cells-space"
    assert name in push_space(name, *repos, private=True)
    commits = HfApi().list_repo_commits(name, repo_type="space")
    push_space(name, *repos, private=True)
    assert len(HfApi().list_repo_commits(name, repo_type="space")) == len(commits)
    assert HfApi().space_info(name).private
    card = SpaceCard.load(name)
    assert card.data.models == [repos[0]] and card.data.datasets == [repos[1]]
    assert card.data["preload_from_hub"] == [repos[0]]
    copy = Path(snapshot_download(name, repo_type="space", local_dir=tmp_path / "copy"))
    files = {path.relative_to(built) for path in built.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert Path("app.py") in files and Path("hub_model/inference/classifier.py") in files
    for path in files - {Path("README.md")}:
        assert (copy / path).read_bytes() == (built / path).read_bytes(), path
    card = (built / "README.md").read_text()
    assert (copy / "README.md").read_text() == card.replace('"OWNER/NAME"', f'"{name}"')
    assert f"/{repos[0]}) · [Dataset: {repos[1]}]" in card


def test_the_environment_beats_the_front_matter() -> None:
    assert chosen_repos({"MODEL_ID": "a/b", "DATASET_ID": "c/d"}) == ("a/b", "c/d")
    assert chosen_repos({})[0] == front_matter()["models"][0]


@pytest.mark.parametrize(
    ("model", "dataset"),
    [
        *((model, "") for model in ("", "/tmp", "plain", "a/b@main", "a/b c\nx: y")),
        *(("a/b", dataset) for dataset in ("three/part/name", "a/b.git")),
    ],
)
def test_a_model_or_dataset_that_is_no_repo_id_is_refused(model: str, dataset: str) -> None:
    with pytest.raises(RepoError):
        push_space("nobody/x", model, dataset)


def test_a_space_over_a_repo_that_is_missing_or_of_another_type_is_refused(
    repos: tuple[str, str], owner: str
) -> None:
    for model, dataset, message in (
        (f"{owner}/none", repos[1], f"there is no model repo {owner}/none"),
        (repos[0], f"{owner}/none", f"there is no dataset repo {owner}/none"),
        (repos[1], repos[1], f"{repos[1]} is a dataset repo, not a model repo"),
    ):
        with pytest.raises(RepoError, match=message):
            push_space(f"{owner}/never", model, dataset)
    assert not HfApi().repo_exists(f"{owner}/never", repo_type="space")


def test_a_space_of_another_owner_is_refused(
    repos: tuple[str, str], hub: LocalHub, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hub.tokens, "hf_anna", "anna")
    with pytest.raises(RepoError, match=f"anna/cells belongs to anna, the token to {owner}"):
        push_space("anna/cells", *repos)


@pytest.mark.parametrize("fault", ["no hub", "bad name"])
def test_a_refused_push_is_one_sentence_and_exit_1(repos: tuple[str, str], owner: str, fault: str) -> None:
    name = "two words/cells" if fault == "bad name" else f"{owner}/cells"
    environment = os.environ | ({"HF_ENDPOINT": "http://127.0.0.1:9"} if fault == "no hub" else {})
    command = [sys.executable, "-m", "space", "push", name, "--model", repos[0], "--dataset", repos[1]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stderr.startswith("error: "), done.stderr
    assert len(done.stderr.splitlines()) == 1
