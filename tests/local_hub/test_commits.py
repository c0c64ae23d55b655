"""Commits and uploads are atomic and verified."""

import hashlib
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from local_hub import LocalHub
from tests.local_hub.raw_requests import add, http, hub_process, post_commit, request_upload
from tests.stress.processes import wait_for

api = HfApi()


def test_no_commit_is_lost_when_many_push_at_once(name):
    def push(number: int) -> None:
        operation = CommitOperationAdd(f"{number}.txt", str(number).encode())
        HfApi().create_commit(name, [operation], commit_message=f"push {number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(push, range(24)))
    assert {f"{number}.txt" for number in range(24)} <= set(api.list_repo_files(name))
    commits = api.list_repo_commits(name)
    assert len(commits) == 25
    assert {commit.title for commit in commits} == {"initial commit", *(f"push {i}" for i in range(24))}


def test_of_concurrent_pushes_with_one_parent_all_but_one_get_412(name):
    parent = api.list_repo_commits(name)[0].commit_id
    start = threading.Barrier(6)

    def push(number: int) -> int:
        """Return the number if the push succeeds, else the HTTP status."""
        start.wait()
        operation = CommitOperationAdd("same.txt", str(number).encode())
        try:
            HfApi().create_commit(name, [operation], commit_message="x", parent_commit=parent)
        except HfHubHTTPError as error:
            return error.response.status_code
        return number

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(push, range(6)))
    winners = [outcome for outcome in outcomes if outcome != 412]
    assert len(outcomes) == 6
    assert len(winners) == 1
    assert Path(hf_hub_download(name, "same.txt")).read_text() == str(winners[0])


def test_a_tag_cannot_be_committed_to(hub, name):
    api.create_tag(name, tag="v1")
    assert post_commit(hub.endpoint, name, add("a.txt"), revision="refs%2Ftags%2Fv1").status_code == 404
    assert post_commit(hub.endpoint, name, add("a.txt"), revision="refs%2Fheads%2Fmain").status_code == 200
    assert api.list_repo_files(name, revision="v1") == [".gitattributes"]


def upload(endpoint: str, name: str, content: bytes) -> dict:
    """Upload an LFS file, without the client's retries (they would wait for a dead server); return its commit line."""
    sha256 = hashlib.sha256(content).hexdigest()
    url = request_upload(endpoint, name, sha256, len(content))
    http.put(url, content=content).raise_for_status()
    return {"key": "lfsFile", "value": {"path": "weights.bin", "oid": sha256}}


def test_a_killed_hub_has_the_old_commit_or_the_new_one(tmp_path):
    """Commits of 40 regular files and an LFS file; the server is killed at times spread over the duration of a commit."""
    root, name, rounds = tmp_path / "hub", "localdev/killed", 12

    def contents(version: int) -> dict[str, bytes]:
        files = {f"file {number}.txt": f"{version} {number}".encode() for number in range(40)}
        return files | {"weights.bin": b"%d\0" % version * 10_000}

    def commit(endpoint: str, version: int, started: Callable[[], object] = lambda: None) -> float:
        files = contents(version)
        lines = [upload(endpoint, name, files.pop("weights.bin"))]
        lines += [add(path, content.decode()) for path, content in files.items()]
        started()
        start = time.perf_counter()
        post_commit(endpoint, name, *lines).raise_for_status()
        return time.perf_counter() - start

    with hub_process(root) as (_, endpoint, _):
        HfApi(endpoint, token="hf_localdev").create_repo(name)
        seconds = commit(endpoint, 0)
    version, committed = 0, []
    for attempt in range(1, rounds + 1):
        with hub_process(root) as (process, endpoint, _):
            killer = threading.Timer(seconds * (attempt - 1) / (rounds - 2), process.kill)
            try:
                commit(endpoint, attempt, killer.start)
                acknowledged = True
            except httpx2.HTTPError:
                acknowledged = False
            killer.join()
        with LocalHub(root) as hub:
            client = HfApi(hub.endpoint)
            url = f"{hub.endpoint}/{name}/resolve/main"
            paths = client.list_repo_files(name)
            files = {path: http.get(f"{url}/{path}").raise_for_status().content for path in paths}
            commits = len(client.list_repo_commits(name))
            assert list((root / ".incoming").iterdir()) == []  # no temporary files are left
        del files[".gitattributes"]
        assert files in (contents(version), contents(attempt))  # one version, not a mixture
        committed.append(files == contents(attempt))
        assert committed[-1] or not acknowledged  # an acknowledged commit is never lost
        version = attempt if committed[-1] else version
        assert commits == 2 + sum(committed)
    assert False in committed, "no kill fell into a commit"


