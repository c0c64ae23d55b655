"""What must not happen: a lost or half a commit, a path that climbs out, a private file shown, another interface."""

import hashlib
import json
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

import local_hub
from local_hub import HubError, LocalHub
from local_hub.cards import check, read_metadata
from local_hub.storage import checked_path
from local_hub.uploads import is_ignored

api = HfApi()
http = httpx2.Client()


@pytest.fixture
def name(owner: str) -> str:
    return api.create_repo(f"{owner}/repo-{uuid.uuid4().hex[:8]}").repo_id


def commit_by_hand(
    endpoint: str, name: str, *lines: dict, token: str = "hf_localdev", revision: str = "main"
) -> httpx2.Response:
    """The last request of a push, without what a client would refuse to send."""
    header = {"key": "header", "value": {"summary": "by hand"}}
    body = "\n".join(json.dumps(line) for line in (header, *lines))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return http.post(f"{endpoint}/api/models/{name}/commit/{revision}", content=body, headers=headers)


def add(path: str, content: str = "x") -> dict:
    return {"key": "file", "value": {"path": path, "content": content}}


# ---- commits
def test_no_commit_is_lost_when_many_push_at_once(name):
    def push(number: int) -> None:
        operation = CommitOperationAdd(f"{number}.txt", str(number).encode())
        HfApi().create_commit(name, [operation], commit_message=f"push {number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(push, range(24)))
    assert {f"{number}.txt" for number in range(24)} <= set(api.list_repo_files(name))
    commits = api.list_repo_commits(name)
    assert len(commits) == 25
    assert {commit.title for commit in commits} == {"initial commit"} | {
        f"push {number}" for number in range(24)
    }


def test_of_two_pushes_on_one_parent_one_is_told_412(name):
    parent = api.list_repo_commits(name)[0].commit_id
    start, outcomes = threading.Barrier(6), []

    def push(number: int) -> None:
        start.wait()
        operation = CommitOperationAdd("same.txt", str(number).encode())
        try:
            HfApi().create_commit(name, [operation], commit_message="x", parent_commit=parent)
            outcomes.append(number)
        except HfHubHTTPError as error:
            outcomes.append(error.response.status_code)

    threads = [threading.Thread(target=push, args=(number,)) for number in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    winners = [outcome for outcome in outcomes if outcome != 412]
    assert len(outcomes) == 6
    assert len(winners) == 1
    assert Path(hf_hub_download(name, "same.txt")).read_text() == str(winners[0])


def test_a_tag_stays_where_it_is(hub, name):
    api.create_tag(name, tag="v1")
    assert commit_by_hand(hub.endpoint, name, add("a.txt"), revision="refs%2Ftags%2Fv1").status_code == 404
    assert commit_by_hand(hub.endpoint, name, add("a.txt"), revision="refs%2Fheads%2Fmain").status_code == 200
    assert api.list_repo_files(name, revision="v1") == [".gitattributes"]


@contextmanager
def hub_process(root: Path, **options: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A local Hub in a process of its own, that a test may kill; yields (process, endpoint)."""
    command = [sys.executable, "-m", "local_hub", "--root", str(root), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    try:
        lines = []
        while "# Ctrl-C" not in (lines[-1] if lines else ""):
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        exported = dict(
            line.removeprefix("export ").strip().split("=", 1) for line in lines if line.startswith("export")
        )
        yield process, exported["HF_ENDPOINT"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def upload_by_hand(endpoint: str, name: str, content: bytes) -> dict:
    """Send a large file, without the client's retries (they would wait for a dead server); its line of a commit."""
    sha256 = hashlib.sha256(content).hexdigest()
    wanted = {"operation": "upload", "objects": [{"oid": sha256, "size": len(content)}]}
    headers = {"Authorization": "Bearer hf_localdev"}
    answer = http.post(f"{endpoint}/{name}.git/info/lfs/objects/batch", json=wanted, headers=headers)
    target = answer.raise_for_status().json()["objects"][0]["actions"]["upload"]["href"]
    http.put(target, content=content).raise_for_status()
    return {"key": "lfsFile", "value": {"path": "weights.bin", "oid": sha256}}


def test_a_killed_hub_has_the_old_commit_or_the_new_one(tmp_path):
    """Commits of 40 regular files and a large one; the server is killed at moments spread over each."""
    root, name, rounds = tmp_path / "hub", "localdev/killed", 12

    def contents(version: int) -> dict[str, bytes]:
        files = {f"file {number}.txt": f"{version} {number}".encode() for number in range(40)}
        return files | {"weights.bin": b"%d\0" % version * 10_000}

    def commit(endpoint: str, version: int, started: Callable[[], object] = lambda: None) -> float:
        files = contents(version)
        lines = [upload_by_hand(endpoint, name, files.pop("weights.bin"))]
        lines += [add(path, content.decode()) for path, content in files.items()]
        started()
        start = time.perf_counter()
        commit_by_hand(endpoint, name, *lines).raise_for_status()
        return time.perf_counter() - start

    with hub_process(root) as (_, endpoint):
        HfApi(endpoint, token="hf_localdev").create_repo(name)
        seconds = commit(endpoint, 0)
    version, landed = 0, []
    for attempt in range(1, rounds + 1):
        with hub_process(root) as (process, endpoint):
            killer = threading.Timer(seconds * (attempt - 1) / (rounds - 2), process.kill)
            try:
                commit(endpoint, attempt, killer.start)
                acknowledged = True
            except httpx2.HTTPError:
                acknowledged = False
            killer.join()
        with LocalHub(root) as hub:
            client = HfApi(hub.endpoint)
            urls = {
                path: f"{hub.endpoint}/{name}/resolve/main/{path}" for path in client.list_repo_files(name)
            }
            found = {path: http.get(url).raise_for_status().content for path, url in urls.items()}
            commits = len(client.list_repo_commits(name))
            assert list((root / ".incoming").iterdir()) == []  # no rubbish is left
        del found[".gitattributes"]
        assert found in (contents(version), contents(attempt))  # one version, not a mixture
        landed.append(found == contents(attempt))
        assert landed[-1] or not acknowledged  # what was acknowledged stays
        version = attempt if landed[-1] else version
        assert commits == 2 + sum(landed)
    assert False in landed, "no kill fell into a commit"


def test_a_large_file_with_another_content_than_announced_is_not_kept(hub, name):
    right, wrong = b"right" * 1000, b"wrong" * 1000
    sha256 = hashlib.sha256(right).hexdigest()
    wanted = {"operation": "upload", "objects": [{"oid": sha256, "size": len(right)}]}
    headers = {"Authorization": f"Bearer {hub.token}"}
    answer = http.post(
        f"{hub.endpoint}/{name}.git/info/lfs/objects/batch", json=wanted, headers=headers
    ).json()
    actions = answer["objects"][0]["actions"]
    point = {"key": "lfsFile", "value": {"path": "a.bin", "oid": sha256}}
    assert http.put(actions["upload"]["href"], content=wrong).status_code == 422
    assert http.post(actions["verify"]["href"], json={"oid": sha256, "size": len(right)}).status_code == 422
    assert commit_by_hand(hub.endpoint, name, point).status_code == 400
    assert http.put(actions["upload"]["href"], content=right).status_code == 200
    assert commit_by_hand(hub.endpoint, name, point).status_code == 200
    assert http.get(f"{hub.endpoint}/{name}/resolve/main/a.bin").content == right


@contextmanager
def begun_upload(hub: LocalHub, name: str, content: bytes) -> Iterator[tuple[socket.socket, Path]]:
    """A PUT of a large file of which the first half has arrived; yields (connection, where it would be stored)."""
    sha256 = hashlib.sha256(content).hexdigest()
    wanted = {"operation": "upload", "objects": [{"oid": sha256, "size": len(content)}]}
    headers = {"Authorization": f"Bearer {hub.token}"}
    answer = http.post(
        f"{hub.endpoint}/{name}.git/info/lfs/objects/batch", json=wanted, headers=headers
    ).json()
    target = answer["objects"][0]["actions"]["upload"]["href"].removeprefix(hub.endpoint)
    with socket.create_connection(("127.0.0.1", hub.port)) as connection:
        head = f"PUT {target} HTTP/1.1\r\nHost: {hub.endpoint[7:]}\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content[: len(content) // 2])
        time.sleep(0.2)
        yield connection, hub.root / "models" / name / "lfs" / sha256


def test_content_that_is_not_what_it_says_is_refused(hub, name):
    line = upload_by_hand(hub.endpoint, name, b"x" * 100)
    line["value"]["size"] = 5
    for wrong in ("!!!!", "eA", "e A=="):
        value = add("a.txt", wrong)["value"] | {"encoding": "base64"}
        assert commit_by_hand(hub.endpoint, name, {"key": "file", "value": value}).status_code == 400
    answer = commit_by_hand(hub.endpoint, name, line)
    assert (answer.status_code, "100 bytes, not 5" in answer.json()["error"]) == (400, True)
    assert api.list_repo_files(name) == [".gitattributes"]


def test_an_upload_that_breaks_off_leaves_nothing(hub, name):
    with begun_upload(hub, name, b"x" * 100_000) as (_, stored):
        pass
    deadline = time.monotonic() + 5
    while list((hub.root / ".incoming").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list((hub.root / ".incoming").iterdir()) == []
    assert not stored.exists()


def test_an_upload_does_not_outlive_its_repo(hub, name):
    content = b"x" * 100_000
    with begun_upload(hub, name, content) as (connection, stored):
        api.delete_repo(name)
        connection.sendall(content[len(content) // 2 :])
        assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")
    assert not stored.parents[1].exists()
    stored.parent.mkdir(parents=True)  # as older hubs left it
    api.create_repo(name)
    assert api.list_repo_files(name) == [".gitattributes"]
    assert not stored.parent.exists()


def test_a_full_disk_is_answered_with_a_sentence_and_costs_nothing(tmp_path):
    """A limit on file sizes stands in for the disk: writing fails in the middle of a file, as it does when full."""

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    with hub_process(tmp_path / "hub", preexec_fn=limit_files) as (process, endpoint):
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


# ---- cards
@pytest.mark.parametrize(
    "line",
    [
        "score: .nan",
        "library_name: 2024-01-01",
        'x: "\\ud800"',
        "d: 2024-99-99",
        "x: !!bool maybe",
        "x: 1" + ":1" * 300 + ".5",
        "x: " + "9" * 5000,
        "x: 0x" + "f" * 5000,
        "x: " + "[" * 3000,
        "x:\n" + "- " * 600 + "y",
        "x: &x [*x]",
    ],
)
def test_no_card_makes_its_repo_or_a_list_unreadable(hub, owner, name, line):
    card = f"---\n{line}\n---\n"
    assert commit_by_hand(hub.endpoint, name, add("README.md", card)).status_code == 200
    assert api.model_info(name).id == name
    assert name in [model.id for model in api.list_models(author=owner)]
    assert "errors" in http.post(f"{hub.endpoint}/api/validate-yaml", json={"content": card}).json()


def test_of_a_card_json_gets_what_it_can_hold():
    card = '---\na: [.nan, -.inf, 1.5]\n2024-01-01: 2024-01-02\nb: "\\ud800"\n---\n'
    assert read_metadata(card) == {"a": [None, None, 1.5], "2024-01-01": "2024-01-02", "b": "?"}


def test_deep_brackets_are_refused_before_they_cost_time():
    errors, _ = check(f"---\nx: {'[' * 100_000}\n---\n", "model")
    assert errors == ["the metadata is not YAML: its brackets nest more than 100 deep"]
    assert check(f"---\nx: {'[' * 100}{']' * 100}\n---\n", "model") == ([], [])


def test_a_card_whose_aliases_unfold_to_billions_of_values_has_no_metadata():
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 1}]" for i in range(12))
    assert read_metadata(f"---\n{levels}\n---\n") == {}
    assert read_metadata("---\na: &a [1]\nb: *a\n---\n") == {"a": [1], "b": [1]}


# ---- tokens
@pytest.fixture
def two_users(tmp_path: Path):
    with LocalHub(tmp_path / "hub", tokens={"hf_anna": "anna", "hf_budi": "budi"}) as hub:
        yield hub


def test_a_private_repo_looks_missing_to_strangers(two_users):
    anna, budi, nobody = (HfApi(two_users.endpoint, token=token) for token in ("hf_anna", "hf_budi", False))
    anna.create_repo("anna/secret", private=True)
    anna.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="anna/secret")
    url = f"{two_users.endpoint}/anna/secret/resolve/main/a.txt"
    for stranger, status in ((budi, 404), (nobody, 401)):
        with pytest.raises(RepositoryNotFoundError) as error:
            stranger.model_info("anna/secret")
        assert error.value.response.status_code == status
        assert error.value.response.headers["X-Error-Code"] == "RepoNotFound"
        assert [model.id for model in stranger.list_models()] == []
    assert http.get(url).status_code == 401
    assert http.get(url, headers={"Authorization": "Bearer hf_budi"}).status_code == 404
    assert http.get(url, headers={"Authorization": "Bearer hf_anna"}).content == b"x"
    assert [model.id for model in anna.list_models()] == ["anna/secret"]
    anna.auth_check("anna/secret")
    with pytest.raises(RepositoryNotFoundError):
        budi.auth_check("anna/secret")
    anna.update_repo_settings("anna/secret", private=False)
    assert budi.model_info("anna/secret").private is False


@pytest.mark.parametrize("visibility", ["zzz", "protected", "", None, ["private"]])
def test_an_unknown_visibility_makes_nothing_public(hub, name, visibility):
    api.update_repo_settings(name, private=True)
    headers, body = {"Authorization": f"Bearer {hub.token}"}, {"visibility": visibility}
    url = f"{hub.endpoint}/api/models/{name}/settings"
    assert http.put(url, json=body, headers=headers).status_code == 400
    assert api.model_info(name).private
    body["name"] = f"{name.split('/')[1]}-2"
    assert http.post(f"{hub.endpoint}/api/repos/create", json=body, headers=headers).status_code == 400


def test_only_the_owner_writes(two_users):
    anna, budi, nobody = (HfApi(two_users.endpoint, token=token) for token in ("hf_anna", "hf_budi", False))
    anna.create_repo("anna/open")
    for stranger, status in ((budi, 403), (nobody, 401)):
        for attempt in (
            lambda who: who.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="anna/open"),
            lambda who: who.create_branch("anna/open", branch="mine"),
            lambda who: who.update_repo_settings("anna/open", private=True),
            lambda who: who.delete_repo("anna/open"),
            lambda who: who.create_repo("anna/other"),
        ):
            with pytest.raises(HfHubHTTPError) as error:
                attempt(stranger)
            assert error.value.response.status_code == status
    proposal = budi.upload_file(
        path_or_fileobj=b"x", path_in_repo="a.bin", repo_id="anna/open", create_pr=True
    )
    assert proposal.pr_num == 1  # proposing is for all
    assert anna.list_repo_files("anna/open") == [".gitattributes"]
    budi.create_repo("some-lab/shared")  # a namespace that is nobody's name is an organization
    anna.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="some-lab/shared")


def test_an_unknown_token_is_refused_by_name(hub, name):
    answer = http.get(f"{hub.endpoint}/api/models/{name}", headers={"Authorization": "Bearer hf_wrong"})
    assert (answer.status_code, answer.headers["X-Error-Message"]) == (
        401,
        "Invalid credentials in Authorization header",
    )
    assert "hf_wrong" not in answer.text


def test_an_upload_address_is_for_one_object_only(hub, name):
    data, other = b"announced", hashlib.sha256(b"other").hexdigest()
    wanted = {
        "operation": "upload",
        "objects": [{"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}],
    }
    batch = f"{hub.endpoint}/{name}.git/info/lfs/objects/batch"
    assert http.post(batch, json=wanted).status_code == 401
    answer = http.post(batch, json=wanted, headers={"Authorization": f"Bearer {hub.token}"}).json()
    href = answer["objects"][0]["actions"]["upload"]["href"]
    assert http.put(href.split("?")[0], content=data).status_code == 403
    assert (
        http.put(href.replace(hashlib.sha256(data).hexdigest(), other), content=b"other").status_code == 403
    )


# ---- paths
@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "a/../../x",
        "/etc/x",
        "a//b",
        "./a",
        "a/.",
        "..",
        "",
        ".git/config",
        "a\\..\\b",
        "a\nb",
        "a\0b",
        "a\udcff",
    ],
)
def test_a_path_that_climbs_out_is_refused(hub, name, path):
    with pytest.raises(HubError):
        checked_path(path)
    answer = commit_by_hand(hub.endpoint, name, add(path))
    assert answer.status_code == 400
    assert "invalid path" in answer.json()["error"]
    assert api.list_repo_files(name) == [".gitattributes"]


@pytest.mark.parametrize(
    "path",
    [
        "..%2F..%2Frepo.json",
        "%2e%2e/%2e%2e/repo.json",
        "../../repo.json",
        "%2Fetc%2Fpasswd",
        "..%5C..%5Crepo.json",
        "%00",
    ],
)
def test_no_address_reaches_a_file_of_this_disk(hub, name, path):
    for address in (
        f"/{name}/resolve/main/{path}",
        f"/{name}/resolve/{path}/main",
        f"/api/models/{name}/tree/main/{path}",
        f"/api/models/{path}/{path}",
        f"/api/models/{name}/revision/{path}",
        f"/lfs-objects/models/{name}/{path}",
    ):
        request = f"GET {address} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"  # a client would tidy the path up
        with socket.create_connection(("127.0.0.1", hub.port)) as connection:
            connection.sendall(request.encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.split()[1] in (b"400", b"401", b"404", b"405"), address
        assert b"createdAt" not in answer
        assert b"root:" not in answer


@pytest.mark.parametrize("bad", ["..", "a..b", "-a", "a.git", "a b", "ä", "x" * 97, "a--b", "."])
def test_a_repo_name_that_the_hub_would_refuse_is_refused(hub, bad):
    headers = {"Authorization": f"Bearer {hub.token}"}
    for body in (
        {"name": bad},
        {"name": "fine", "organization": bad},
        {"name": "x", "organization": "datasets"},
    ):
        answer = http.post(f"{hub.endpoint}/api/repos/create", json=body, headers=headers)
        assert (answer.status_code, "invalid repository" in answer.json()["error"]) == (400, True)


# ---- requests
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


# ---- the program
def run_hub(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "local_hub", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "localhost", ""])
def test_another_interface_is_refused_with_one_sentence(tmp_path, host):
    done = run_hub("--root", str(tmp_path / "hub"), "--host", host)
    assert done.returncode == 1
    assert done.stderr.startswith("local_hub serves 127.0.0.1 only")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "hub").exists()


