"""One request as the endpoints see it: who asks, for which repo, with which body; and how errors are answered.

In: a Starlette request whose route matched the raw path (revisions and paths arrive percent-quoted, like
`refs%2Fpr%2F1`). Out: its unquoted parts, and a response for every way in which answering can fail.
"""

from __future__ import annotations

import errno
import json
import re
import tempfile
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from local_hub.storage import HubError, Repository

if TYPE_CHECKING:
    from local_hub.server import Hub


def truthy(value: Any) -> bool:
    return str(value).lower() in ("1", "true", "on")


class Call:
    """A request for a repo of `kind`. `params`: the unquoted parts of its path; `body`: a file to read it from."""

    def __init__(self, request: Request, kind: str, body: BinaryIO | None = None):
        self.request, self.kind, self.body, self.query = request, kind, body, request.query_params
        self.hub: Hub = request.app.state.hub
        self.params = {name: unquote(value) for name, value in request.path_params.items()}
        self.base_url = str(request.base_url).rstrip("/")

    @property
    def user(self) -> str | None:
        """Whose token came with the request: None without one, HubError 401 with an unknown one."""
        _, _, token = self.request.headers.get("authorization", "").partition(" ")
        if token and token not in self.hub.tokens:
            raise HubError(401, None, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token)

    def user_or_refuse(self) -> str:
        if self.user is None:
            raise HubError(401, None, "Invalid username or password.")
        return self.user

    def revision_and_path(self) -> tuple[str, str]:
        """From the end of an address: `main/a/b`, `refs%2Fpr%2F1/a/b` or (as people write it) `refs/pr/1/a/b`."""
        parts = self.request.path_params["rest"].split("/")
        cut = 3 if parts[0] == "refs" else 1
        return unquote("/".join(parts[:cut])), unquote("/".join(parts[cut:]))

    def json(self) -> dict[str, Any]:
        data = json.load(self.body)
        if not isinstance(data, dict):
            raise ValueError("the body must be a JSON object")
        return data

    def number(self, name: str, default: int, least: int = 0) -> int:
        """A number of the query."""
        number = int(self.query.get(name, default))
        if number < least:
            raise HubError(400, None, f"{name} must be at least {least}, not {number}")
        return number

    def may_write(self, owner: str) -> bool:
        """A user's own name is theirs; any other namespace is an organization of which every user is a member."""
        return self.user is not None and (self.user == owner or owner not in self.hub.tokens.values())

    def may_read(self, repo: Repository) -> bool:
        return self.may_write(repo.owner) or not repo.settings()["private"]

    def repository(self, write: bool = False) -> Repository:
        """The repo of the address. As on the Hub, a stranger gets 404 for a private one (401 without a token)."""
        repo = self.hub.storage.repository(self.kind, self.params["owner"], self.params["name"])
        if not repo.exists() or not self.may_read(repo):
            raise HubError(404 if self.user else 401, "RepoNotFound", "Repository not found")
        if write and not self.may_write(repo.owner):
            raise HubError(403, None, f"{self.user_or_refuse()} has no right to write to {repo.id}")
        return repo


def error_response(error: HubError) -> Response:
    text = error.message.encode(errors="replace").decode()  # names may hold what JSON or a header cannot
    message = re.sub(r"[^ -~]", "?", text)
    headers = {"X-Error-Message": message, "X-Error-Code": error.code, "X-Repo-Commit": error.commit}
    return JSONResponse(
        {"error": text}, error.status, {name: value for name, value in headers.items() if value}
    )


async def answered(work: Awaitable[Response]) -> Response:
    """The response of `work`, or the one that tells what stopped it."""
    try:
        return await work
    except HubError as error:
        return error_response(error)
    except ClientDisconnect:
        return error_response(HubError(400, None, "the request ended early"))
    except KeyError as error:
        return error_response(HubError(400, None, f"the request lacks the field {error}"))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        return error_response(HubError(400, None, f"malformed request: {error}"))
    except FileNotFoundError:  # whatever a commit names is there before it, so the repo was deleted meanwhile
        return error_response(HubError(404, "RepoNotFound", "Repository not found"))
    except OSError as error:
        status = 507 if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else 500
        return error_response(HubError(status, None, f"the hub's storage failed: {error.strerror}"))


def endpoint(function: Callable[[Call], Response], kind: str) -> Callable[[Request], Awaitable[Response]]:
    """Run `function` in a worker thread, with the body at hand (on disk when it is large)."""

    async def work(request: Request) -> Response:
        with tempfile.SpooledTemporaryFile(max_size=2**24) as body:
            async for chunk in request.stream():
                body.write(chunk)
            body.seek(0)
            return await run_in_threadpool(function, Call(request, kind, body))

    async def handle(request: Request) -> Response:
        return await answered(work(request))

    return handle
