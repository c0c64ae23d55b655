"""Who is here, and what is kept for them: uploads, results and corrections, as long as the visit lives and no longer.

A visit begins with a page and survives reloads and language switches: the browser keeps its token, this process everything
else. It ends `GRACE` seconds after its last page was closed, and with the process; then its files are deleted. Uploads that no
visit claims are deleted after `UNCLAIMED` seconds. The files of processes that were killed are deleted by the next one.
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

GRACE = 60  # seconds from the last page's end to the visit's: a reload takes less
UNCLAIMED = 120  # seconds that an upload may wait for the event that uses it
ABANDONED = 5  # seconds without a page after which a job stops
SWEEP = 15  # seconds between sweeps
MOST = 256  # visits; the one left longest ago goes first
UPLOAD, VISIT, PROCESS = "upload-", "visit-", "space-"  # how the names of folders begin


@dataclass
class Visit:
    """`folder` holds what is made for the visitor; `uploads` are the folders of what they sent and is still in use."""

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
        """Whether a job of this visit should end: its button was pressed, or nobody is there any more."""
        return self.cancelled or (not self.sessions and time.monotonic() - self.left > ABANDONED)

    def keep(self, paths: list[str] | str | None) -> None:
        """Keep these uploads until the visit ends."""
        for path in [paths] if isinstance(paths, str) else paths or []:
            if Path(path).parent.name.startswith(UPLOAD):
                self.uploads.add(Path(path).parent)

    def file(self, name: str) -> Path:
        """A path of its own for what is made for the visitor."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name


class Visits:
    """All visits of this process, by session and by token."""

    def __init__(self, folder: Path, on_end: Callable[[], None] = lambda: None) -> None:
        self.folder, self._on_end = folder, on_end
        self._sessions: dict[str, Visit] = {}
        self._tokens: dict[str, Visit] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return sum(bool(visit.sessions) for visit in self._tokens.values())

    def open(self, token: str | None, session: str, language: str) -> Visit:
        """The visit of a page that was opened: the one that the browser remembers, if it lives, else a new one."""
        with self._lock:
            visit = self._tokens.get(token or "") or self._new(language)
            visit.sessions.add(session)
            visit.cancelled = False
            self._sessions[session] = visit
            return visit

    def of(self, request: Any, language: str | None = None) -> Visit:
        """The visit of an event; one of its own for an event that no page has announced."""
        session = getattr(request, "session_hash", None) or ""
        with self._lock:
            visit = self._sessions.get(session)
            if visit is None:
                visit = self._new(language or language_of(request))
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

    def drawn_when_opened(
        self, name: str, tab: Any, outputs: list[Any], draw: Callable[[str], list[Any]]
    ) -> tuple:
        """Draw a tab's outputs when it is first opened and, from then on, in every language that is switched to."""

        def opened(request: gr.Request) -> list[Any]:
            visit = self.of(request, language_of(request))
            visit.results[name] = True
            return draw(visit.language)

        def again(visit: Visit) -> list[Any]:
            return draw(visit.language) if visit.results.get(name) else [gr.skip()] * len(outputs)

        tab.select(opened, None, outputs, api_visibility="private", show_progress="hidden")
        return outputs, again

    def _new(self, language: str) -> Visit:
        token = secrets.token_urlsafe(24)
        visit = Visit(self.folder / (VISIT + secrets.token_hex(16)), token, language)
        self._tokens[token] = visit
        gone = sorted((v for v in self._tokens.values() if not v.sessions), key=lambda v: v.left)
        for old in gone[: max(0, len(self._tokens) - MOST)]:
            self._end(old)
        return visit

    def _end(self, visit: Visit) -> None:
        self._tokens.pop(visit.token, None)
        self._sessions = {s: v for s, v in self._sessions.items() if v is not visit}
        visit.cancelled = True
        self._on_end()
        for folder in (visit.folder, *visit.uploads):
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self, grace: float = GRACE, unclaimed: float = UNCLAIMED) -> None:
        """End visits whose visitors have left, and delete uploads, whole or cut off, that nobody claims."""
        with self._lock:
            now = time.monotonic()
            for visit in list(self._tokens.values()):
                if not visit.sessions and now - visit.left > grace:
                    self._end(visit)
            kept = {folder for visit in self._tokens.values() for folder in (visit.folder, *visit.uploads)}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path in kept or not path.name.startswith((UPLOAD, VISIT, "tmp")):
                continue
            with contextlib.suppress(OSError):  # somebody else was faster
                if time.time() - path.stat().st_mtime > unclaimed:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        delete_left_behind(self.folder.parent)

    def sweep_from_now_on(self, also: Callable[[], Any]) -> None:
        def work() -> None:
            while True:
                time.sleep(SWEEP)
                self.sweep()
                also()

        threading.Thread(target=work, name="visits", daemon=True).start()


def own_folder() -> Path:
    """A folder for everything that this process stores, in GRADIO_TEMP_DIR or the temporary folder; gone when it ends.

    Its lock tells other processes that it is in use.
    """
    base = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
    base.mkdir(parents=True, exist_ok=True)
    delete_left_behind(base)
    folder = Path(tempfile.mkdtemp(prefix=PROCESS, dir=base)).resolve()
    lock = open(folder / "lock", "w")  # noqa: SIM115 (held, and so locked, until the process ends)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)

    def leave() -> None:
        lock.close()
        shutil.rmtree(folder, ignore_errors=True)
        if os.environ.get("GRADIO_TEMP_DIR") == str(folder):
            os.environ["GRADIO_TEMP_DIR"] = str(base)

    atexit.register(leave)
    return folder


def delete_left_behind(base: Path) -> None:
    """Delete the folders of processes that were killed: nobody holds their locks."""
    for path in base.glob(f"{PROCESS}*/lock"):
        with contextlib.suppress(OSError), path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent)


def forget(paths: list[str]) -> None:
    """Delete uploads of the API as soon as they were read. Only uploads: a caller may also name an example of the page."""
    for path in map(Path, paths):
        if path.parent.name.startswith(UPLOAD):
            shutil.rmtree(path.parent, ignore_errors=True)