def test_an_lfs_upload_whose_content_has_another_hash_is_refused(hub, name):
    right, wrong = b"right" * 1000, b"wrong" * 1000
    sha256 = hashlib.sha256(right).hexdigest()
    url = request_upload(hub.endpoint, name, sha256, len(right))
    line = {"key": "lfsFile", "value": {"path": "a.bin", "oid": sha256}}
    assert http.put(url, content=wrong).status_code == 422
    assert post_commit(hub.endpoint, name, line).status_code == 400
    assert http.put(url, content=right).status_code == 200
    assert post_commit(hub.endpoint, name, line).status_code == 200
    assert http.get(f"{hub.endpoint}/{name}/resolve/main/a.bin").content == right


@contextmanager
def half_uploaded(hub: LocalHub, name: str, content: bytes) -> Iterator[tuple[socket.socket, Path]]:
    """A PUT of an LFS file whose first half has arrived; yields (connection, path where it would be stored)."""
    sha256 = hashlib.sha256(content).hexdigest()
    target = request_upload(hub.endpoint, name, sha256, len(content)).removeprefix(hub.endpoint)
    with socket.create_connection(("127.0.0.1", hub.port)) as connection:
        head = f"PUT {target} HTTP/1.1\r\nHost: {hub.endpoint[7:]}\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content[: len(content) // 2])
        wait_for(lambda: list((hub.root / ".incoming").iterdir()), seconds=20)
        yield connection, hub.root / "models" / name / "lfs" / sha256


def test_an_interrupted_upload_leaves_nothing(hub, name):
    with half_uploaded(hub, name, b"x" * 100_000) as (_, stored):
        pass
    wait_for(lambda: not list((hub.root / ".incoming").iterdir()), seconds=20)
    assert not stored.exists()


def test_an_upload_does_not_outlive_its_repo(hub, name):
    content = b"x" * 100_000
    with half_uploaded(hub, name, content) as (connection, stored):
        api.delete_repo(name)
        connection.sendall(content[len(content) // 2 :])
        assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")
    assert not stored.parents[1].exists()


def test_content_that_differs_from_its_description_is_refused(hub, name):
    line = upload(hub.endpoint, name, b"x" * 100)
    line["value"]["size"] = 5
    for wrong in ("!!!!", "eA", "e A=="):
        value = add("a.txt", wrong)["value"] | {"encoding": "base64"}
        assert post_commit(hub.endpoint, name, {"key": "file", "value": value}).status_code == 400
    answer = post_commit(hub.endpoint, name, line)
    assert (answer.status_code, "100 bytes, not 5" in answer.json()["error"]) == (400, True)
    assert api.list_repo_files(name) == [".gitattributes"]


def test_a_full_disk_is_a_507_and_loses_nothing(tmp_path):
    """A file size limit stands in for the full disk: a write fails in the middle of a file."""

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    with hub_process(tmp_path / "hub", preexec_fn=limit_files) as (process, endpoint, _):
        client = HfApi(endpoint, token="hf_localdev")
        client.create_repo("localdev/full")
        for path in ("large.bin", "regular.txt"):
            with pytest.raises((HfHubHTTPError, RuntimeError)) as error:
                client.upload_file(path_or_fileobj=b"x" * 200_000, path_in_repo=path, repo_id="localdev/full")
            http_error = error.value if path == "regular.txt" else error.value.__cause__
            assert http_error.response.status_code == 507
            assert "storage failed" in http_error.response.headers["X-Error-Message"]
            assert list((tmp_path / "hub" / ".incoming").iterdir()) == []
        client.upload_file(path_or_fileobj=b"x" * 20_000, path_in_repo="small.bin", repo_id="localdev/full")
        assert client.list_repo_files("localdev/full") == [".gitattributes", "small.bin"]
        assert process.poll() is None
