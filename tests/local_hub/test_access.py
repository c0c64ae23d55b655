"""Private repos, other users' repos and files outside the Hub are out of reach."""

import hashlib
import socket
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from local_hub import HubError, LocalHub
from local_hub.storage import checked_path
from tests.local_hub.by_hand import add, announce_upload, commit_by_hand, http

api = HfApi()


@pytest.fixture
def two_users(tmp_path: Path):
    with LocalHub(tmp_path / "hub", tokens={"hf_anna": "anna", "hf_budi": "budi"}) as hub:
        yield hub


def test_a_private_repo_looks_missing_to_others(two_users):
    anna, budi, nobody = (HfApi(two_users.endpoint, token=token) for token in ("hf_anna", "hf_budi", False))
    anna.create_repo("anna/secret", private=True)
    anna.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="anna/secret")
    url = f"{two_users.endpoint}/anna/secret/resolve/main/a.txt"
    for other, status in ((budi, 404), (nobody, 401)):
        with pytest.raises(RepositoryNotFoundError) as error:
            other.model_info("anna/secret")
        assert error.value.response.status_code == status
        assert error.value.response.headers["X-Error-Code"] == "RepoNotFound"
        assert [model.id for model in other.list_models()] == []
    assert http.get(url).status_code == 401
    assert http.get(url, headers={"Authorization": "Bearer hf_budi"}).status_code == 404
    assert http.get(url, headers={"Authorization": "Bearer hf_anna"}).content == b"x"
    assert [model.id for model in anna.list_models()] == ["anna/secret"]
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
    for other, status in ((budi, 403), (nobody, 401)):
        for attempt in (
            lambda who: who.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="anna/open"),
            lambda who: who.create_branch("anna/open", branch="mine"),
            lambda who: who.update_repo_settings("anna/open", private=True),
            lambda who: who.delete_repo("anna/open"),
            lambda who: who.create_repo("anna/other"),
        ):
            with pytest.raises(HfHubHTTPError) as error:
                attempt(other)
            assert error.value.response.status_code == status
    assert anna.list_repo_files("anna/open") == [".gitattributes"]
    budi.create_repo("some-lab/shared")  # a namespace that is nobody's name is an organization
    anna.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="some-lab/shared")


def test_an_unknown_token_is_refused_by_name(hub, name):
    answer = http.get(f"{hub.endpoint}/api/models/{name}", headers={"Authorization": "Bearer hf_wrong"})
    assert answer.status_code == 401
    assert answer.headers["X-Error-Message"] == "Invalid credentials in Authorization header"
    assert "hf_wrong" not in answer.text


def test_an_upload_address_is_for_one_object_only(hub, name):
    data, other = b"announced", hashlib.sha256(b"other").hexdigest()
    sha256 = hashlib.sha256(data).hexdigest()
    with pytest.raises(httpx2.HTTPStatusError, match="401"):
        announce_upload(hub.endpoint, name, sha256, len(data), token="")
    href = announce_upload(hub.endpoint, name, sha256, len(data))["upload"]["href"]
    assert http.put(href.split("?")[0], content=data).status_code == 403
    assert http.put(href.replace(sha256, other), content=b"other").status_code == 403


ABOVE_OR_ODD = ["../x", "a/../../x", "/etc/x", "..", "", "a//b", "./a", "a/.", ".git/config"]
ABOVE_OR_ODD += ["a\\..\\b", "a\nb", "a\0b", "a\udcff"]


@pytest.mark.parametrize("path", ABOVE_OR_ODD)
def test_a_path_that_climbs_out_is_refused(hub, name, path):
    with pytest.raises(HubError):
        checked_path(path)
    answer = commit_by_hand(hub.endpoint, name, add(path))
    assert answer.status_code == 400
    assert "invalid path" in answer.json()["error"]
    assert api.list_repo_files(name) == [".gitattributes"]


ENCODED = ["..%2F..%2Frepo.json", "%2e%2e/%2e%2e/repo.json", "../../repo.json", "%2Fetc%2Fpasswd"]


@pytest.mark.parametrize("path", [*ENCODED, "..%5C..%5Crepo.json", "%00"])
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
