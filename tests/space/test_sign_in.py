"""Signing in (`hf_oauth`): corrected cells go to the visitor's own private dataset repo, and their token is stored nowhere."""

import re
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import gradio as gr
import httpx2
import pytest
from gradio import oauth
from huggingface_hub import HfApi

from hub_model.inference.classifier import Classifier
from local_hub import LocalHub
from space.app import start
from space.desk_view import push_export
from space.page import build_page
from space.resources import load_resources
from space.visits import Visit, Visits
from tests.small_model_repo import LABELS
from tests.space.small_desk import filled
from tests.space.test_page import answers, function, post

TOKEN = "hf_annas_own_token"


@pytest.fixture
def anna(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """A second user besides the one whose token this machine has, and a third, Bob."""
    monkeypatch.setitem(hub.tokens, TOKEN, "anna")
    monkeypatch.setitem(hub.tokens, "hf_bobs", "bob")
    return HfApi(token=TOKEN)


@pytest.fixture
def resources(small_model: Path) -> SimpleNamespace:
    classifier = Classifier.from_pretrained(small_model)
    return SimpleNamespace(classifier=classifier, classifier_name="localdev/model")


def test_a_push_is_a_private_dataset_of_the_visitors_and_a_second_one_changes_it(
    resources: SimpleNamespace, anna: HfApi, tmp_path: Path
) -> None:
    desk, visit = filled(resources.classifier, tmp_path), Visit(tmp_path / "visit")
    assert desk.repo in push_export(resources, visit, desk, "anna", TOKEN)
    info = anna.dataset_info(desk.repo)
    assert info.private and info.author == "anna"
    loaded = datasets.load_dataset(desk.repo, token=TOKEN)
    assert sum(len(split) for split in loaded.values()) == 14
    assert loaded["train"].features["label"].names == list(LABELS)
    desk.correct({"0": "EOS"}, LABELS)
    before = desk.repo
    push_export(resources, visit, desk, "anna", TOKEN)
    assert desk.repo == before and anna.dataset_info(desk.repo).sha != info.sha
    assert [path for path in visit.folder.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("user", "token", "message"), [("anna", "hf_expired", "sign in"), ("bob", TOKEN, "Nothing was pushed")]
)
def test_a_refusal_of_the_hub_is_a_sentence(
    resources: SimpleNamespace, anna: HfApi, tmp_path: Path, user: str, token: str, message: str
) -> None:
    desk = filled(resources.classifier, tmp_path, 1)
    page = push_export(resources, Visit(tmp_path / "visit"), desk, user, token)
    assert message in page and token not in page and "Traceback" not in page


def test_without_oauth_there_is_no_button(small_model: Path, tmp_path: Path) -> None:
    page, _ = build_page(load_resources(str(small_model), ""), Visits(tmp_path))
    assert "cells-push" not in {block.elem_id for block in page.blocks.values()}
    assert not [block for block in page.blocks.values() if isinstance(block, gr.LoginButton)]


def test_a_signed_in_visitor_pushes_with_one_click_and_the_token_is_stored_nowhere(
    small_model: Path, small_dataset: Path, anna: HfApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """Outside of a Space, Gradio mocks the sign-in page of huggingface.co; everything else is real."""
    profile = {"name": "Anna", "preferred_username": "anna", "profile": "", "picture": ""}
    info = {
        "access_token": TOKEN,
        "scope": "openid",
        "expires_at": int(time.time()) + 900,
        "userinfo": profile,
    }
    monkeypatch.setattr(oauth, "_get_mocked_oauth_info", lambda: info)
    monkeypatch.setenv("OAUTH_CLIENT_ID", "of-the-space")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    page = start(str(small_model), str(small_dataset), server_name="127.0.0.1")
    try:
        signed_in = httpx2.get(f"{page.local_url}login/callback")
        cookie = {"cookie": signed_in.headers["set-cookie"].partition(";")[0]}
        for headers, message in (({}, "Sign in"), (cookie, "anna/corrected-cells-")):
            session = f"visitor {message}"
            for button in ("cells-try", "cells-push"):
                fn = function(page, button, "click")
                body = {"fn_index": fn._id, "session_hash": session, "data": []}
                post(f"{page.local_api_url}queue/join", body, headers)
                *_, (shown, *_) = answers(page, session)
            assert message in shown
        assert anna.dataset_info(re.search(r"anna/[\w-]+", shown)[0]).private
    finally:
        page.close()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written and not [path for path in written if TOKEN.encode() in path.read_bytes()]
    printed = capfd.readouterr()
    assert TOKEN not in printed.out + printed.err
