"""Files of a repo: listed as the Hub's `tree` and `paths-info`, and their contents.

In: a revision and a path. Out: entries as `huggingface_hub` 2.4 parses them, and contents with the headers that
its cache, byte ranges and `HfFileSystem` rely on.
"""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import parse_qs, quote

from starlette.exceptions import HTTPException
from starlette.responses import (
    FileResponse,
    JSONResponse,
    MalformedRangeHeader,
    RangeNotSatisfiable,
    Response,
)

from local_hub.call import Call, truthy
from local_hub.storage import File, HubError, Repository, lfs_pointer

PAGE = 1000  # entries of a tree in one answer


def lfs_fields(file: File, name: str) -> dict[str, Any]:
    """The `lfs` part of a listed file, with the SHA-256 called `name`; nothing for a regular file."""
    if file.sha256 is None:
        return {}
    pointer_size = len(lfs_pointer(file.sha256, file.size))
    return {"lfs": {name: file.sha256, "size": file.size, "pointerSize": pointer_size}}


class Listing:
    """The entries of one commit; with `expand`, each says which commit changed it last."""

    def __init__(self, repo: Repository, sha: str, expand: bool):
        self.sha, self.files = sha, repo.commit(sha).files
        self.changes = repo.last_changes(sha) if expand else {}

    def entry(self, path: str) -> dict[str, Any] | None:
        """A file, a folder, or None where there is nothing."""
        if file := self.files.get(path):
            entry = {
                "type": "file",
                "path": path,
                "oid": file.oid,
                "size": file.size,
                **lfs_fields(file, "oid"),
            }
            return entry | self.last_commit([path])
        inside = sorted(name for name in self.files if name.startswith(f"{path}/"))
        content = "".join(f"{name}\0{self.files[name].oid}\n" for name in inside)
        entry = {
            "type": "directory",
            "path": path,
            "oid": hashlib.sha1(content.encode()).hexdigest(),
            "size": 0,
        }
        return entry | self.last_commit(inside) if inside else None

    def last_commit(self, paths: list[str]) -> dict[str, Any]:
        found = [self.changes[path] for path in paths if path in self.changes]
        sha, commit = max(found, key=lambda change: change[1].date, default=(None, None))
        return {"lastCommit": {"id": sha, "title": commit.title, "date": commit.date}} if commit else {}

    def below(self, folder: str, recursive: bool) -> list[str]:
        """Paths of the files and folders in a folder ("" is the root), in order."""
        prefix, found = f"{folder}/" if folder else "", set()
        for path in self.files:
            if path.startswith(prefix):
                parts = path[len(prefix) :].split("/")
                found |= {
                    prefix + "/".join(parts[: end + 1]) for end in range(len(parts) if recursive else 1)
                }
        return sorted(found)


def tree(call: Call) -> Response:
    """A folder, a page at a time: the `Link` header has the address of the next."""
    repo, (revision, folder) = call.repository(), call.revision_and_path()
    listing = Listing(repo, repo.resolve(revision), truthy(call.query.get("expand")))
    found = listing.below(folder.strip("/"), truthy(call.query.get("recursive")))
    if folder and not found:
        raise HubError(404, "EntryNotFound", f"{folder} does not exist on {revision!r}", listing.sha)
    start, size = call.number("cursor", 0), min(call.number("limit", PAGE, least=1), PAGE)
    headers = {"X-Repo-Commit": listing.sha}
    if start + size < len(found):
        headers["Link"] = f'<{call.request.url.include_query_params(cursor=start + size)}>; rel="next"'
    return JSONResponse([listing.entry(path) for path in found[start : start + size]], headers=headers)


def paths_info(call: Call) -> Response:
    """Entries for the paths asked for, in a form; those that do not exist are left out."""
    repo, form = call.repository(), parse_qs(call.body.read().decode())
    expand = form.get("expand", [""])[0]
    listing = Listing(repo, repo.resolve(call.params["revision"]), truthy(expand))
    entries = [listing.entry(path.strip("/")) for path in form.get("paths", [])]
    return JSONResponse([entry for entry in entries if entry])


class Content(FileResponse):
    """A file. As RFC 9110 wants it, a `Range` in another unit, or one that is malformed, is ignored."""

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        try:
            return super()._parse_range_header(http_range, file_size)
        except MalformedRangeHeader:
            return []
        except RangeNotSatisfiable:
            headers = {"Content-Range": f"bytes */{file_size}"}
            raise HTTPException(
                416, f"the file has {file_size} bytes, and none of them are {http_range}", headers
            ) from None


def resolve(call: Call) -> Response:
    """The content of a file. Never a redirect: on one to the same origin the clients lose X-Repo-Commit."""
    repo, (revision, path) = call.repository(), call.revision_and_path()
    sha = repo.resolve(revision)
    file = repo.commit(sha).files.get(path)
    if file is None:
        raise HubError(404, "EntryNotFound", f"Entry not found: {path}", sha)
    headers = {
        "ETag": f'"{file.etag}"',
        "X-Repo-Commit": sha,
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.split('/')[-1], safe='')}",
        "Content-Security-Policy": "default-src 'none'; sandbox",  # a page in a repo is no page of this server
        "X-Content-Type-Options": "nosniff",
    }
    if file.sha256:
        headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
    if call.request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    media_type = "application/octet-stream" if file.sha256 else "text/plain; charset=utf-8"
    return Content(repo.content(file), headers=headers, media_type=media_type)
