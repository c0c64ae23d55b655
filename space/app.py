"""Start the app: called by `app.py` of a Space repo and by `python -m space`.

In: MODEL_ID, DATASET_ID and MODEL_REVISION from the environment (else the README's front matter); HF_ENDPOINT for another
Hub. Out: the app on GRADIO_SERVER_NAME:GRADIO_SERVER_PORT, which a Space sets; default 127.0.0.1:7860.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from types import SimpleNamespace
from typing import Any

# read when the libraries are imported
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")  # a summary of the events is computed at every call
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from gradio import state_holder

from hub_model.inference.errors import RepoError
from space.desk import open_field
from space.inputs import isolate_uploads, refuse_invalid_inputs
from space.page import RELOAD, build_error_page, build_page, launch_arguments
from space.resources import Resources, chosen_repos, load_resources, public_name
from space.visits import Visits, own_folder

MAX_QUEUED = 200  # events; beyond that, visitors are told that the Space is busy
RETRY = (5, 60)  # seconds between attempts to load a missing repo: the first, doubled up to the last


class _Session(state_holder.SessionState):
    """A session without the copy of the page that Gradio 6.31 makes for deep links: 20 ms and 0.2 MB per API call.

    A patch: obsolete once Gradio makes that copy only for pages with a DeepLinkButton.
    """

    def __init__(self, blocks: Any) -> None:
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks=()))


def forget_finished(page: Any) -> None:
    """Drop what Gradio 6.31 never frees: the names of all uploads, and the events of sessions that have ended."""
    for names in page.temp_file_sets:
        names.clear()  # only used by `delete_cache`; here `Visits` deletes the files
    queue = page._queue
    for session in list(queue.pending_event_ids_session):
        if session not in queue.pending_messages_per_session:  # which Gradio limits to the latest 2,000
            queue.pending_event_ids_session.pop(session, None)


class App:
    """The app over two repos. It starts with the repos that can be loaded, and is relaunched once the others can be."""

    def __init__(self, model_id: str, dataset_id: str, revision: str | None = None, **launch: Any) -> None:
        self.repos, self.launch = (model_id, dataset_id, revision), launch
        self.page: Any = None
        self.visits = Visits(own_folder(), on_end=open_field.cache_clear)  # it caches a picture
        self.visits.start_sweeping(lambda: self.page and forget_finished(self.page))
        isolate_uploads()
        state_holder.SessionState = _Session
        self.show(self._load())

    @property
    def complete(self) -> bool:
        """Whether the model and, if one is named, the dataset are loaded."""
        return self.resources is not None and (self.resources.dataset is not None or not self.repos[1])

    def _load(self) -> Resources | str:
        """The resources, or the reason why there are none."""
        try:
            return load_resources(*self.repos)
        except RepoError as error:
            print(f"error: {error}", file=sys.stderr)
            return str(error).replace(self.repos[0], public_name(self.repos[0]))

    def show(self, loaded: Resources | str) -> None:
        """Launch the page, replacing the previous one."""
        if isinstance(loaded, str):
            self.resources, head = None, RELOAD
            page, i18n = build_error_page(loaded)
        else:
            self.resources, head = loaded, ""
            page, i18n = build_page(loaded, self.visits)
        refuse_invalid_inputs(page)
        page.queue(max_size=MAX_QUEUED, default_concurrency_limit=8)
        if self.page is not None:
            self.launch["server_port"] = self.page.server_port
            self.page.close(verbose=False)
        page.launch(**launch_arguments(i18n, head), **self.launch, prevent_thread_lock=True)
        self.page = page

    def load_missing(self, stopped: threading.Event) -> None:
        """Retry, less and less often, until both repos are loaded. A page is not replaced while visitors use it."""
        seconds = RETRY[0]
        while not self.complete and not stopped.wait(seconds):
            seconds = min(2 * seconds, RETRY[1])
            if self.resources is not None and len(self.visits):
                continue
            loaded = self._load()
            if isinstance(loaded, Resources) and (loaded.dataset is not None or self.resources is None):
                self.show(loaded)
                what = "All repos are" if self.complete else "The model is"
                print(f"{what} loaded: the Space is at {self.page.local_url}", flush=True)


def start(model_id: str, dataset_id: str, revision: str | None = None, **launch: Any) -> Any:
    """Build and launch the app and return its page; for a model repo that cannot be used, a page that says why."""
    return App(model_id, dataset_id, revision, **launch).page


def serve(model_id: str, dataset_id: str, host: str, port: int | None) -> int:
    """Run the app until it is interrupted. Raises OSError when the address is in use."""
    revision, stopped = os.environ.get("MODEL_REVISION") or None, threading.Event()
    app = App(model_id, dataset_id, revision, server_name=host, server_port=port)
    print(f"The Space is at {app.page.local_url} (press Ctrl-C to stop)", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())  # exit as after Ctrl-C, deleting all files
    try:
        app.load_missing(stopped)
        stopped.wait()
    except KeyboardInterrupt:
        pass
    app.page.close(verbose=False)
    return 0


def main() -> None:
    """Serve at the address of the environment; exit with one sentence if it is invalid or in use, before anything is loaded."""
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        sys.exit(f"error: GRADIO_SERVER_PORT must be a whole number in 1..65535, not {port!r}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host.strip("[]"), int(port)), family=family).close()
        serve(*chosen_repos(), host, int(port))
    except OSError as error:  # in use already, or since the model was loaded
        sys.exit(f"error: the app cannot listen at {host}:{port} ({error.strerror or error})")
