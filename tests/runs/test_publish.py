"""`make publish` against the local Hub: three repos and a collection, nothing on a rerun, one sentence for every fault."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from huggingface_hub import HfApi

import runs.publish
from local_hub import LocalHub

api = HfApi()


@pytest.fixture
def names() -> list[str]:
    """Options that choose names nobody else uses."""
    suffix = uuid.uuid4().hex[:8]
    kinds = [f"--{kind}_name={kind}-{suffix}" for kind in ("dataset", "model", "space")]
    return [*kinds, f"--collection=Cells {suffix}"]


def state(owner: str, names: list[str]) -> dict[str, str]:
    """The commits of the repos that exist."""
    kinds = {
        kind: option.split("=")[1] for kind, option in zip(("dataset", "model", "space"), names, strict=False)
    }
    found = {kind: f"{owner}/{name}" for kind, name in kinds.items()}
    return {
        kind: api.repo_info(name, repo_type=kind).sha
        for kind, name in found.items()
        if api.repo_exists(name, repo_type=kind)
    }


@pytest.mark.timeout(900)
def test_three_linked_repos_and_a_collection_and_nothing_on_a_rerun(
    owner: str, names: list[str], drawn_dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    command = [owner, "--data", str(drawn_dataset), "--out", str(tmp_path), *names]
    assert runs.publish.main([*command, "--dry-run"]) == 0
    assert state(owner, names) == {}
    plan = capfd.readouterr().out
    assert "model.safetensors" in plan and "apache-2.0" in plan

    assert runs.publish.main(command) == 0, capfd.readouterr().err
    published, said = state(owner, names), capfd.readouterr().out
    assert set(published) == {"dataset", "model", "space"}
    for kind in published:
        repo = f"{owner}/{kind}-{names[0][-8:]}"
        assert len(api.list_repo_commits(repo, repo_type=kind)) == 2  # the initial commit and ours
        assert f"{repo}\n" in said
    collection = next(one for one in api.list_collections(owner=owner) if one.title == names[3].split("=")[1])
    assert [item.item_type for item in api.get_collection(collection.slug).items] == list(published)

    assert runs.publish.main(command) == 0
    assert state(owner, names) == published
    assert capfd.readouterr().out.count("unchanged") == 3


def publish(environment: dict[str, str], *arguments: str, out: Path) -> str:
    """The error of a publication that fails."""
    command = [sys.executable, "-m", "runs.publish", *arguments, "--out", str(out)]
    environment = os.environ | {"HF_HOME": str(out / "home")} | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_faults_that_can_be_known_are_told_before_anything_is_pushed(
    owner: str, names: list[str], drawn_dataset: Path, tmp_path: Path
) -> None:
    data = ["--data", str(drawn_dataset), *names]
    assert "hf auth login" in publish({"HF_TOKEN": ""}, owner, *data, out=tmp_path)
    assert "HF_TOKEN" in publish({"HF_TOKEN": "hf_wrong"}, owner, *data, out=tmp_path)
    assert "is not a repo id" in publish({}, "two words", *data, out=tmp_path)
    assert "cannot be reached" in publish({"HF_ENDPOINT": "http://127.0.0.1:9"}, owner, *data, out=tmp_path)
    assert "--model" in publish({}, owner, *data, "--model", str(tmp_path / "none"), out=tmp_path)
    assert state(owner, names) == {}


def test_a_repo_of_that_name_with_other_content_is_left_alone(
    owner: str, names: list[str], drawn_dataset: Path, tmp_path: Path
) -> None:
    repo = api.create_repo(f"{owner}/{names[1].split('=')[1]}").repo_id
    api.upload_file(path_or_fileobj=b"theirs", path_in_repo="thesis.txt", repo_id=repo)
    before = state(owner, names)
    error = publish({}, owner, "--data", str(drawn_dataset), *names, out=tmp_path)
    assert "the name is taken" in error and "--model_name" in error
    assert state(owner, names) == before


def test_repos_of_another_user_are_refused(names: list[str], drawn_dataset: Path, tmp_path: Path) -> None:
    with LocalHub(tmp_path / "hub", tokens={"hf_anna": "anna", "hf_budi": "budi"}) as hub:
        error = publish(hub.environment, "budi", "--data", str(drawn_dataset), *names, out=tmp_path)
        assert "budi" in error
        assert list(HfApi(hub.endpoint).list_datasets()) == []
