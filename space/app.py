"""Start the app: what `app.py` of a Space repo and `python -m space` call.

In: MODEL_ID, DATASET_ID, MODEL_REVISION of the environment (else the README's front matter), HF_ENDPOINT for another
Hub. Out: the app on GRADIO_SERVER_NAME:GRADIO_SERVER_PORT, 127.0.0.1:7860 unless a Space sets them.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # all three are read early
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")  # a summary of them is written at every call
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from gradio import state_holder

from hub_model.inference.errors import RepoError
from space.desk import open_field
from space.inputs import refuse_what_does_not_fit, separate_uploads
from space.page import AGAIN, build_error_page, build_page, launch_arguments
from space.resources import Resources, chosen_repos, load_resources
from space.visits import Visits, own_folder

WAITING = 200  # events in the queue; past that a visitor is told that the Space is busy
RETRY = (
    5,
    60,
)  # seconds between tries to reach what was missing at start: doubled from the first to the last


class _Session(state_holder.SessionState):
    """A session without a copy of the whole page, which Gradio 6.31 makes for deep links: 20 ms and 0.2 MB a call of the API.

    A patch: it can go when only pages with a DeepLinkButton pay for them.
    """

    def __init__(self, blocks: Any) -> None:
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks=()))


def forget_finished(page: Any) -> None:
    """Drop what Gradio 6.31 keeps of every call for good: names of uploads, and the events of sessions that are over."""
    for names in page.temp_file_sets:
        names.clear()  # they serve `delete_cache`, which this page leaves to its visits
    known = page._queue.pending_messages_per_session  # of the latest 2,000
    for session in [one for one in list(page._queue.pending_event_ids_session) if one not in known]:
        page._queue.pending_event_ids_session.pop(session, None)


class App:
    """The app over two repos: started with what is there, and again with the rest as soon as that can be had."""

    def __init__(self, model_id: str, dataset_id: str, revision: str | None = None, **launch: Any) -> None:
        self.repos, self.launch = (model_id, dataset_id, revision), launch
        self.folder = own_folder()
        self.page: Any = None
        self.visits = Visits(self.folder, on_end=open_field.cache_clear)  # the picture it holds, too
        self.visits.sweep_from_now_on(lambda: self.page and forget_finished(self.page))
        separate_uploads()
        state_holder.SessionState = _Session
        self.show(self._load())

    @property
    def complete(self) -> bool:
        """Whether both repos are there, as far as they were named."""
        return self.resources is not None and (self.resources.dataset is not None or not self.repos[1])

    def _load(self) -> Resources | str:
        """The resources, or why there are none."""
        try:
            return load_resources(*self.repos)
        except RepoError as error:
            print(f"error: {error}", file=sys.stderr)
            model = self.repos[0]
            return str(error).replace(model, Path(model).name) if Path(model).exists() else str(error)

    def show(self, found: Resources | str) -> None:
        """Launch the page, in place of the one before."""
        self.resources = None if isinstance(found, str) else found
        page, i18n = build_error_page(found) if isinstance(found, str) else build_page(found, self.visits)
        refuse_what_does_not_fit(page)
        page.queue(max_size=WAITING, default_concurrency_limit=8)
        if self.page is not None:
            self.launch["server_port"] = self.page.server_port
            self.page.close(verbose=False)
        page.launch(
            **launch_arguments(i18n, AGAIN if isinstance(found, str) else ""),
            **self.launch,
            prevent_thread_lock=True,
        )
        self.page = page

    def heal(self, stopped: threading.Event) -> None:
        """Try again, ever less often, until both repos are there; nobody's page is replaced while it is in use."""
        seconds = RETRY[0]
        while not self.complete and not stopped.wait(seconds):
            seconds = min(2 * seconds, RETRY[1])
            if self.resources is not None and len(self.visits):
                continue
            found = self._load()
            if isinstance(found, Resources) and (found.dataset is not None or self.resources is None):
                self.show(found)
                print(f"The Space is complete at {self.page.local_url}", flush=True)


def start(model_id: str, dataset_id: str, revision: str | None = None, **launch: Any) -> Any:
    """Build and launch the app and return its page; a model repo that cannot be used gives a page that says so."""
    return App(model_id, dataset_id, revision, **launch).page


def serve(name: str, port: int | None) -> int:
    """Run the app until it is interrupted. Raises OSError when the address is taken."""
    revision, stopped = os.environ.get("MODEL_REVISION") or None, threading.Event()
    app = App(*chosen_repos(), revision, server_name=name, server_port=port)
    print(f"The Space is at {app.page.local_url} (Ctrl-C ends it)", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())  # ends as Ctrl-C does, with its files deleted
    try:
        app.heal(stopped)
        stopped.wait()
    except KeyboardInterrupt:
        pass
    app.page.close(verbose=False)
    return 0


def main() -> None:
    """Listen where a Space says, or exit with one sentence before anything is loaded."""
    name = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        sys.exit(f"error: GRADIO_SERVER_PORT must be a whole number in 1..65535, not {port!r}")
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    try:
        socket.create_server((name.strip("[]"), int(port)), family=family).close()
        serve(name, int(port))
    except OSError as error:  # taken already, or while the model was loaded
        sys.exit(f"error: the app cannot listen at {name}:{port} ({error.strerror or error})")
