"""What is asked wrongly is answered with one sentence; what is asked rightly, with the headers of the real Hub."""

import hashlib
import json

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

import local_hub
from tests.local_hub.by_hand import http

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
    beyond = http.get(url, headers={"Range": "bytes=99999-"})
    assert (beyond.status_code, "25600 bytes" in beyond.json()["error"]) == (416, True)
    assert beyond.headers["Content-Range"] == f"bytes */{len(data)}"
    for ignored in ("bytes=x", "bytes=1-0", "bytes=", "items=0-5", "items", "bytes=" + "9" * 5000 + "-"):
        whole = http.get(url, headers={"Range": ignored})
        assert (whole.status_code, whole.content) == (200, data)
    assert http.get(url, headers={"If-None-Match": f'"{sha256}"'}).status_code == 304


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"files": 3}',
        b'{"files": [{}]}',
        b"{}",
        rb'{"name": "\ud800"}',
        pytest.param(b"[" * 200_000, id="deep list"),
        pytest.param(b'{"key": "header", "value": ' + b'{"a":' * 200_000, id="deep header"),
    ],
)
def test_a_malformed_request_gets_one_sentence(hub, name, body):
    headers = {"Authorization": f"Bearer {hub.token}"}
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
def test_what_no_answer_could_hold_is_not_stored(hub, name, address, body):
    headers = {"Authorization": f"Bearer {hub.token}"}
    url = f"{hub.endpoint}/api/{address.format(name)}"
    answer = http.post(url, content=json.dumps(body), headers=headers)
    assert (answer.status_code, "error" in answer.json()) == (400, True)
    assert [commit.title for commit in api.list_repo_commits(name)] == ["initial commit"]
    assert api.list_repo_refs(name).tags == []


def test_an_unknown_address_is_a_404_in_json(hub):
    answer = http.get(f"{hub.endpoint}/api/no/such/thing")
    assert (answer.status_code, "error" in answer.json()) == (404, True)


@pytest.mark.parametrize(
    ("word", "attempt"),
    [
        ("move_repo", lambda name: api.move_repo(name, f"{name}-moved")),
        ("super_squash_history", lambda name: api.super_squash_history(name)),
        ("variables", lambda name: api.add_space_variable(name, "KEY", "value")),
        ("secrets", lambda name: api.add_space_secret(name, "KEY", "value")),
        ("hf repos ls", lambda _: list(api.list_user_repos())),
    ],
)
def test_what_is_not_here_says_so(name, word, attempt):
    with pytest.raises(HfHubHTTPError, match="no such page or endpoint"):
        attempt(name)
    assert word in local_hub.__doc__


def test_a_method_that_an_address_has_not_is_a_405_in_json(hub, name):
    answer = http.post(f"{hub.endpoint}/api/models/{name}")
    assert (answer.status_code, "POST" in answer.json()["error"]) == (405, True)
    assert "GET" in answer.headers["Allow"]


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "cursor=-1", "limit=x"])
def test_a_page_that_cannot_be_is_refused(hub, name, query):
    answer = http.get(f"{hub.endpoint}/api/models/{name}/tree/main?{query}")
    assert (answer.status_code, query.split("=")[1] in answer.json()["error"]) == (400, True)
    whole_list = http.get(f"{hub.endpoint}/api/models?limit=-1")
    assert (whole_list.status_code, "-1" in whole_list.json()["error"]) == (400, True)
