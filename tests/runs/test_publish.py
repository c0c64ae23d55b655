"""`make publish` against the local Hub: three repos and a collection, nothing on a rerun, one sentence for every fault."""

from __future__ import annotations

import re
import subprocess
import uuid
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import hf_raise_for_status

import runs.publish
from hub_model.card import snippets
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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The release is whole: its own tests recompute its figures."""
    monkeypatch.setattr("hub_model.push.check", lambda _: [])


@pytest.mark.timeout(900)
def test_three_linked_repos_and_a_collection_and_nothing_on_a_rerun(
    owner: str,
    names: list[str],
    drawn_dataset: Path,
    tmp_path: Path,
    quick: None,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [owner, "--data", str(drawn_dataset), "--out", str(tmp_path), *names]
    assert runs.publish.main([*command, "--dry-run"]) == 0
    assert state(owner, names) == {}
    plan = capfd.readouterr().out
    assert "model.safetensors" in plan and "apache-2.0" in plan

    assert runs.publish.main(command) == 0, capfd.readouterr().err
    published, said = state(owner, names), capfd.readouterr().out
    assert set(published) == {"dataset", "model", "space"}
    cards = {}
    for kind in published:
        repo = f"{owner}/{kind}-{names[0][-8:]}"
        assert len(api.list_repo_commits(repo, repo_type=kind)) == 2  # the initial commit and ours
        assert f"{repo}\n" in said
        cards[repo] = Path(api.hf_hub_download(repo, "README.md", repo_type=kind)).read_text()
    collection = api.create_collection(names[3].split("=")[1], exists_ok=True)
    assert [item.item_type for item in collection.items] == list(published)

    for repo, card in cards.items():
        addresses = set(re.findall(rf"\]\({constants.ENDPOINT}/(?:datasets/|spaces/)?([^)]+)\)", card))
        assert addresses >= set(cards) - {repo}, f"{repo} does not link the others"
        assert "OWNER/NAME" not in "".join(snippets(card)) and "<!-- links" not in card
        assert snippets(card)[0].rstrip() in said, "what is printed at the end is the card's"

    monkeypatch.setattr(runs.publish, "run_snippets", lambda *_: [])  # they ran at these commits
    assert runs.publish.main(command) == 0
    assert state(owner, names) == published
    assert capfd.readouterr().out.count("unchanged") == 3


# ---- faults
def refusal(capfd: pytest.CaptureFixture, *arguments: object) -> str:
    """The one sentence of a publication that fails."""
    assert runs.publish.main([str(word) for word in arguments]) == 1
    said = capfd.readouterr().err  # the bars of uploads come before it
    assert "Traceback" not in said and said.count("error: ") == 1, said
    last = said.splitlines()[-1]
    assert last.startswith("error: "), said
    return last


def test_what_can_be_known_is_said_before_anything_is_pushed(
    owner: str,
    names: list[str],
    drawn_dataset: Path,
    tmp_path: Path,
    quick: None,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rest = ["--data", drawn_dataset, "--out", tmp_path / "out", *names]
    for name in ("two words", "anna/b", "köln", "", "-x", "a" * 97):
        assert "is not a repo id" in refusal(capfd, f"--model_name={names[1]}", *rest, "--", name)
    assert "belongs to anna, the token to" in refusal(capfd, "anna", *rest)
    assert "--model" in refusal(capfd, owner, *rest, "--model", tmp_path / "none")
    half = make(tmp_path / "d" / "splits.csv")
    assert "README.md" in refusal(capfd, owner, *rest, "--data", half)
    monkeypatch.setenv("HF_TOKEN", "")
    assert "hf auth login" in refusal(capfd, owner, *rest)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "takes no such token" in refusal(capfd, owner, *rest)
    monkeypatch.undo()
    assert state(owner, names) == {}


def test_a_model_that_breaks_the_contract_is_refused_before_the_dataset_is_pushed(
    owner: str, names: list[str], drawn_dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    model = make(tmp_path / "m" / "metrics.json")
    command = [owner, "--data", drawn_dataset, "--out", tmp_path, *names, "--model", model]
    assert "is not published: " in refusal(capfd, *command)
    assert state(owner, names) == {}


def make(file: Path) -> Path:
    """The folder of an empty file."""
    file.parent.mkdir(exist_ok=True)
    file.touch()
    return file.parent


def test_an_empty_data_folder_is_told_by_the_build(
    owner: str, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    command = [owner, "--data", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]
    assert runs.publish.main(command) == 1
    error = capfd.readouterr().err
    assert error.startswith("dataset_script build: ") and error.count("\n") == 1, error
    assert not (tmp_path / "out" / "dataset").exists()


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (403, {"X-Error-Code": "GatedRepo"}, "is gated"),
        (429, {"Retry-After": "30"}, "wait 30 seconds"),
        (503, {}, "run the command again later"),
    ],
)
def test_a_refusal_of_the_hub_is_passed_on_and_nothing_is_pushed(
    owner: str, names: list[str], drawn_dataset: Path, tmp_path: Path, quick: None,
    capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, status: int, headers: dict, said: str,
) -> None:  # fmt: skip
    def refuse(*_: object, **__: object) -> None:
        request = httpx2.Request("GET", f"{constants.ENDPOINT}/api/datasets/a/b")
        hf_raise_for_status(httpx2.Response(status, headers=headers, request=request))

    with monkeypatch.context() as patched:
        patched.setattr(HfApi, "repo_info", refuse)
        assert said in refusal(capfd, owner, "--data", drawn_dataset, "--out", tmp_path, *names)
    assert state(owner, names) == {}


def test_an_outage_midway_leaves_whole_repos_and_the_same_command_continues(
    owner: str,
    names: list[str],
    drawn_dataset: Path,
    tmp_path: Path,
    quick: None,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = HfApi.create_commit

    def outage(api: HfApi, *, repo_type: str, **options: object) -> object:
        if repo_type == "model":
            raise httpx2.ConnectError("the network is down")
        return own(api, repo_type=repo_type, **options)

    command = [owner, "--data", drawn_dataset, "--out", tmp_path, *names]
    with monkeypatch.context() as patched:
        patched.setattr(HfApi, "create_commit", outage)
        error = refusal(capfd, *command)
    assert "cannot be reached" in error and "(published before: dataset)" in error
    before = state(owner, names)
    assert list(before) == ["dataset"]
    monkeypatch.setattr(runs.publish, "run_snippets", lambda *_: [])
    assert runs.publish.main([str(word) for word in command]) == 0
    assert "unchanged" in capfd.readouterr().out
    assert state(owner, names)["dataset"] == before["dataset"] and len(state(owner, names)) == 3


def test_repos_with_other_content_or_public_ones_are_left_alone(
    owner: str,
    names: list[str],
    drawn_dataset: Path,
    tmp_path: Path,
    quick: None,
    capfd: pytest.CaptureFixture,
) -> None:
    repo = api.create_repo(f"{owner}/{names[1].split('=')[1]}").repo_id
    command = [owner, "--data", drawn_dataset, "--out", tmp_path, *names]
    before = state(owner, names)
    assert f"{repo} is public" in refusal(capfd, *command, "--private")
    api.upload_file(path_or_fileobj=b"theirs", path_in_repo="thesis.txt", repo_id=repo)
    before = state(owner, names)
    error = refusal(capfd, *command)
    assert "the name is taken" in error and "--model_name" in error
    assert state(owner, names) == before


# ---- the embedded Hub
@pytest.fixture
def logged_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name)


def test_without_login_the_embedded_hub_serves_the_owner(
    logged_out: None, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = []

    def child(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess:
        hub = HfApi(env["HF_ENDPOINT"], token=env["HF_TOKEN"])
        users.append(hub.whoami()["name"])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", child)
    assert runs.publish.main(["anna", "--out", str(tmp_path)]) == 0
    assert users == ["anna"] and f"--root {tmp_path / 'hub'} --token" in capsys.readouterr().out


def test_two_publications_do_not_work_in_one_folder(
    logged_out: None, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    with LocalHub(tmp_path / "hub"):
        assert "another local hub already serves" in refusal(capfd, "anna", "--out", tmp_path)
