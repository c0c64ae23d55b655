"""`make publish` against the local Hub: three repos and a collection, nothing on a rerun, one sentence for every fault."""

from __future__ import annotations

import re
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import hf_raise_for_status

import runs.publish
from hub_model.card import snippets
from hub_model.inference.errors import RepoError
from hub_model.verify import run_fresh
from local_hub import LocalHub

KINDS = ("dataset", "model", "space")
api = HfApi()


@dataclass
class Publication:
    """The command with names that nobody else uses."""

    owner: str
    folder: Path
    data: Path
    capfd: pytest.CaptureFixture
    suffix: str

    @property
    def repos(self) -> dict[str, str]:
        return {kind: f"{self.owner}/{kind}-{self.suffix}" for kind in KINDS}

    def run(self, *more: object, owner: str | None = None) -> int:
        words = [f"--{kind}_name={kind}-{self.suffix}" for kind in KINDS]
        words += [f"--collection=Cells {self.suffix}", "--data", self.data, "--out", self.folder, *more]
        owner = self.owner if owner is None else owner
        return runs.publish.main([*map(str, words), "--", owner])

    def state(self) -> dict[str, str]:
        """The commits of the repos that exist."""
        there = {k: name for k, name in self.repos.items() if api.repo_exists(name, repo_type=k)}
        return {kind: api.repo_info(name, repo_type=kind).sha for kind, name in there.items()}

    def refusal(self, *more: object, owner: str | None = None) -> str:
        """The one sentence of a publication that fails."""
        assert self.run(*more, owner=owner) == 1
        said = self.capfd.readouterr().err  # the bars of uploads come before it
        assert "Traceback" not in said and said.count("error: ") == 1, said
        last = said.splitlines()[-1]
        assert last.startswith("error: "), said
        return last


@pytest.fixture
def whole(owner: str, drawn_dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> Publication:
    return Publication(owner, tmp_path / "out", drawn_dataset, capfd, uuid.uuid4().hex[:8])


@pytest.fixture
def publication(whole: Publication, monkeypatch: pytest.MonkeyPatch) -> Publication:
    """Without a check of the release, whose own tests recompute its figures."""
    monkeypatch.setattr("hub_model.push.check", lambda _: [])
    return whole


@pytest.mark.timeout(900)
def test_three_linked_repos_and_a_collection_and_nothing_on_a_rerun(publication, monkeypatch):
    assert publication.run("--dry-run") == 0
    assert publication.state() == {}
    plan = publication.capfd.readouterr().out
    assert "model.safetensors" in plan and "apache-2.0" in plan

    assert publication.run() == 0, publication.capfd.readouterr().err
    published, said = publication.state(), publication.capfd.readouterr().out
    assert set(published) == set(KINDS)
    cards = {}
    for kind, repo in publication.repos.items():
        assert len(api.list_repo_commits(repo, repo_type=kind)) == 2  # the initial commit and ours
        assert f"{repo}\n" in said
        cards[repo] = Path(api.hf_hub_download(repo, "README.md", repo_type=kind)).read_text()
    collection = api.create_collection(f"Cells {publication.suffix}", exists_ok=True)
    assert [item.item_type for item in collection.items] == list(published)

    for repo, card in cards.items():
        addresses = set(re.findall(rf"\]\({constants.ENDPOINT}/(?:datasets/|spaces/)?([^)]+)\)", card))
        assert addresses >= set(cards) - {repo}, f"{repo} does not link the others"
        assert "OWNER/NAME" not in "".join(snippets(card)) and "<!-- links" not in card
        assert snippets(card)[0].rstrip() in said, "what is printed at the end is the card's"

    monkeypatch.setattr(runs.publish, "run_snippets", lambda *_: [])  # they ran at these commits
    assert publication.run() == 0
    assert publication.state() == published
    assert publication.capfd.readouterr().out.count("unchanged") == 3


def test_a_fresh_process_has_the_token_an_image_and_no_cache(monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", "/elsewhere")
    monkeypatch.setattr("hub_model.verify.get_token", lambda: "hf_of_this_login")
    look = "import os; from huggingface_hub import constants, get_token"
    said = run_fresh(
        "-c", f"{look}; print(get_token(), os.listdir(), constants.HF_HUB_CACHE == os.getcwd() + '/hub')"
    )
    assert said == "hf_of_this_login ['cell.jpg'] True\n"
    with pytest.raises(RepoError, match=r"^ValueError: no such cell$"):
        run_fresh("-c", "raise ValueError('no such cell')")


# ---- faults
def test_what_can_be_known_is_said_before_anything_is_pushed(publication, tmp_path, monkeypatch):
    for name in ("two words", "anna/b", "köln", "", "-x", "a" * 97):
        assert "is not a repo id" in publication.refusal(owner=name)
    assert "belongs to anna, the token to" in publication.refusal(owner="anna")
    assert "--model" in publication.refusal("--model", tmp_path / "none")
    assert "README.md" in publication.refusal("--data", make(tmp_path / "d" / "splits.csv"))
    for token, said in (("", "hf auth login"), ("hf_wrong", "takes no such token")):
        with monkeypatch.context() as patched:
            patched.setenv("HF_TOKEN", token)
            assert said in publication.refusal()
    assert publication.state() == {}


def test_a_model_that_breaks_the_contract_is_refused_before_the_dataset_is_pushed(whole, tmp_path):
    assert "is not published: " in whole.refusal("--model", make(tmp_path / "m" / "metrics.json"))
    assert whole.state() == {}


def make(file: Path) -> Path:
    """The folder of an empty file."""
    file.parent.mkdir()
    file.touch()
    return file.parent


def test_an_empty_data_folder_is_told_by_the_build(publication, tmp_path):
    (tmp_path / "empty").mkdir()
    assert publication.run("--data", tmp_path / "empty") == 1
    error = publication.capfd.readouterr().err
    assert error.startswith("dataset_script build: ") and error.count("\n") == 1, error
    assert not (publication.folder / "dataset").exists()


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (403, {"X-Error-Code": "GatedRepo"}, "is gated"),
        (429, {"Retry-After": "30"}, "wait 30 seconds"),
        (503, {}, "run the command again later"),
    ],
)
def test_a_refusal_of_the_hub_is_passed_on_and_nothing_is_pushed(
    publication, monkeypatch, status, headers, said
):
    def refuse(*_: object, **__: object) -> None:
        request = httpx2.Request("GET", f"{constants.ENDPOINT}/api/datasets/a/b")
        hf_raise_for_status(httpx2.Response(status, headers=headers, request=request))

    with monkeypatch.context() as patched:
        patched.setattr(HfApi, "repo_info", refuse)
        assert said in publication.refusal()
    assert publication.state() == {}


