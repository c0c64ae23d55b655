"""The steps of a push: upload modes, large files, then one commit.

In: the requests of `huggingface_hub.create_commit`, in this order: `preupload` (which files are large, which are
here already), the LFS batch, one PUT per missing large file, the commit as lines of JSON. Out: a new commit.
LFS protocol: https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import PurePosixPath

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from local_hub.request import HubRequest, answered
from local_hub.storage import Commit, File, HubError, Incoming, Repository, checked_path, timestamp

LARGEST_REGULAR_FILE = 10 * 2**20  # bytes; larger ones go to LFS whatever their name
Change = Callable[[dict[str, File]], None]


def preupload(request: HubRequest) -> Response:
    """For each file: `lfs` or `regular`, and the id of the content that the repo has already."""
    repo, body = request.repository(), request.json()
    request.require_user()
    sha = repo.resolve(request.params["revision"])
    commit = repo.commit(sha)
    lines = repo.read(commit, ".gitattributes").splitlines()
    patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
    files = []
    for file in body["files"]:
        path, size = file["path"], file["size"]
        names = (path, path.split("/")[-1])
        named = any(fnmatch.fnmatch(name, pattern) for pattern in patterns for name in names)
        binary = b"\0" in base64.b64decode(file.get("sample") or "", validate=True)
        mode = "lfs" if size > 0 and (named or binary or size > LARGEST_REGULAR_FILE) else "regular"
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
        if path in commit.files:
            files[-1]["oid"] = commit.files[path].etag
    return JSONResponse({"files": files, "commitOid": sha})


# ---- large files
def lfs_batch(request: HubRequest) -> Response:
    """Where to PUT each large file that is not here yet: an address signed for it, as clients PUT without a token."""
    repo, body = request.repository(), request.json()
    request.require_user()
    if body["operation"] != "upload":
        raise HubError(422, "this hub serves large files at /resolve/; its LFS endpoint takes uploads only")
    objects = []
    for wanted in body["objects"]:
        objects.append({"oid": wanted["oid"], "size": wanted["size"]})
        if not repo.large_file(wanted["oid"]):
            address = f"{request.base_url}/lfs-objects/{repo.kind}/{repo.id}/{wanted['oid']}"
            query = f"?signature={signature(request, repo, wanted['oid'])}"
            objects[-1]["actions"] = {"upload": {"href": address + query}}
    return JSONResponse({"transfer": "basic", "objects": objects, "hash_algo": "sha256"})


def signature(request: HubRequest, repo: Repository, sha256: str) -> str:
    """Valid for one object of one repo and for the life of this server."""
    name = f"{repo.kind}/{repo.id}/{sha256}".encode()
    return hmac.new(request.hub.secret, name, hashlib.sha256).hexdigest()


def signed_object(request: HubRequest) -> tuple[Repository, str]:
    repo = request.hub.storage.repository(request.kind, request.params["owner"], request.params["name"])
    expected = signature(request, repo, request.params["sha256"])
    if not hmac.compare_digest(request.query.get("signature", "").encode(), expected.encode()):
        raise HubError(403, "this upload address is not valid (any more); start the push again")
    if not repo.exists():
        raise HubError(404, "Repository not found", "RepoNotFound")
    return repo, request.params["sha256"]


def lfs_put(kind: str) -> Callable[[Request], object]:
    """An endpoint that receives one large file; it gets its name only when complete and when its SHA-256 is right."""

    async def receive(http: Request) -> Response:
        request = HubRequest(http, kind)
        repo, sha256 = signed_object(request)
        digest = hashlib.sha256()
        with Incoming(request.hub.storage.incoming) as new:
            async for chunk in http.stream():
                digest.update(chunk)
                new.file.write(chunk)
            if digest.hexdigest() != sha256:
                raise HubError(422, f"the content received does not have the SHA-256 {sha256}")
            await run_in_threadpool(new.move_to, repo.folder / "lfs" / sha256)
        return Response(headers={"ETag": f'"{sha256}"'})

    async def handle(http: Request) -> Response:
        return await answered(receive(http))

    return handle


# ---- commits
def commit(request: HubRequest) -> Response:
    """One commit from lines of JSON: a header, then files, LFS files and deletions."""
    author = request.require_user()
    if request.flag("create_pr"):
        raise HubError(501, "this local hub has no pull requests: push without create_pr")
    repo, header, changes = request.repository(write=True), {}, []
    for line in request.body:
        operation = json.loads(line)
        if operation["key"] == "header":
            header = operation["value"]
        else:
            changes.append(stage(repo, operation["key"], operation["value"]))
    title, message = header["summary"], header.get("description") or ""
    if not (isinstance(title, str) and isinstance(message, str)):
        raise HubError(400, "the summary and the description of a commit must be text")
    (title + message).encode()  # ValueError for a lone surrogate, which no answer can hold
    with request.hub.storage.lock:
        refs = repo.refs()
        ref = repo.find_ref(refs, revision := request.params["revision"], ("heads",))
        if ref is None or ref.startswith("tags/"):
            raise HubError(404, f"no branch {revision!r} to commit to", "RevisionNotFound")
        parent = refs[ref]
        if not parent.startswith(header.get("parentCommit") or ""):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commit(parent).files)
        for change in changes:
            change(files)
        refuse_files_in_files(files)
        sha = repo.add_commit(Commit(parent, timestamp(), author, title, message, files))
        repo.write_refs({**refs, ref: sha})
    url = f"{request.base_url}/{repo.url_path}"
    answer = {"success": True, "commitOid": sha, "commitUrl": f"{url}/commit/{sha}", "hookOutput": ""}
    return JSONResponse(answer)


def stage(repo: Repository, key: str, value: dict[str, str]) -> Change:
    """Store what a line of a commit brings, and return what it does to the files of the parent."""
    path = checked_path(value["path"].rstrip("/") if key == "deletedFolder" else value["path"])
    if key == "file":
        content = value["content"].encode()
        if value.get("encoding") == "base64":
            content = base64.b64decode(content, validate=True)
        added = repo.add_blob(content)
    elif key == "lfsFile":
        added = repo.large_file(value["oid"])
        if added is None:
            raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path}")
        if value.get("size", added.size) != added.size:
            raise HubError(400, f"{path} was uploaded with {added.size} bytes, not {value['size']!r}")
    elif key in ("deletedFile", "deletedFolder"):
        return lambda files: delete(files, path, whole_folder=key == "deletedFolder")
    else:
        raise HubError(400, f"unknown operation {key!r} in a commit")
    return lambda files: files.update({path: added})


def delete(files: dict[str, File], path: str, whole_folder: bool) -> None:
    gone = [name for name in files if name.startswith(f"{path}/")] if whole_folder else [path]
    if not gone or gone[0] not in files:
        raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    for name in gone:
        del files[name]


def refuse_files_in_files(files: dict[str, File]) -> None:
    """As in git, `a` and `a/b` cannot both be files."""
    for path in files:
        for parent in map(str, PurePosixPath(path).parents):
            if parent in files:
                raise HubError(400, f"{parent!r} is a file, so {path!r} cannot be in it")
