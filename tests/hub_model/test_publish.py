"""One push for datasets, models and Spaces: one commit, none when nothing changed, one sentence and nothing left when refused."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.utils import hf_raise_for_status

from hub_model.inference.errors import RepoError
from hub_model.inference.hub import hub_error_message
from hub_model.publish import find_repo, push_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    (made / "data").mkdir(parents=True)
    (made / "README.md").write_text("---\nsdk: gradio\nlicense: apache-2.0\n---\n# Cells\n")
    (made / "data" / "a.csv").write_text("a,b\n1,2\n")
    return made


@pytest.fixture
def name(owner: str) -> str:
    return f"{owner}/publish-{uuid.uuid4().hex[:8]}"


def commits(name: str, kind: str, revision: str | None = None) -> int:
    return len(HfApi().list_repo_commits(name, repo_type=kind, revision=revision))


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_a_push_is_one_commit_and_the_same_push_again_is_none(folder, name, kind):
    done = push_folder(folder, name, kind)
    assert done.changed and done.startswith(constants.ENDPOINT) and done.endswith(name)
    assert commits(name, kind) == 2  # the Hub's own first one, and ours
    again = push_folder(folder, name, kind)
    assert not again.changed and again.commit == done.commit and commits(name, kind) == 2


def test_the_repo_becomes_equal_to_the_folder_but_for_files_that_are_not_ours(folder, name):
    push_folder(folder, name, "model")
    (folder / "data" / "a.csv").rename(folder / "b.csv")
    push_folder(folder, name, "model")
    assert sorted(HfApi().list_repo_files(name)) == [".gitattributes", "README.md", "b.csv"]
    (folder / "b.csv").unlink()
    push_folder(folder, name, "model", stale=("data/*",))
    assert "b.csv" in HfApi().list_repo_files(name)


def test_a_branch_is_created_for_its_push_and_main_is_left_alone(folder, name):
    push_folder(folder, name, "model")
    (folder / "data" / "a.csv").write_text("other")
    assert push_folder(folder, name, "model", revision="checkpoint").changed
    assert commits(name, "model") == 2 and commits(name, "model", "checkpoint") == 3


def test_private_is_refused_for_a_public_repo_and_kept_for_a_new_one(folder, name):
    HfApi().create_repo(name)
    with pytest.raises(RepoError, match="is public: make it private in its settings"):
        push_folder(folder, name, "model", private=True)
    assert commits(name, "model") == 1
    push_folder(folder, f"{name}-new", "model", private=True)
    assert HfApi().model_info(f"{name}-new").private


@pytest.mark.parametrize("bad", ["ownerless", "three/part/name", "a/b@main", "two words/x", "", "a/b.git"])
def test_a_name_that_is_not_an_id_is_refused_before_the_hub_is_asked(folder, bad, monkeypatch):
    monkeypatch.setattr(HfApi, "repo_info", lambda *_, **__: pytest.fail("the Hub was asked"))
    with pytest.raises(RepoError, match="is not a repo id"):
        push_folder(folder, bad, "model")


def test_a_pickle_is_never_published(folder, name):
    (folder / "data" / "weights.PT").write_bytes(b"")
    with pytest.raises(RepoError, match=r"data/weights.PT can hold a pickle"):
        push_folder(folder, name, "model")
    assert not HfApi().repo_exists(name)


def test_a_repo_or_branch_that_a_failed_push_created_is_deleted_again(folder, name, monkeypatch):
    def outage(*_: object, **__: object) -> None:
        raise httpx2.ConnectError("the network is down")

    monkeypatch.setattr(HfApi, "create_commit", outage)
    with pytest.raises(RepoError, match="cannot be reached"):
        push_folder(folder, name, "model")
    assert not HfApi().repo_exists(name)
    HfApi().create_repo(name)
    with pytest.raises(RepoError, match="cannot be reached"):
        push_folder(folder, name, "model", revision="checkpoint")
    assert [ref.name for ref in HfApi().list_repo_refs(name).branches] == ["main"]


def test_a_commit_of_someone_else_meanwhile_is_neither_overwritten_nor_deleted(folder, name, monkeypatch):
    own = HfApi.create_commit

    def late(api: HfApi, *, repo_id: str, **options: object) -> object:
        added = [CommitOperationAdd("THEIRS.md", b"do not lose this")]
        own(api, repo_id, operations=added, repo_type="model", commit_message="theirs")
        return own(api, repo_id, **options)

    monkeypatch.setattr(HfApi, "create_commit", late)
    with pytest.raises(RepoError, match=f"someone else has changed {name} meanwhile"):
        push_folder(folder, name, "model")
    assert HfApi().list_repo_commits(name)[0].title == "theirs"


def test_another_owners_name_is_refused_with_what_the_hub_says(folder, hub, owner, monkeypatch):
    monkeypatch.setitem(hub.tokens, "hf_anna", "anna")
    with pytest.raises(RepoError, match=f"may not write to anna/model.*{owner} has no right to create"):
        push_folder(folder, "anna/model", "model")


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [({"HF_TOKEN": ""}, "run `hf auth login`"), ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached")],
)
def test_without_a_token_or_a_hub_a_push_is_one_sentence(folder, name, setting, sentence, tmp_path):
    code = f"""
from pathlib import Path
from hub_model.inference.errors import RepoError
from hub_model.publish import push_folder
try:
    push_folder(Path({str(folder)!r}), {name!r}, "model")
except RepoError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), **setting}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert sentence in done.stdout and done.stdout.count("\n") == 1, done
    assert not HfApi().repo_exists(name)


@pytest.mark.parametrize(
    ("status", "headers", "sentence"),
    [
        (401, {}, "run `hf auth login`"),
        (403, {"X-Error-Code": "GatedRepo"}, "the model repo a/b is gated: ask for access"),
        (403, {"X-Error-Message": "no"}, "the token may not write to a/b"),
        (409, {"X-Error-Message": "You created it"}, "the name a/b is taken (You created it)"),
        (412, {}, "someone else has changed a/b meanwhile"),
        (429, {"Retry-After": "30"}, "rate limit is reached: wait 30 seconds"),
        (503, {}, "refused a/b with status 503"),
        (404, {"X-Error-Code": "RepoNotFound"}, "there is no model repo a/b"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "a/b has no revision 'v1'"),
    ],
)
def test_every_refusal_of_the_hub_is_one_sentence(status, headers, sentence):
    request = httpx2.Request("POST", "https://huggingface.co/api/models/a/b/commit/main")
    with pytest.raises(httpx2.HTTPError) as refusal:
        hf_raise_for_status(httpx2.Response(status, headers=headers, request=request))
    said = hub_error_message(refusal.value, "a/b", "model", "v1", writing=True)
    assert sentence in said and "\n" not in said


def test_a_repo_of_another_type_is_named_as_such(folder, name):
    push_folder(folder, name, "dataset")
    assert find_repo(name, "dataset").id == name
    with pytest.raises(RepoError, match=f"{name} is a dataset repo, not a model repo"):
        find_repo(name, "model")
    with pytest.raises(RepoError, match="there is no model repo"):
        find_repo(f"{name}-none", "model")
