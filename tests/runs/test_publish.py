"""`make publish` against the local Hub: three repos and a collection, nothing on a rerun, one sentence for every error."""

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
from hub_model.verify import run_isolated
from local_hub import LocalHub

KINDS = ("dataset", "model", "space")
api = HfApi()


@dataclass
class Publication:
    """The command, with repo names that no other test uses."""

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
        existing = {k: name for k, name in self.repos.items() if api.repo_exists(name, repo_type=k)}
        return {kind: api.repo_info(name, repo_type=kind).sha for kind, name in existing.items()}

    def error(self, *more: object, owner: str | None = None) -> str:
        """The error message of a publication that fails."""
        assert self.run(*more, owner=owner) == 1
        output = self.capfd.readouterr().err  # progress bars of uploads, then the error
        assert "Traceback" not in output and output.count("error: ") == 1, output
        last = output.splitlines()[-1]
        assert last.startswith("error: "), output
        return last


@pytest.fixture
def checked_publication(
    owner: str, drawn_dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> Publication:
    return Publication(owner, tmp_path / "out", drawn_dataset, capfd, uuid.uuid4().hex[:8])


@pytest.fixture
def publication(checked_publication: Publication, monkeypatch: pytest.MonkeyPatch) -> Publication:
    """Without the check of the release, which tests/hub_model/test_release.py runs."""
    monkeypatch.setattr("hub_model.push.check", lambda _: [])
    return checked_publication


@pytest.mark.timeout(900)
def test_three_linked_repos_and_a_collection_and_nothing_on_a_rerun(publication, monkeypatch):
    assert publication.run("--dry-run") == 0
    assert publication.state() == {}
    plan = publication.capfd.readouterr().out
    assert "model.safetensors" in plan and "apache-2.0" in plan

    assert publication.run() == 0, publication.capfd.readouterr().err
    published, output = publication.state(), publication.capfd.readouterr().out
    assert set(published) == set(KINDS)
    cards = {}
    for kind, repo in publication.repos.items():
        assert len(api.list_repo_commits(repo, repo_type=kind)) == 2  # the initial commit and ours
        assert f"{repo}\n" in output
        cards[repo] = Path(api.hf_hub_download(repo, "README.md", repo_type=kind)).read_text()
    collection = api.create_collection(f"Cells {publication.suffix}", exists_ok=True)
    assert [item.item_type for item in collection.items] == list(published)

    for repo, card in cards.items():
        links = set(re.findall(rf"\]\({constants.ENDPOINT}/(?:datasets/|spaces/)?([^)]+)\)", card))
        assert links >= set(cards) - {repo}, f"{repo} does not link to the others"
        assert "OWNER/NAME" not in "".join(snippets(card)) and "<!-- links" not in card
        assert snippets(card)[0].rstrip() in output, "the snippets printed at the end are the card's"

    monkeypatch.setattr(runs.publish, "run_snippets", lambda *_: [])  # they have been run at these commits
    assert publication.run() == 0
    assert publication.state() == published
    assert publication.capfd.readouterr().out.count("unchanged") == 3


def test_a_fresh_process_has_the_token_an_image_and_no_cache(monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", "/elsewhere")
    monkeypatch.setattr("hub_model.verify.get_token", lambda: "hf_of_this_login")
    code = "import os; from huggingface_hub import constants, get_token; "
    code += "print(get_token(), os.listdir(), constants.HF_HUB_CACHE == os.getcwd() + '/hub')"
    assert run_isolated("-c", code) == "hf_of_this_login ['cell.jpg'] True\n"
    with pytest.raises(RepoError, match=r"^ValueError: no such cell$"):
        run_isolated("-c", "raise ValueError('no such cell')")


# ---- errors
def test_wrong_arguments_are_reported_before_anything_is_pushed(publication, tmp_path, monkeypatch):
    for name in ("two words", "anna/b", "köln", "", "-x", "a" * 97):
        assert "is not a repo id" in publication.error(owner=name)
    assert "belongs to anna, the token to" in publication.error(owner="anna")
    assert "--model" in publication.error("--model", tmp_path / "none")
    assert "README.md" in publication.error("--data", make(tmp_path / "d" / "splits.csv"))
    for token, message in (("", "hf auth login"), ("hf_wrong", "rejects this token")):
        with monkeypatch.context() as patched:
            patched.setenv("HF_TOKEN", token)
            assert message in publication.error()
    assert publication.state() == {}


def test_an_invalid_model_is_refused_before_the_dataset_is_pushed(checked_publication, tmp_path):
    assert "is not published: " in checked_publication.error("--model", make(tmp_path / "m" / "metrics.json"))
    assert checked_publication.state() == {}


def make(file: Path) -> Path:
    """Create an empty file and its folder; return the folder."""
    file.parent.mkdir()
    file.touch()
    return file.parent


def test_an_empty_data_folder_is_an_error_of_the_build(publication, tmp_path):
    (tmp_path / "empty").mkdir()
    assert publication.run("--data", tmp_path / "empty") == 1
    error = publication.capfd.readouterr().err
    assert error.startswith("dataset_script build: ") and error.count("\n") == 1, error
    assert not (publication.folder / "dataset").exists()


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (403, {"X-Error-Code": "GatedRepo"}, "is gated"),
        (429, {"Retry-After": "30"}, "wait 30 seconds"),
        (503, {}, "run the command again later"),
    ],
)
def test_a_refusal_of_the_hub_is_reported_and_nothing_is_pushed(
    publication, monkeypatch, status, headers, message
):
    def refuse(*_: object, **__: object) -> None:
        request = httpx2.Request("GET", f"{constants.ENDPOINT}/api/datasets/a/b")
        hf_raise_for_status(httpx2.Response(status, headers=headers, request=request))

    with monkeypatch.context() as patched:
        patched.setattr(HfApi, "repo_info", refuse)
        assert message in publication.error()
    assert publication.state() == {}


def test_a_publication_interrupted_by_an_outage_is_resumed_by_the_same_command(publication, monkeypatch):
    create_commit = HfApi.create_commit

    def outage(api: HfApi, *, repo_type: str, **options: object) -> object:
        if repo_type == "model":
            raise httpx2.ConnectError("the network is down")
        return create_commit(api, repo_type=repo_type, **options)

    with monkeypatch.context() as patched:
        patched.setattr(HfApi, "create_commit", outage)
        error = publication.error()
    assert "cannot be reached" in error and "(already published: dataset)" in error
    before = publication.state()
    assert list(before) == ["dataset"]
    monkeypatch.setattr(runs.publish, "run_snippets", lambda *_: [])
    assert publication.run() == 0
    assert "unchanged" in publication.capfd.readouterr().out
    assert set(publication.state()) == set(KINDS) and publication.state()["dataset"] == before["dataset"]


def test_repos_with_other_content_or_public_ones_are_left_alone(publication):
    repo = api.create_repo(publication.repos["model"]).repo_id
    assert f"{repo} is public" in publication.error("--private")
    api.upload_file(path_or_fileobj=b"theirs", path_in_repo="thesis.txt", repo_id=repo)
    before = publication.state()
    error = publication.error()
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


def test_two_publications_cannot_share_a_folder(logged_out, publication):
    with LocalHub(publication.folder / "hub"):
        assert "another local hub already serves" in publication.error()