def test_it_listens_on_127_0_0_1_only(hub):
    hexadecimal = f"0100007F:{hub.port:04X}"
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()
    ]
    listening = [
        fields[1] for fields in lines if fields[3] == "0A" and fields[1].endswith(f":{hub.port:04X}")
    ]
    assert listening == [hexadecimal]


def test_what_cannot_be_used_is_named_in_one_sentence(hub, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, words in (
        (("--root", str(hub.root)), "already serves"),
        (("--root", str(tmp_path / "file")), "cannot be used"),
        (("--root", str(tmp_path / "a"), "--port", str(hub.port)), "in use"),
        (("--root", str(tmp_path / "b"), "--port", "99999"), "port 99999"),
        (("--root", str(tmp_path / "c"), "--token", ":x"), "--token takes"),
        (("--root", ""), "--root takes"),
    ):
        done = run_hub(*arguments)
        assert done.returncode == 1
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_chosen_token_is_neither_printed_nor_stored(tmp_path):
    root = tmp_path / "hub"
    command = [
        sys.executable,
        "-m",
        "local_hub",
        "--root",
        str(root),
        "--port",
        "0",
        "--token",
        "hf_marked:anna",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    while "# Ctrl-C" not in (lines[-1] if lines else ""):
        lines.append(process.stdout.readline())
        assert lines[-1]
    endpoint = next(line for line in lines if "HF_ENDPOINT" in line).strip().split("=")[1]
    client = HfApi(endpoint, token="hf_marked")
    client.create_repo("anna/x")
    client.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="anna/x")
    process.send_signal(signal.SIGTERM)
    output = "".join(lines) + process.communicate(timeout=20)[0]
    assert process.returncode == 0
    stored = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
    assert "hf_marked" not in output
    assert b"hf_marked" not in stored
    assert b"anna" in stored


def test_what_was_pushed_is_there_after_a_restart(tmp_path):
    with LocalHub(tmp_path) as hub:
        client = HfApi(hub.endpoint, token=hub.token)
        client.create_repo("localdev/kept")
        client.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="localdev/kept")
    with LocalHub(tmp_path) as hub:
        assert HfApi(hub.endpoint).list_repo_files("localdev/kept") == [".gitattributes", "a.txt"]


# ---- .gitignore
@pytest.mark.parametrize(
    ("lines", "path", "ignored"),
    [
        (["*.pyc"], "a/b.pyc", True),
        (["*.pyc", "!keep.pyc"], "a/keep.pyc", False),
        (["/build"], "build/x", True),
        (["/build"], "src/build/x", False),
        (["build/"], "src/build/x", True),
        (["build/"], "src/build", False),
        (["# a.txt", ""], "a.txt", False),
        (["docs/*.md"], "docs/a.md", True),
        (["docs/*.md"], "a.md", False),
    ],
)
def test_gitignore_lines(lines, path, ignored):
    assert is_ignored(path, lines) is ignored
