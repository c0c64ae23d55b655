"""Malformed requests get one sentence; well-formed ones the headers of the real Hub."""

import hashlib
import json

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

import local_hub
from tests.local_hub.raw_requests import http

api = HfApi()


def test_ranges_and_headers_of_a_file(hub, name):
    data = bytes(range(256)) * 100
    api.upload_file(path_or_fileobj=data, path_in_repo="ü.bin", repo_id=name)
    url = f"{hub.endpoint}/{name}/resolve/main/%C3%BC.bin"
    head = http.head(url)
    sha256 = hashlib.sha256(data).hexdigest()
    assert head.headers["ETag"] == head.headers["X-Linked-Etag"] == f'"{sha256}"'
    assert head.headers["Content-Length"] == head.headers["X-Linked-Size"] == str(len(data))
    assert head.headers["X-Repo-Commit"] == api.list_repo_commits(name)[0].commit_id
    part = http.get(url, headers={"Range": "bytes=1000-1099"})
    assert (part.status_code, part.content) == (206, data[1000:1100])
    assert part.headers["Content-Range"] == f"bytes 1000-1099/{len(data)}"
    assert http.get(url, headers={"Range": "bytes=-5"}).content == data[-5:]
    assert http.get(url, headers={"Range": "bytes=25590-"}).content == data[25590:]
    assert http.get(url, headers={"Range": "bytes=99999-"}).status_code == 416


MALFORMED = [
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b"{}",
    b'{"files": 3}',
    b'{"files": [{}]}',
    rb'{"name": "\ud800"}',
]
DEEP = b'{"key": "header", "value": ' + b'{"a":' * 200_000


@pytest.mark.parametrize(
    "body",
    [*MALFORMED, pytest.param(b"[" * 200_000, id="deep list"), pytest.param(DEEP, id="deep header")],
)
def test_a_malformed_request_gets_one_sentence(hub, headers, name, body):
    for address in (
        f"/api/models/{name}/preupload/main",
        f"/api/models/{name}/commit/main",
        "/api/repos/create",
        "/api/validate-yaml",
    ):
        answer = http.post(hub.endpoint + address, content=body, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]
        assert "\n" not in answer.json()["error"]
    assert [commit.title for commit in api.list_repo_commits(name)] == ["initial commit"]


@pytest.mark.parametrize(
    ("address", "body"),
    [
        ("models/{}/commit/main", {"key": "header", "value": {"summary": 5}}),
        ("models/{}/commit/main", {"key": "header", "value": {"summary": "x", "description": ["x"]}}),
        ("models/{}/commit/main", {"key": "header", "value": {"summary": "\ud800"}}),
        ("models/{}/tag/main", {"tag": "v1\ud800"}),
        ("repos/create", {"name": "x", "type": "space", "sdk": "\ud800"}),
    ],
)
def test_text_that_is_not_valid_in_json_is_not_stored(hub, headers, name, address, body):
    url = f"{hub.endpoint}/api/{address.format(name)}"
    answer = http.post(url, content=json.dumps(body), headers=headers)
    assert (answer.status_code, "error" in answer.json()) == (400, True)
    assert [commit.title for commit in api.list_repo_commits(name)] == ["initial commit"]
    assert api.list_repo_refs(name).tags == []


def test_an_unknown_url_is_a_404_in_json(hub):
    answer = http.get(f"{hub.endpoint}/api/no/such/thing")
    assert (answer.status_code, "error" in answer.json()) == (404, True)


@pytest.mark.parametrize(
    ("word", "attempt"),
    [
        ("move_repo", lambda name: api.move_repo(name, f"{name}-moved")),
        ("super_squash_history", lambda name: api.super_squash_history(name)),
        ("auth_check", lambda name: api.auth_check(name)),
        ("variables", lambda name: api.add_space_variable(name, "KEY", "value")),
        ("secrets", lambda name: api.add_space_secret(name, "KEY", "value")),
        ("hf repos ls", lambda _: list(api.list_user_repos())),
    ],
)
def test_an_unimplemented_endpoint_says_so_and_is_documented(name, word, attempt):
    with pytest.raises(HfHubHTTPError, match="no such page or endpoint"):
        attempt(name)
    assert word in local_hub.__doc__


def test_a_pull_request_is_refused_and_that_is_documented(name):
    with pytest.raises(HfHubHTTPError, match="no pull requests"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=name, create_pr=True)
    assert "pull requests" in local_hub.__doc__


def test_an_unsupported_method_is_a_405_in_json(hub, name):
    answer = http.post(f"{hub.endpoint}/api/models/{name}")
    assert (answer.status_code, "POST" in answer.json()["error"]) == (405, True)
    assert "GET" in answer.headers["Allow"]
