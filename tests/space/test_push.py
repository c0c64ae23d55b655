"""From the folder to a Space repo: one commit, complete front matter, and a copy that runs alone."""

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from huggingface_hub import HfApi, SpaceCard, snapshot_download

import space
from hub_model.inference.errors import RepoError
from local_hub import LocalHub
from space.push import push_space
from space.resources import chosen_repos, front_matter
from tests.space.conftest import start_space

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
    pinned = dict(
        line.split("==") for line in (FOLDER / "requirements.txt").read_text().splitlines() if "==" in line
    )
    assert declared["sdk"] == "gradio" and declared["sdk_version"] == pinned["gradio"]
    assert declared["app_file"] == "app.py" and (FOLDER / "app.py").is_file()
    assert declared["python_version"] == "3.11" and declared["license"] == "apache-2.0"
    assert len(declared["short_description"]) <= 60
    for key in ("title", "emoji", "models", "datasets", "preload_from_hub", "suggested_hardware"):
        assert declared[key]


def test_the_requirements_are_those_of_the_project() -> None:
    tested = (FOLDER.parent / "constraints.txt").read_text().lower().splitlines()
    for line in (FOLDER / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert line in tested


def test_a_push_is_one_commit_and_a_second_push_is_none(repos: tuple[str, str], owner: str) -> None:
    name = f"{owner}/cells-space"
    assert name in push_space(name, *repos)
    commits = HfApi().list_repo_commits(name, repo_type="space")
    push_space(name, *repos)
    assert len(HfApi().list_repo_commits(name, repo_type="space")) == len(commits)
    card = SpaceCard.load(name)
    assert card.data.models == [repos[0]] and card.data.datasets == [repos[1]]
    assert card.data["preload_from_hub"] == [repos[0]]


def test_the_pushed_space_runs_alone_from_its_front_matter(
    repos: tuple[str, str], owner: str, tmp_path: Path, cell_file: Path
) -> None:
    name = f"{owner}/alone-space"
    push_space(name, *repos)
    copy = Path(snapshot_download(name, repo_type="space", local_dir=tmp_path / "copy"))
    assert not list(copy.rglob("*.pyc"))
    running = start_space(
        ["app.py"], tmp_path / "uploads", cwd=copy, PYTHONPATH="", MODEL_ID="", DATASET_ID=""
    )
    try:
        client = Client(running.address, verbose=False)
        assert client.predict(handle_file(cell_file), api_name="/predict")["label"] == "PMO"
        assert client.predict(api_name="/model")["model"] == repos[0]
        assert "Bone-marrow cells" in urllib.request.urlopen(running.address).read().decode()
    finally:
        running.process.terminate()
        running.process.wait(20)
    assert not list((tmp_path / "uploads").rglob("cell.jpg"))


def test_the_environment_beats_the_front_matter() -> None:
    assert chosen_repos({"MODEL_ID": "a/b", "DATASET_ID": "c/d"}) == ("a/b", "c/d")
    assert chosen_repos({})[0] == front_matter()["models"][0]


@pytest.mark.parametrize(
    ("model", "dataset"),
    [
        ("", ""),
        ("/tmp", ""),
        ("a/b", "three/part/name"),
        ("plain", ""),
        ("a/b@main", ""),
        ("a/b c\nx: y", ""),
        ("a/b", "a/b.git"),
    ],
)
def test_a_space_cannot_show_what_is_not_on_the_hub(model: str, dataset: str) -> None:
    with pytest.raises(RepoError):
        push_space("nobody/x", model, dataset)


@pytest.mark.parametrize("name", ["ownerless", "a/b@main", "a/b/c"])
def test_a_name_that_is_no_id_makes_no_space(owner: str, name: str) -> None:
    with pytest.raises(RepoError, match="is not a repo id"):
        push_space(name, "a/b", "")
    assert not HfApi().repo_exists(f"{owner}/ownerless", repo_type="space")


def test_private_is_not_ignored_for_a_space_that_is_public(repos: tuple[str, str], owner: str) -> None:
    name, hub = f"{owner}/public-space", HfApi()
    hub.create_repo(name, repo_type="space", space_sdk="gradio")
    before = len(hub.list_repo_commits(name, repo_type="space"))
    with pytest.raises(RepoError, match="is public: make it private"):
        push_space(name, *repos, private=True)
    assert len(hub.list_repo_commits(name, repo_type="space")) == before
    hub.update_repo_settings(name, repo_type="space", private=True)
    push_space(name, *repos, private=True)


def test_what_the_hub_says_is_passed_on(
    repos: tuple[str, str], hub: LocalHub, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hub.tokens, "hf_anna", "anna")
    with pytest.raises(RepoError, match=f"{owner} has no right to create"):
        push_space("anna/cells", *repos)


@pytest.mark.parametrize("fault", ["no hub", "bad name"])
def test_a_refused_push_is_one_sentence_and_exit_1(repos: tuple[str, str], owner: str, fault: str) -> None:
    name = "two words/cells" if fault == "bad name" else f"{owner}/cells"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"} if fault == "no hub" else None
    done = subprocess.run(
        [sys.executable, "-m", "space", "push", name, "--model", repos[0], "--dataset", repos[1]],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 1 and done.stderr.startswith("error: "), done.stderr
    assert len(done.stderr.splitlines()) == 1
