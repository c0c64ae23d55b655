"""Accounts, repos, branches and tags: the JSON API except for files and uploads.

In: `GET /api/models/OWNER/NAME` and its like. Out: JSON as `huggingface_hub` 2.4 parses it; its `hf_api.py` is the
reference.
"""

from __future__ import annotations

import hashlib
from typing import Any

from starlette.responses import JSONResponse, Response

from local_hub import cards
from local_hub.call import Call, truthy
from local_hub.files import lfs_fields
from local_hub.storage import HubError, Repository

REF_GROUPS = {"heads": "branches", "tags": "tags", "convert": "converts", "pr": "pullRequests"}


def object_id(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def whoami(call: Call) -> Response:
    name = call.user_or_refuse()
    auth = {"type": "access_token", "accessToken": {"displayName": "local", "role": "write"}}
    user = {"type": "user", "id": object_id(name), "name": name, "fullname": name}
    return JSONResponse({**user, "orgs": [], "isPro": False, "auth": auth})


def validate_yaml(call: Call) -> Response:
    body = call.json()
    errors, warnings = cards.check(body["content"], body.get("repoType") or "model")
    found = {"errors": errors, "warnings": warnings}
    answer = {level: [{"message": text} for text in texts] for level, texts in found.items()}
    return JSONResponse(answer, 400 if errors else 200)


# ---- repos
def repo_of_body(call: Call) -> tuple[dict[str, Any], Repository]:
    """The body of a create or delete request, and the repo that it names in a namespace of the user's."""
    body, user = call.json(), call.user_or_refuse()
    owner, _, name = body["name"].rpartition("/")
    owner = owner or body.get("organization") or user
    repo = call.hub.storage.repository(f"{body.get('type') or 'model'}s", owner, name)
    if not call.may_write(owner):
        raise HubError(403, None, f"{user} has no right to create or delete repos of {owner}")
    return body, repo


def wants_private(body: dict[str, Any]) -> bool:
    """Which of the two a body asks for, as `visibility` or, like older clients, as `private`."""
    visibility = body.get("visibility", "public")
    if visibility not in ("public", "private"):
        raise HubError(400, None, f'"visibility" must be public or private, not {visibility!r}')
    return bool(body.get("private")) or visibility == "private"


def create_repo(call: Call) -> Response:
    body, repo = repo_of_body(call)
    if (sdk := body.get("sdk")) not in (None, *cards.SPACE_CHOICES["sdk"]):
        raise HubError(
            400, None, f'"sdk" must be one of {", ".join(cards.SPACE_CHOICES["sdk"])}, not {sdk!r}'
        )
    settings = {"private": wants_private(body), "sdk": sdk}
    answer = {"url": f"{call.base_url}/{repo.url_path}", "name": repo.id, "id": repo.id}
    try:
        call.hub.storage.create(repo, settings, call.user_or_refuse())
    except HubError as error:  # with `exist_ok` the client takes the address from the refusal
        return JSONResponse(
            answer | {"error": error.message}, error.status, {"X-Error-Message": error.message}
        )
    return JSONResponse(answer)


def delete_repo(call: Call) -> Response:
    call.hub.storage.delete(repo_of_body(call)[1])
    return JSONResponse({})


def list_repos(call: Call) -> Response:
    query, found = call.query, []
    filters = {tag for value in query.getlist("filter") for tag in value.split(",")}
    for repo in call.hub.storage.repositories(call.kind):
        named = (
            query.get("search", "").lower() in repo.id.lower()
            and query.get("author", repo.owner) == repo.owner
        )
        if named and call.may_read(repo):
            info = repo_info(repo, "main")
            found += [info] if filters <= set(info["tags"]) else []
    return JSONResponse(found[: call.number("limit", len(found))])


def settings(call: Call) -> Response:
    repo, body = call.repository(write=True), call.json()
    if "private" in body or "visibility" in body:
        repo.update_settings(private=wants_private(body))
    return JSONResponse({"private": repo.settings()["private"]})


def auth_check(call: Call) -> Response:
    call.repository()
    return JSONResponse({})


def info(call: Call) -> Response:
    revision, blobs = call.params.get("revision", "main"), truthy(call.query.get("blobs"))
    return JSONResponse(repo_info(call.repository(), revision, blobs))


def repo_info(repo: Repository, revision: str, blobs: bool = False) -> dict[str, Any]:
    """What the Hub tells of a repo at a revision; with `blobs`, sizes and ids of its files, too."""
    sha = repo.resolve(revision)
    commit, settings = repo.commit(sha), repo.settings()
    card = cards.read_metadata(repo.read(commit, "README.md"))
    siblings = []
    for path, file in sorted(commit.files.items()):
        details = {"size": file.size, "blobId": file.oid, **lfs_fields(file, "sha256")} if blobs else {}
        siblings.append({"rfilename": path, **details})
    answer = {"_id": object_id(repo.url_path), "id": repo.id, "author": repo.owner, "sha": sha}
    answer |= {
        "createdAt": settings["createdAt"],
        "lastModified": commit.date,
        "private": settings["private"],
    }
    answer |= {"gated": False, "disabled": False, "downloads": 0, "likes": 0}
    answer |= {"tags": cards.tags(card), "cardData": card, "siblings": siblings}
    answer["usedStorage"] = sum(file.size for file in commit.files.values())
    if repo.kind == "models":
        answer |= {
            "modelId": repo.id,
            **{key: card[key] for key in ("library_name", "pipeline_tag") if key in card},
        }
        answer |= {"model-index": card["model-index"]} if card.get("model-index") else {}
    elif repo.kind == "spaces":
        hardware = {"current": None, "requested": None}
        answer |= {
            "sdk": card.get("sdk") or settings["sdk"],
            "runtime": {"stage": "STOPPED", "hardware": hardware},
        }
    return answer


# ---- commits, branches and tags
def commits(call: Call) -> Response:
    repo, found = call.repository(), []
    for sha, commit in repo.history(repo.resolve(call.params["revision"])):
        about = {"title": commit.title, "message": commit.message, "date": commit.date}
        found.append({"id": sha, **about, "authors": [{"user": commit.author}]})
    return JSONResponse(found, headers={"X-Total-Count": str(len(found))})


def refs(call: Call) -> Response:
    answer: dict[str, list[dict[str, str]]] = {title: [] for title in REF_GROUPS.values()}
    for ref, sha in call.repository().refs().items():
        group, name = ref.split("/", 1)
        answer[REF_GROUPS[group]].append({"name": name, "ref": f"refs/{ref}", "targetCommit": sha})
    return JSONResponse(answer)


def branch(call: Call) -> Response:
    repo, ref = call.repository(write=True), f"heads/{call.params['branch']}"
    if call.request.method == "DELETE":
        repo.delete_ref(ref)
    else:
        repo.create_ref(ref, repo.resolve(call.json().get("startingPoint") or "main"))
    return JSONResponse({})


def tag(call: Call) -> Response:
    repo, revision = call.repository(write=True), call.params["revision"]
    if call.request.method == "DELETE":
        repo.delete_ref(f"tags/{revision}")
    else:
        repo.create_ref(f"tags/{call.json()['tag']}", repo.resolve(revision))
    return JSONResponse({})
