"""The Space's entry: `python app.py`, which is what a Space runs; also `python -m space` from the project.

In: MODEL_ID, DATASET_ID, MODEL_REVISION of the environment (else the README's front matter), HF_ENDPOINT for
another Hub. Out: the app on GRADIO_SERVER_NAME:GRADIO_SERVER_PORT, 127.0.0.1:7860 unless a Space sets them,
or one sentence and exit status 1 when it cannot be there.
"""

import importlib.util
import os
import socket
import sys
from pathlib import Path

from hub_model.inference.errors import RepoError

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

if (
    "space" not in sys.modules
):  # the files lie at the top of a Space repo: make their folder the package `space`
    here = Path(__file__).resolve().parent
    spec = importlib.util.spec_from_file_location(
        "space", here / "__init__.py", submodule_search_locations=[str(here)]
    )
    sys.modules["space"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["space"])

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


def free_address() -> tuple[str, int]:
    """Name and port to listen at."""
    name, port = (
        os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        os.environ.get("GRADIO_SERVER_PORT", "7860"),
    )
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        sys.exit(f"error: GRADIO_SERVER_PORT must be a whole number in 1..65535, not {port!r}")
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    try:
        socket.create_server((name.strip("[]"), int(port)), family=family).close()
    except OSError as error:
        sys.exit(f"error: the app cannot listen at {name}:{port} ({error.strerror})")
    return name, int(port)


def main() -> None:
    name, port = free_address()
    revision = os.environ.get("MODEL_REVISION") or None
    address = {"server_name": name, "server_port": port}
    try:
        page = start(*chosen_repos(), revision, **address, prevent_thread_lock=True)
    except OSError as error:  # somebody took the port while the model was loaded
        sys.exit(f"error: {error}")
    print(f"The Space is at {page.local_url} (Ctrl-C ends it)", flush=True)
    page.block_thread()


if __name__ == "__main__":
    main()
