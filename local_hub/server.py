"""The local Hub as a server: its routes, the lock on its folder, and a context manager that runs it in a thread."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import threading
import time
from functools import partial
from pathlib import Path
from typing import TextIO

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from local_hub import collections, files, repos, uploads
from local_hub.request import HANDLED, handle_error, respond
from local_hub.storage import KINDS, HubError, Storage

ADDRESS = "127.0.0.1"  # never another interface: tokens travel unencrypted
DEFAULT_PORT = 8777
DEFAULT_TOKENS = {"hf_localdev": "localdev"}


def repo_routes(kind: str) -> list[Route]:
    """The endpoints for the repos of a kind. A page's path has no kind if the repo is a model: /OWNER/NAME/…"""
    repo = f"/api/{kind}/{{owner}}/{{name}}"
    page = ("" if kind == "models" else f"/{kind}") + "/{owner}/{name}"
    lfs = f"/lfs-objects/{kind}/{{owner}}/{{name}}/{{sha256}}"
    table = [
        ("GET", f"/api/{kind}", repos.list_repos),
        ("GET", repo, repos.info),
        ("GET", repo + "/revision/{revision}", repos.info),
        ("GET", repo + "/tree/{rest:path}", files.tree),
        ("POST", repo + "/paths-info/{revision}", files.paths_info),
        ("GET", repo + "/refs", repos.refs),
        ("GET", repo + "/commits/{revision}", repos.commits),
        ("POST DELETE", repo + "/branch/{branch}", repos.branch),
        ("POST DELETE", repo + "/tag/{revision}", repos.tag),
        ("PUT", repo + "/settings", repos.settings),
        ("POST", repo + "/preupload/{revision}", uploads.preupload),
        ("POST", repo + "/commit/{revision}", uploads.commit),
        ("POST", page + ".git/info/lfs/objects/batch", uploads.lfs_batch),
        ("GET", page + "/resolve/{rest:path}", files.resolve),
    ]
    routes = [Route(path, partial(respond, call, kind), methods=m.split()) for m, path, call in table]
    return [*routes, Route(lfs, partial(uploads.lfs_put, kind), methods=["PUT"])]


def make_app(storage: Storage, tokens: dict[str, str]) -> ASGIApp:
    table = [
        ("GET", "/api/whoami-v2", repos.whoami),
        ("POST", "/api/validate-yaml", repos.validate_yaml),
        ("POST", "/api/repos/create", repos.create_repo),
        ("DELETE", "/api/repos/delete", repos.delete_repo),
        ("POST", "/api/collections", collections.create),
        ("GET", "/api/collections/{owner}/{slug}", collections.get),
        ("POST", "/api/collections/{owner}/{slug}/items", collections.add_item),
    ]
    routes = [Route(path, partial(respond, call, "models"), methods=[m]) for m, path, call in table]
    for kind in reversed(KINDS):  # models last, since their pages match any first word
        routes += repo_routes(kind)
    app = Starlette(routes=routes, exception_handlers=dict.fromkeys(HANDLED, handle_error))
    app.router.redirect_slashes = False
    app.state.storage, app.state.tokens, app.state.secret = storage, tokens, secrets.token_bytes(32)

    async def on_raw_path(scope: Scope, receive: Receive, send: Send) -> None:
        """Match routes on the undecoded path: in `tree/try%2Fthis` the revision is one segment."""
        await app({**scope, "path": scope["raw_path"].decode("ascii", "replace")}, receive, send)

    return on_raw_path


class LocalHub:
    """A Hub over the folder `root`, served while the `with` block runs.

    `port` 0 picks a free one; `tokens` maps each token to its user. Inside the block, `environment` has the variables that
    a client process needs (HF_ENDPOINT, HF_TOKEN, …). Raises HubError if the folder or the port cannot be used.
    """

    def __init__(self, root: str | Path, port: int = 0, tokens: dict[str, str] | None = None):
        self.root, self.port = Path(root).absolute(), port
        self.tokens = dict(tokens or DEFAULT_TOKENS)
        self.token = next(iter(self.tokens))

    @property
    def endpoint(self) -> str:
        return f"http://{ADDRESS}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            # a separate cache, since the real Hub may have a repo of the same name
            "HF_HOME": str(self.root / ".hf_home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "GRADIO_ANALYTICS_ENABLED": "False",
        }

    def __enter__(self) -> LocalHub:
        self._lock = lock_folder(self.root)
        try:
            listener = listen(self.port)
        except HubError:
            self._lock.close()
            raise
        self.port = listener.getsockname()[1]
        app = make_app(Storage(self.root), self.tokens)
        # clients drop an idle connection after 5 s; a server with the same timeout sometimes cuts a request off
        timeouts = {"timeout_keep_alive": 60, "timeout_graceful_shutdown": 2}
        config = uvicorn.Config(app, log_level="error", lifespan="off", **timeouts)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._lock.close()


def lock_folder(root: Path) -> TextIO:
    """Lock `root` until the returned file is closed: two servers would overwrite each other's commits."""
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = open(root / ".lock", "w")  # noqa: SIM115 (open as long as the server runs)
    except OSError as error:
        raise HubError(500, f"the folder {root} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise HubError(409, f"another local hub already serves {root}") from None
    return file


def listen(port: int) -> socket.socket:
    try:
        return socket.create_server((ADDRESS, port), backlog=256)
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) else "not in 0..65535"
        raise HubError(409, f"port {port} cannot be used: {reason}; port 0 picks a free one") from None
