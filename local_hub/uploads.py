"""The requests of `huggingface_hub.create_commit`, in the order in which it sends them.

`preupload` (which files go to LFS, and which are unchanged), the LFS batch (which objects are missing), one PUT per missing
object, and the commit as lines of JSON. LFS protocol: https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import PurePosixPath

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from local_hub.request import HubRequest
from local_hub.storage import Commit, File, HubError, Repository, checked_path, timestamp

MAX_REGULAR_SIZE = 10 * 2**20  # bytes; larger files go to LFS whatever their name
Change = Callable[[dict[str, File]], None]


def preupload(request: HubRequest) -> Response:
    """For each file: `lfs` or `regular`, and the hash of the version that the repo has."""
    repo, body = request.repository(), request.json()
    request.require_user()
    sha = repo.resolve(request.params["revision"])
    commit = repo.commit(sha)
    attributes = repo.read(commit, ".gitattributes").splitlines()
    patterns = [line.split()[0] for line in attributes if "filter=lfs" in line]
    files = []
    for file in body["files"]:
        path, size = file["path"], file["size"]
        names = (path, path.split("/")[-1])
        matched = any(fnmatch.fnmatch(name, pattern) for pattern in patterns for name in names)
        binary = b"\0" in base64.b64decode(file.get("sample") or "", validate=True)
        mode = "lfs" if size > 0 and (matched or binary or size > MAX_REGULAR_SIZE) else "regular"
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
        if path in commit.files:
            files[-1]["oid"] = commit.files[path].etag
    return JSONResponse({"files": files, "commitOid": sha})


# ---- LFS objects
def lfs_batch(request: HubRequest) -> Response:
    """The upload URL of each object that is missing. It is signed, since clients PUT without a token."""
    repo, body = request.repository(write=True), request.json()
    if body["operation"] != "upload":
        raise HubError(422, "this hub serves large files at /resolve/; its LFS endpoint takes uploads only")
    objects = []
    for item in body["objects"]:
        oid = item["oid"]
        objects.append({"oid": oid, "size": item["size"]})
        if not repo.lfs_file(oid):
            url = f"{request.base_url}/lfs-objects/{repo.kind}/{repo.id}/{oid}"
            objects[-1]["actions"] = {"upload": {"href": f"{url}?signature={signature(request, repo, oid)}"}}
    return JSONResponse({"transfer": "basic", "objects": objects, "hash_algo": "sha256"})


def signature(request: HubRequest, repo: Repository, sha256: str) -> str:
    """Valid for one object of one repo, until the server stops."""
    name = f"{repo.kind}/{repo.id}/{sha256}".encode()
    return hmac.new(request.secret, name, hashlib.sha256).hexdigest()


async def lfs_put(kind: str, http: Request) -> Response:
    """Receive one object, chunk by chunk; it is stored only if it is complete and its SHA-256 is right."""
    request = HubRequest(http, kind)
    sha256 = request.params["sha256"]
    repo = request.storage.repository(kind, request.params["owner"], request.params["name"])
    expected = signature(request, repo, sha256)
    if not hmac.compare_digest(request.query.get("signature", "").encode(), expected.encode()):
        raise HubError(403, "this upload address is not valid (any more); start the push again")
    if not repo.exists():
        raise HubError(404, "Repository not found", "RepoNotFound")
    digest = hashlib.sha256()
    with request.storage.new_file(repo.folder / "lfs" / sha256) as file:
        async for chunk in http.stream():
            digest.update(chunk)
            file.write(chunk)
        if digest.hexdigest() != sha256:
            raise HubError(422, f"the content received does not have the SHA-256 {sha256}")
    return Response(headers={"ETag": f'"{sha256}"'})


# ---- commits
def commit(request: HubRequest) -> Response:
    """Create a commit from lines of JSON: a header, then files, LFS files and deletions."""
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
    (title + message).encode()  # ValueError for a lone surrogate, which no JSON response could contain
    with request.storage.lock:
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
        refuse_file_as_folder(files)
        sha = repo.add_commit(Commit(parent, timestamp(), author, title, message, files))
        repo.write_refs({**refs, ref: sha})
    url = f"{request.base_url}/{repo.url_path}"
    answer = {"success": True, "commitOid": sha, "commitUrl": f"{url}/commit/{sha}", "hookOutput": ""}
    return JSONResponse(answer)


def stage(repo: Repository, key: str, value: dict[str, str]) -> Change:
    """Store the content of one operation, and return the change that it makes to the files of the parent commit."""
    path = checked_path(value["path"].rstrip("/") if key == "deletedFolder" else value["path"])
    if key == "file":
        content = value["content"].encode()
        if value.get("encoding") == "base64":
            content = base64.b64decode(content, validate=True)
        added = repo.add_blob(content)
    elif key == "lfsFile":
        added = repo.lfs_file(value["oid"])
        if added is None:
            raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path}")
        if value.get("size", added.size) != added.size:
            raise HubError(400, f"{path} was uploaded with {added.size} bytes, not {value['size']!r}")
    elif key in ("deletedFile", "deletedFolder"):
        return lambda files: delete(files, path, is_folder=key == "deletedFolder")
    else:
        raise HubError(400, f"unknown operation {key!r} in a commit")
    return lambda files: files.update({path: added})


def delete(files: dict[str, File], path: str, is_folder: bool) -> None:
    names = [name for name in files if name.startswith(f"{path}/")] if is_folder else [path]
    if not names or names[0] not in files:
        raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    for name in names:
        del files[name]


def refuse_file_as_folder(files: dict[str, File]) -> None:
    """As in git, `a` and `a/b` cannot both be files."""
    for path in files:
        for parent in map(str, PurePosixPath(path).parents):
            if parent in files:
                raise HubError(400, f"{parent!r} is a file, so {path!r} cannot be in it")
