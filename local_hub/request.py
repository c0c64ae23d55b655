"""One request as the endpoints see it: who asks, for which repo, with which body; and how errors are answered.

In: a Starlette request whose route matched the raw path (revisions and paths arrive percent-quoted, like
`try%2Fthis`). Out: its unquoted parts, and a response for every way in which answering can fail.
"""

from __future__ import annotations

import errno
import json
import re
import secrets
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any, BinaryIO
from urllib.parse import unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from local_hub.storage import HubError, Repository, Storage


class Hub:
    """What all requests share: the repos, the user of each token, and the key that signs upload addresses."""

    def __init__(self, storage: Storage, tokens: dict[str, str]):
        self.storage, self.tokens, self.secret = storage, tokens, secrets.token_bytes(32)


class HubRequest:
    """A request for a repo of `kind`. `params`: the unquoted parts of its path; `body`: a file to read it from."""

    def __init__(self, request: Request, kind: str, body: BinaryIO | None = None):
        self.http, self.kind, self.body, self.query = request, kind, body, request.query_params
        self.hub: Hub = request.app.state.hub
        self.params = {name: unquote(value) for name, value in request.path_params.items()}
        self.base_url = str(request.base_url).rstrip("/")

    @property
    def user(self) -> str | None:
        """The user of the request's token: None without a token, HubError 401 for an unknown one."""
        _, _, token = self.http.headers.get("authorization", "").partition(" ")
        if token and token not in self.hub.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token)

    def require_user(self) -> str:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        return self.user

    def revision_and_path(self) -> tuple[str, str]:
        """From the end of an address: `main/a/b` or `refs%2Fheads%2Fmain/a/b`."""
        revision, _, path = self.http.path_params["rest"].partition("/")
        return unquote(revision), unquote(path)

    def json(self) -> dict[str, Any]:
        data = json.load(self.body)
        if not isinstance(data, dict):
            raise ValueError("the body must be a JSON object")
        return data

    def flag(self, name: str) -> bool:
        """A switch of the query."""
        return self.query.get(name, "").lower() in ("1", "true", "on")

    def may_write(self, owner: str) -> bool:
        """A user owns the namespace of their name; any other is an organization with every user as a member."""
        return self.user is not None and (self.user == owner or owner not in self.hub.tokens.values())

    def may_read(self, repo: Repository) -> bool:
        return self.may_write(repo.owner) or not repo.settings()["private"]

    def repository(self, write: bool = False) -> Repository:
        """The repo of the address. As on the Hub, a private one is a 404 to other users (401 without a token)."""
        repo = self.hub.storage.repository(self.kind, self.params["owner"], self.params["name"])
        if not repo.exists() or not self.may_read(repo):
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write and not self.may_write(repo.owner):
            raise HubError(403, f"{self.require_user()} has no right to write to {repo.id}")
        return repo


def error_response(error: HubError) -> Response:
    text = error.message.encode(errors="replace").decode()  # names may hold what JSON or a header cannot
    message = re.sub(r"[^ -~]", "?", text)
    headers = {"X-Error-Message": message, "X-Error-Code": error.code, "X-Repo-Commit": error.commit}
    return JSONResponse(
        {"error": text}, error.status, {key: value for key, value in headers.items() if value}
    )


async def answered(work: Awaitable[Response]) -> Response:
    """The response of `work`, or the error response for what it raised."""
    try:
        return await work
    except HubError as error:
        return error_response(error)
    except ClientDisconnect:
        return error_response(HubError(400, "the request ended early"))
    except KeyError as error:
        return error_response(HubError(400, f"the request lacks the field {error}"))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        return error_response(HubError(400, f"malformed request: {error}"))
    except FileNotFoundError:  # a commit's files are there before it, so the repo was deleted meanwhile
        return error_response(HubError(404, "Repository not found", "RepoNotFound"))
    except OSError as error:
        status = 507 if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else 500
        return error_response(HubError(status, f"the hub's storage failed: {error.strerror}"))


def endpoint(
    function: Callable[[HubRequest], Response], kind: str
) -> Callable[[Request], Awaitable[Response]]:
    """Run `function` in a worker thread, with the body at hand (on disk when it is large)."""

    async def work(request: Request) -> Response:
        with tempfile.SpooledTemporaryFile(max_size=2**24) as body:
            async for chunk in request.stream():
                body.write(chunk)
            body.seek(0)
            return await run_in_threadpool(function, HubRequest(request, kind, body))

    async def handle(request: Request) -> Response:
        return await answered(work(request))

    return handle
