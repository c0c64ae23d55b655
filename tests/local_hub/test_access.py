"""Private repos, other users' repos and files outside the Hub are out of reach."""

import hashlib
import socket

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from local_hub import HubError
from local_hub.storage import checked_path
from tests.local_hub.raw_requests import add, authorization, http, post_commit, request_upload

api = HfApi()


def test_a_private_repo_looks_missing_to_others(users):
    anna, budi, nobody = users
    anna.create_repo("anna/secret", private=True)
    anna.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="anna/secret")
    url = f"{anna.endpoint}/anna/secret/resolve/main/a.txt"
    for other, status in ((budi, 404), (nobody, 401)):
        with pytest.raises(RepositoryNotFoundError) as error:
            other.model_info("anna/secret")
        assert error.value.response.status_code == status
        assert error.value.response.headers["X-Error-Code"] == "RepoNotFound"
        assert [model.id for model in other.list_models()] == []
    assert http.get(url).status_code == 401
    assert http.get(url, headers=authorization("hf_budi")).status_code == 404
    assert http.get(url, headers=authorization("hf_anna")).content == b"x"
    assert [model.id for model in anna.list_models()] == ["anna/secret"]
    anna.update_repo_settings("anna/secret", private=False)
    assert budi.model_info("anna/secret").private is False


@pytest.mark.parametrize("visibility", ["zzz", "protected", "", None, ["private"]])
def test_an_unknown_visibility_makes_nothing_public(hub, headers, name, visibility):
    api.update_repo_settings(name, private=True)
    body = {"visibility": visibility}
    url = f"{hub.endpoint}/api/models/{name}/settings"
    assert http.put(url, json=body, headers=headers).status_code == 400
    assert api.model_info(name).private
    body["name"] = f"{name.split('/')[1]}-2"
    assert http.post(f"{hub.endpoint}/api/repos/create", json=body, headers=headers).status_code == 400


def test_only_the_owner_writes(users):
    anna, budi, nobody = users
    anna.create_repo("anna/open")
    for other, status in ((budi, 403), (nobody, 401)):
        for attempt in (
            lambda who: who.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="anna/open"),
            lambda who: who.create_branch("anna/open", branch="other"),
            lambda who: who.update_repo_settings("anna/open", private=True),
            lambda who: who.delete_repo("anna/open"),
            lambda who: who.create_repo("anna/other"),
        ):
            with pytest.raises(HfHubHTTPError) as error:
                attempt(other)
            assert error.value.response.status_code == status
    assert anna.list_repo_files("anna/open") == [".gitattributes"]
    budi.create_repo("some-lab/shared")  # a namespace that is not a user is an organization
    anna.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="some-lab/shared")


def test_only_the_owner_gets_an_upload_url(users):
    anna, _, _ = users
    anna.create_repo("anna/open")
    with pytest.raises(httpx2.HTTPStatusError, match="403"):
        request_upload(anna.endpoint, "anna/open", "0" * 64, 1, token="hf_budi")
    assert request_upload(anna.endpoint, "anna/open", "0" * 64, 1, token="hf_anna")


def test_an_unknown_token_is_refused_by_name(hub, name):
    answer = http.get(f"{hub.endpoint}/api/models/{name}", headers=authorization("hf_wrong"))
    assert answer.status_code == 401
    assert answer.headers["X-Error-Message"] == "Invalid credentials in Authorization header"
    assert "hf_wrong" not in answer.text


def test_an_upload_url_is_for_one_object_only(hub, name):
    data, other = b"announced", hashlib.sha256(b"other").hexdigest()
    sha256 = hashlib.sha256(data).hexdigest()
    with pytest.raises(httpx2.HTTPStatusError, match="401"):
        request_upload(hub.endpoint, name, sha256, len(data), token="")
    url = request_upload(hub.endpoint, name, sha256, len(data))
    assert http.put(url.split("?")[0], content=data).status_code == 403
    assert http.put(url.replace(sha256, other), content=b"other").status_code == 403


INVALID = ["../x", "a/../../x", "/etc/x", "..", "", "a//b", "./a", "a/.", ".git/config"]
INVALID += ["a\\..\\b", "a\nb", "a\0b", "a\udcff"]


@pytest.mark.parametrize("path", INVALID)
def test_an_invalid_path_or_one_outside_the_repo_is_refused(hub, name, path):
    with pytest.raises(HubError):
        checked_path(path)
    answer = post_commit(hub.endpoint, name, add(path))
    assert answer.status_code == 400
    assert "invalid path" in answer.json()["error"]
    assert api.list_repo_files(name) == [".gitattributes"]


ENCODED = ["..%2F..%2Frepo.json", "%2e%2e/%2e%2e/repo.json", "../../repo.json", "%2Fetc%2Fpasswd"]


@pytest.mark.parametrize("path", [*ENCODED, "..%5C..%5Crepo.json", "%00"])
def test_no_url_reaches_a_file_outside_the_repos(hub, name, path):
    for address in (
        f"/{name}/resolve/main/{path}",
        f"/{name}/resolve/{path}/main",
        f"/api/models/{name}/tree/main/{path}",
        f"/api/models/{path}/{path}",
        f"/api/models/{name}/revision/{path}",
        f"/lfs-objects/models/{name}/{path}",
    ):
        request = f"GET {address} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"  # a client would normalize the path
        with socket.create_connection(("127.0.0.1", hub.port)) as connection:
            connection.sendall(request.encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.split()[1] in (b"400", b"401", b"404", b"405"), address
        assert b"createdAt" not in answer
        assert b"root:" not in answer


@pytest.mark.parametrize("bad", ["..", "a..b", "-a", "a.git", "a b", "ä", "x" * 97, "a--b", "."])
def test_a_repo_name_that_the_hub_would_refuse_is_refused(hub, headers, bad):
    for body in (
        {"name": bad},
        {"name": "x", "organization": bad},
        {"name": "x", "organization": "datasets"},
    ):
        answer = http.post(f"{hub.endpoint}/api/repos/create", json=body, headers=headers)
        assert (answer.status_code, "invalid repository" in answer.json()["error"]) == (400, True)
