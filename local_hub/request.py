"""A request as the endpoints see it (its user, repo and body), and the error responses.

Routes match the raw path, in which revisions and file names are percent-encoded (`try%2Fthis`); `HubRequest` decodes them.
"""

from __future__ import annotations

import errno
import json
import re
import tempfile
from collections.abc import Callable
from typing import Any, BinaryIO
from urllib.parse import unquote

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from local_hub.storage import HubError, Repository, Storage

# what parsing a request can raise
MALFORMED = (KeyError, ValueError, TypeError, AttributeError, RecursionError)
HANDLED = (HubError, HTTPException, ClientDisconnect, OSError, *MALFORMED)


class HubRequest:
    """A request for a repo of `kind`, with the decoded `params` of its path and a file to read its `body` from."""

    def __init__(self, request: Request, kind: str, body: BinaryIO | None = None):
        self.http, self.kind, self.body, self.query = request, kind, body, request.query_params
        self.storage: Storage = request.app.state.storage
        self.tokens: dict[str, str] = request.app.state.tokens  # and their users
        self.secret: bytes = request.app.state.secret  # signs upload URLs
        self.params = {name: unquote(value) for name, value in request.path_params.items()}
        self.base_url = str(request.base_url).rstrip("/")

    @property
    def user(self) -> str | None:
        """The user of the request's token: None without a token, HubError 401 for an unknown one."""
        _, _, token = self.http.headers.get("authorization", "").partition(" ")
        if token and token not in self.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.tokens.get(token)

    def require_user(self) -> str:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        return self.user

    def revision_and_path(self) -> tuple[str, str]:
        """Split the end of the path: `main/a/b` or `refs%2Fheads%2Fmain/a/b`."""
        revision, _, path = self.http.path_params["rest"].partition("/")
        return unquote(revision), unquote(path)

    def json(self) -> dict[str, Any]:
        data = json.load(self.body)
        if not isinstance(data, dict):
            raise ValueError("the body must be a JSON object")
        return data

    def flag(self, name: str) -> bool:
        """Whether a boolean query parameter is set."""
        return self.query.get(name, "").lower() in ("1", "true", "on")

    def may_write(self, owner: str) -> bool:
        """Users own the namespace of their name; any other namespace is an organization with every user as a member."""
        return self.user is not None and (self.user == owner or owner not in self.tokens.values())

    def may_read(self, repo: Repository) -> bool:
        return self.may_write(repo.owner) or not repo.settings()["private"]

    def repository(self, write: bool = False) -> Repository:
        """The repo in the path. As on the Hub, a private one is a 404 to other users (401 without a token)."""
        repo = self.storage.repository(self.kind, self.params["owner"], self.params["name"])
        if not repo.exists() or not self.may_read(repo):
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write and not self.may_write(repo.owner):
            raise HubError(403, f"{self.require_user()} has no right to write to {repo.id}")
        return repo


async def respond(endpoint: Callable[[HubRequest], Response], kind: str, http: Request) -> Response:
    """Run `endpoint` in a worker thread; a body of more than 16 MiB is buffered on disk."""
    with tempfile.SpooledTemporaryFile(max_size=2**24) as body:
        async for chunk in http.stream():
            body.write(chunk)
        body.seek(0)
        return await run_in_threadpool(endpoint, HubRequest(http, kind, body))


def as_hub_error(http: Request, error: Exception) -> HubError:
    """The error response of an exception that an endpoint, or Starlette's router, has raised."""
    match error:
        case HubError():
            return error
        case HTTPException(status_code=404):
            return HubError(404, "this local hub has no such page or endpoint")
        case HTTPException(status_code=405):
            return HubError(405, f"this address does not take {http.method}")
        case HTTPException():
            return HubError(error.status_code, error.detail)
        case ClientDisconnect():
            return HubError(400, "the request ended early")
        case KeyError():
            return HubError(400, f"the request lacks the field {error}")
        case FileNotFoundError():  # a commit is written after its files, so the repo has been deleted meanwhile
            return HubError(404, "Repository not found", "RepoNotFound")
        case OSError():
            status = 507 if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else 500
            return HubError(status, f"the hub's storage failed: {error.strerror}")
    return HubError(400, f"malformed request: {error}")


async def handle_error(http: Request, error: Exception) -> Response:
    """Starlette's exception handler for what is in HANDLED; any other exception is a bug and gives a 500."""
    answer = as_hub_error(http, error)
    text = answer.message.encode(errors="replace").decode()  # names may contain what JSON and headers cannot
    ascii_text = re.sub(r"[^ -~]", "?", text)
    headers = {"X-Error-Message": ascii_text, "X-Error-Code": answer.code, "X-Repo-Commit": answer.commit}
    headers |= getattr(error, "headers", None) or {}  # Allow, of a 405
    headers = {key: value for key, value in headers.items() if value}
    return JSONResponse({"error": text}, answer.status, headers)