def test_an_outage_midway_leaves_whole_repos_and_the_same_command_continues(publication, monkeypatch):
    own = HfApi.create_commit

    def outage(api: HfApi, *, repo_type: str, **options: object) -> object:
        if repo_type == "model":
            raise httpx2.ConnectError("the network is down")
        return own(api, repo_type=repo_type, **options)

    with monkeypatch.context() as patched:
        patched.setattr(HfApi, "create_commit", outage)
        error = publication.refusal()
    assert "cannot be reached" in error and "(already published: dataset)" in error
    before = publication.state()
    assert list(before) == ["dataset"]
    monkeypatch.setattr(runs.publish, "run_snippets", lambda *_: [])
    assert publication.run() == 0
    assert "unchanged" in publication.capfd.readouterr().out
    assert set(publication.state()) == set(KINDS) and publication.state()["dataset"] == before["dataset"]


def test_repos_with_other_content_or_public_ones_are_left_alone(publication):
    repo = api.create_repo(publication.repos["model"]).repo_id
    assert f"{repo} is public" in publication.refusal("--private")
    api.upload_file(path_or_fileobj=b"theirs", path_in_repo="thesis.txt", repo_id=repo)
    before = publication.state()
    error = publication.refusal()
    assert "the name is taken" in error and "--model_name" in error
    assert publication.state() == before and list(before) == ["model"]


# ---- the embedded Hub
@pytest.fixture
def logged_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name)


def test_without_login_the_embedded_hub_serves_the_owner(logged_out, tmp_path, capsys, monkeypatch):
    users = []

    def child(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess:
        users.append(HfApi(env["HF_ENDPOINT"], token=env["HF_TOKEN"]).whoami()["name"])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", child)
    assert runs.publish.main(["anna", "--out", str(tmp_path)]) == 0
    assert users == ["anna"] and f"--root {tmp_path / 'hub'} --token" in capsys.readouterr().out


def test_two_publications_do_not_work_in_one_folder(logged_out, publication):
    with LocalHub(publication.folder / "hub"):
        assert "another local hub already serves" in publication.refusal()
