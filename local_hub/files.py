"""The files of a repo: the Hub's `tree` and `paths-info` listings, and `resolve`, which serves their contents.

Entries are as `huggingface_hub` 2.4 parses them; contents have the headers that its cache, byte ranges and `HfFileSystem`
rely on.
"""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote

from starlette.responses import FileResponse, JSONResponse, Response

from local_hub.request import HubRequest
from local_hub.storage import File, HubError


def entry(files: dict[str, File], path: str) -> dict[str, Any] | None:
    """The entry of a file or folder; None if there is neither."""
    if file := files.get(path):
        return {"type": "file", "path": path, "oid": file.oid, "size": file.size, **file.lfs_fields("oid")}
    inside = [f"{name}\0{files[name].oid}\n" for name in sorted(files) if name.startswith(f"{path}/")]
    oid = hashlib.sha1("".join(inside).encode()).hexdigest()
    return {"type": "directory", "path": path, "oid": oid, "size": 0} if inside else None


def list_folder(files: dict[str, File], folder: str, recursive: bool) -> list[str]:
    """Sorted paths of the files and folders in a folder ("" is the root)."""
    prefix = f"{folder}/" if folder else ""
    paths = {*files, *(str(parent) for path in files for parent in PurePosixPath(path).parents)} - {"."}
    inside = [path for path in paths if path.startswith(prefix)]
    return sorted(path for path in inside if recursive or "/" not in path.removeprefix(prefix))


def tree(request: HubRequest) -> Response:
    """The entries of a folder, in one page."""
    repo, (revision, folder) = request.repository(), request.revision_and_path()
    sha = repo.resolve(revision)
    files = repo.commit(sha).files
    paths = list_folder(files, folder.strip("/"), request.flag("recursive"))
    if folder and not paths:
        raise HubError(404, f"{folder} does not exist on {revision!r}", "EntryNotFound", sha)
    return JSONResponse([entry(files, path) for path in paths], headers={"X-Repo-Commit": sha})


def paths_info(request: HubRequest) -> Response:
    """Entries for the paths of a form; those that do not exist are left out."""
    repo, form = request.repository(), parse_qs(request.body.read().decode())
    files = repo.commit(repo.resolve(request.params["revision"])).files
    entries = [entry(files, path.strip("/")) for path in form.get("paths", [])]
    return JSONResponse([item for item in entries if item])


def resolve(request: HubRequest) -> Response:
    """The content of a file. Never a redirect: on one to the same origin the clients lose X-Repo-Commit."""
    repo, (revision, path) = request.repository(), request.revision_and_path()
    sha = repo.resolve(revision)
    file = repo.commit(sha).files.get(path)
    if file is None:
        raise HubError(404, f"Entry not found: {path}", "EntryNotFound", sha)
    headers = {
        "ETag": f'"{file.etag}"',
        "X-Repo-Commit": sha,
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.split('/')[-1], safe='')}",
        "Content-Security-Policy": "default-src 'none'; sandbox",  # an HTML file must not act as a page of this server
        "X-Content-Type-Options": "nosniff",
    }
    if file.sha256:
        headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
    media_type = "application/octet-stream" if file.sha256 else "text/plain; charset=utf-8"
    return FileResponse(repo.content(file), headers=headers, media_type=media_type)
