"""The JSON API of accounts, repos, branches and tags, as `huggingface_hub` 2.4 parses it (reference: its `hf_api.py`)."""

from __future__ import annotations

import fnmatch
from typing import Any

from starlette.responses import JSONResponse, Response

from local_hub import cards
from local_hub.request import HubRequest
from local_hub.storage import HubError, Repository, object_id

REF_GROUPS = {"heads": "branches", "tags": "tags"}


def whoami(request: HubRequest) -> Response:
    name = request.require_user()
    auth = {"type": "access_token", "accessToken": {"displayName": "local", "role": "write"}}
    user = {"type": "user", "id": object_id(name), "name": name, "fullname": name}
    return JSONResponse({**user, "orgs": [], "isPro": False, "auth": auth})


def validate_yaml(request: HubRequest) -> Response:
    body = request.json()
    errors, warnings = cards.validate(body["content"], body.get("repoType") or "model")
    levels = {"errors": errors, "warnings": warnings}
    answer = {level: [{"message": text} for text in texts] for level, texts in levels.items()}
    return JSONResponse(answer, 400 if errors else 200)


# ---- repos
def repo_of_body(request: HubRequest) -> tuple[dict[str, Any], Repository]:
    """The body of a create or delete request and its repo, in a namespace that the user may write to."""
    body, user = request.json(), request.require_user()
    owner, _, name = body["name"].rpartition("/")
    owner = owner or body.get("organization") or user
    repo = request.storage.repository(f"{body.get('type') or 'model'}s", owner, name)
    if not request.may_write(owner):
        raise HubError(403, f"{user} has no right to create or delete repos of {owner}")
    return body, repo


def wants_private(body: dict[str, Any]) -> bool:
    """Whether a body asks for a private repo, as `visibility` or, from older clients, as `private`."""
    visibility = body.get("visibility", "public")
    if visibility not in ("public", "private"):
        raise HubError(400, f'"visibility" must be public or private, not {visibility!r}')
    return bool(body.get("private")) or visibility == "private"


def create_repo(request: HubRequest) -> Response:
    body, repo = repo_of_body(request)
    sdk, sdks = body.get("sdk"), cards.SPACE_CHOICES["sdk"]
    if sdk not in (None, *sdks):
        raise HubError(400, f'"sdk" must be one of {", ".join(sdks)}, not {sdk!r}')
    answer = {"url": f"{request.base_url}/{repo.url_path}", "name": repo.id, "id": repo.id}
    try:
        settings = {"private": wants_private(body), "sdk": sdk}
        request.storage.create(repo, settings, request.require_user())
    except HubError as error:  # with `exist_ok` the client reads the URL from the error response
        refusal = answer | {"error": error.message}
        return JSONResponse(refusal, error.status, {"X-Error-Message": error.message})
    return JSONResponse(answer)


def delete_repo(request: HubRequest) -> Response:
    request.storage.delete(repo_of_body(request)[1])
    return JSONResponse({})


def list_repos(request: HubRequest) -> Response:
    query = request.query
    search, author = query.get("search", "").lower(), query.get("author")
    tags = {tag for value in query.getlist("filter") for tag in value.split(",")}
    repos = (
        repo_info(repo, "main")
        for repo in request.storage.repositories(request.kind)
        if search in repo.id.lower() and author in (None, repo.owner) and request.may_read(repo)
    )
    return JSONResponse([repo for repo in repos if tags <= set(repo["tags"])])


def settings(request: HubRequest) -> Response:
    repo, body = request.repository(write=True), request.json()
    if "private" in body or "visibility" in body:
        repo.update_settings(private=wants_private(body))
    return JSONResponse({"private": repo.settings()["private"]})


def info(request: HubRequest) -> Response:
    repo, revision = request.repository(), request.params.get("revision", "main")
    answer = repo_info(repo, revision, request.flag("blobs"))
    if "evalResults" in request.query.getlist("expand"):
        answer["evalResults"] = eval_results(repo, revision)
    return JSONResponse(answer)


def eval_results(repo: Repository, revision: str) -> list[dict[str, Any]]:
    """The entries of `.eval_results/*.yaml`, or the error of an invalid file."""
    commit, results = repo.commit(repo.resolve(revision)), []
    for path in fnmatch.filter(sorted(commit.files), ".eval_results/*.yaml"):
        try:
            entries = cards.read_eval_results(repo.read(commit, path))
            results += [{"filename": path, "data": entry} for entry in entries]
        except ValueError as error:
            results.append({"filename": path, "error": str(error)})
    return results


def repo_info(repo: Repository, revision: str, blobs: bool = False) -> dict[str, Any]:
    """The Hub's description of a repo at a revision; with `blobs`, it includes the sizes and hashes of the files."""
    sha = repo.resolve(revision)
    commit, settings = repo.commit(sha), repo.settings()
    card = cards.read_metadata(repo.read(commit, "README.md"))
    siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
    for sibling in siblings if blobs else ():
        file = commit.files[sibling["rfilename"]]
        sibling |= {"size": file.size, "blobId": file.oid, **file.lfs_fields("sha256")}
    answer = {
        "_id": object_id(repo.url_path),
        "id": repo.id,
        "author": repo.owner,
        "sha": sha,
        "createdAt": settings["createdAt"],
        "lastModified": commit.date,
        "private": settings["private"],
        **{"gated": False, "disabled": False, "downloads": 0, "likes": 0},
        "tags": cards.tags(card),
        "cardData": card,
        "siblings": siblings,
        "usedStorage": sum(file.size for file in commit.files.values()),
    }
    if repo.kind == "models":
        shown = ("library_name", "pipeline_tag", "model-index")
        answer |= {"modelId": repo.id, **{key: card[key] for key in shown if card.get(key)}}
    elif repo.kind == "spaces":
        runtime = {"stage": "STOPPED", "hardware": {"current": None, "requested": None}}
        answer |= {"sdk": card.get("sdk") or settings["sdk"], "runtime": runtime}
    return answer


# ---- commits, branches and tags
def commits(request: HubRequest) -> Response:
    repo, answer = request.repository(), []
    for sha, commit in repo.history(repo.resolve(request.params["revision"])):
        message = {"title": commit.title, "message": commit.message, "date": commit.date}
        answer.append({"id": sha, **message, "authors": [{"user": commit.author}]})
    return JSONResponse(answer, headers={"X-Total-Count": str(len(answer))})


def refs(request: HubRequest) -> Response:
    answer: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": []}
    for ref, sha in request.repository().refs().items():
        group, name = ref.split("/", 1)
        answer[REF_GROUPS[group]].append({"name": name, "ref": f"refs/{ref}", "targetCommit": sha})
    return JSONResponse(answer)


def branch(request: HubRequest) -> Response:
    repo, ref = request.repository(write=True), f"heads/{request.params['branch']}"
    if request.http.method == "DELETE":
        repo.delete_ref(ref)
    else:
        repo.create_ref(ref, repo.resolve(request.json().get("startingPoint") or "main"))
    return JSONResponse({})


def tag(request: HubRequest) -> Response:
    repo, revision = request.repository(write=True), request.params["revision"]
    if request.http.method == "DELETE":
        repo.delete_ref(f"tags/{revision}")
    else:
        repo.create_ref(f"tags/{request.json()['tag']}", repo.resolve(revision))
    return JSONResponse({})
