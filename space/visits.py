"""Visits: who is here, and what is stored for them (uploads, results, corrections) until the visit ends.

A visit begins when a page is opened and survives reloads and language switches: the browser stores its token, this process
everything else. It ends `GRACE` seconds after its last page was closed, or with the process; its files are then deleted.
Uploads that belong to no visit are deleted after `UNCLAIMED` seconds. Files that a killed process left behind are deleted by
the next process.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from space.texts import language_of

GRACE = 60  # seconds between the close of the last page and the end of the visit: a reload takes less
UNCLAIMED = 120  # seconds that an upload may wait for the event that uses it
ABANDONED = 5  # seconds without a page after which a job stops
SWEEP = 15  # seconds between sweeps
MAX_VISITS = 256  # beyond that, the visit that was left longest ago ends
UPLOAD, VISIT, PROCESS = "upload-", "visit-", "space-"  # prefixes of folder names


@dataclass
class Visit:
    """`folder` holds files made for the visitor; `uploads` are the folders of their uploads that are still in use."""

    folder: Path
    token: str = ""
    language: str = "en"
    sessions: set[str] = field(default_factory=set)
    left: float = field(default_factory=time.monotonic)
    uploads: set[Path] = field(default_factory=set)
    cancelled: bool = False
    results: dict[str, Any] = field(default_factory=dict)  # by tab
    lock: Any = field(default_factory=threading.RLock)

    def stops(self) -> bool:
        """Whether jobs of this visit should stop: it was cancelled, or every page has been closed."""
        return self.cancelled or (not self.sessions and time.monotonic() - self.left > ABANDONED)

    def keep(self, paths: list[str] | str | None) -> None:
        """Keep these uploads until the visit ends."""
        for path in [paths] if isinstance(paths, str) else paths or []:
            if Path(path).parent.name.startswith(UPLOAD):
                self.uploads.add(Path(path).parent)

    def file(self, name: str) -> Path:
        """The path of a file for the visitor, in the visit's own folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name


class Visits:
    """All visits of this process, by session and by token. `on_end` is called whenever one ends."""

    def __init__(self, folder: Path, on_end: Callable[[], None] = lambda: None) -> None:
        self.folder, self._on_end = folder, on_end
        self._sessions: dict[str, Visit] = {}
        self._tokens: dict[str, Visit] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return sum(bool(visit.sessions) for visit in self._tokens.values())

    def open(self, token: str | None, session: str, language: str) -> Visit:
        """The visit of a page that was just opened: that of the browser's token if it is still known, else a new one."""
        with self._lock:
            visit = self._tokens.get(token or "") or self._new(language)
            visit.sessions.add(session)
            visit.cancelled = False
            self._sessions[session] = visit
            return visit

    def of(self, request: Any) -> Visit:
        """The visit of an event; a new one for the event of a session that no page has opened."""
        session = getattr(request, "session_hash", None)
        with self._lock:
            visit = self._sessions.get(session)
            if visit is None:
                visit = self._new(language_of(request))
                if session:
                    self._sessions[session] = visit
            if not visit.sessions:
                visit.left = time.monotonic()
            return visit

    def leave(self, request: gr.Request) -> None:
        """A page was closed or reloaded."""
        with self._lock:
            if visit := self._sessions.pop(request.session_hash, None):
                visit.sessions.discard(request.session_hash)
                visit.left = time.monotonic()

    def draw_on_open(
        self, name: str, tab: Any, outputs: list[Any], draw: Callable[[str], list[Any]]
    ) -> tuple:
        """Draw a tab's outputs when it is first opened and, from then on, whenever the language is switched."""

        def opened(request: gr.Request) -> list[Any]:
            visit = self.of(request)
            visit.results[name] = True
            return draw(visit.language)

        def redraw(visit: Visit) -> list[Any]:
            return draw(visit.language) if visit.results.get(name) else [gr.skip()] * len(outputs)

        tab.select(opened, None, outputs, api_visibility="private", show_progress="hidden")
        return outputs, redraw

    def _new(self, language: str) -> Visit:
        closed = sorted((v for v in self._tokens.values() if not v.sessions), key=lambda v: v.left)
        for oldest in closed[: max(0, len(self._tokens) + 1 - MAX_VISITS)]:
            self._end(oldest)
        token = secrets.token_urlsafe(24)
        self._tokens[token] = Visit(self.folder / (VISIT + secrets.token_hex(16)), token, language)
        return self._tokens[token]

    def _end(self, visit: Visit) -> None:
        self._tokens.pop(visit.token, None)
        self._sessions = {s: v for s, v in self._sessions.items() if v is not visit}
        visit.cancelled = True
        self._on_end()
        for folder in (visit.folder, *visit.uploads):
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self, grace: float = GRACE) -> None:
        """End visits without a page for `grace` seconds; delete unclaimed uploads, complete or cut off."""
        with self._lock:
            now = time.monotonic()
            for visit in list(self._tokens.values()):
                if not visit.sessions and now - visit.left > grace:
                    self._end(visit)
            in_use = {folder for visit in self._tokens.values() for folder in (visit.folder, *visit.uploads)}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path in in_use or not path.name.startswith((UPLOAD, VISIT, "tmp")):
                continue
            with contextlib.suppress(OSError):  # deleted meanwhile
                if time.time() - path.stat().st_mtime > UNCLAIMED:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        delete_orphaned(self.folder.parent)

    def start_sweeping(self, also: Callable[[], Any]) -> None:
        """Sweep every `SWEEP` seconds in a thread of its own, and call `also` each time."""

        def work() -> None:
            while True:
                time.sleep(SWEEP)
                self.sweep()
                also()

        threading.Thread(target=work, name="visits", daemon=True).start()


def own_folder() -> Path:
    """A new folder for everything this process stores, in GRADIO_TEMP_DIR or the temporary folder, deleted when it exits.

    A lock file tells other processes that the folder is in use.
    """
    base = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
    base.mkdir(parents=True, exist_ok=True)
    delete_orphaned(base)
    folder = Path(tempfile.mkdtemp(prefix=PROCESS, dir=base)).resolve()
    lock = open(folder / "lock", "w")  # noqa: SIM115 (open, and so locked, until the process ends)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)

    def leave() -> None:
        lock.close()
        shutil.rmtree(folder, ignore_errors=True)
        if os.environ.get("GRADIO_TEMP_DIR") == str(folder):
            os.environ["GRADIO_TEMP_DIR"] = str(base)

    atexit.register(leave)
    return folder


def delete_orphaned(base: Path) -> None:
    """Delete the folders of killed processes: those whose lock is free."""
    for path in base.glob(f"{PROCESS}*/lock"):
        with contextlib.suppress(OSError), path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent)


def forget(paths: list[str]) -> None:
    """Delete uploads to the API. Other paths stay: a caller may also name an example file of the page."""
    for path in map(Path, paths):
        if path.parent.name.startswith(UPLOAD):
            shutil.rmtree(path.parent, ignore_errors=True)
