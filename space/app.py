"""Start the app: what `app.py` of a Space repo and `python -m space` call.

In: MODEL_ID, DATASET_ID, MODEL_REVISION of the environment (else the README's front matter), HF_ENDPOINT for another
Hub. Out: the app on GRADIO_SERVER_NAME:GRADIO_SERVER_PORT, 127.0.0.1:7860 unless a Space sets them.
"""

from __future__ import annotations

import os
import socket
import sys

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # both are read at import
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from hub_model.inference.errors import RepoError
from space.inputs import refuse_what_does_not_fit, separate_uploads, sweep_uploads
from space.page import SWEEP, build_error_page, build_page, launch_arguments
from space.resources import chosen_repos, load_resources

WAITING = 200  # events in the queue; past that a visitor is told that the Space is busy


def start(model_id: str, dataset_id: str, revision: str | None = None, **launch: object) -> object:
    """Build and launch the app; a model repo that cannot be used gives a page that says so."""
    try:
        page, i18n = build_page(load_resources(model_id, dataset_id, revision))
    except RepoError as error:
        print(f"error: {error}", file=sys.stderr)
        page, i18n = build_error_page(str(error))
    refuse_what_does_not_fit(page)
    separate_uploads()
    sweep_uploads(*SWEEP)
    page.queue(max_size=WAITING, default_concurrency_limit=8)
    page.launch(**launch_arguments(i18n), **launch)
    return page


def serve(name: str, port: int | None) -> int:
    """Run the app until it is interrupted. Raises OSError when the address is taken."""
    revision = os.environ.get("MODEL_REVISION") or None
    page = start(*chosen_repos(), revision, server_name=name, server_port=port, prevent_thread_lock=True)
    print(f"The Space is at {page.local_url} (Ctrl-C ends it)", flush=True)
    page.block_thread()
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
