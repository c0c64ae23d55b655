"""`python -m local_hub --root DIR [--port N] [--token TOKEN[:USER]]`: serve the repos in DIR until Ctrl-C.

Out, on stdout: the lines to `export` in the shell that the clients run in.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import threading

from local_hub.server import ADDRESS, DEFAULT_PORT, DEFAULT_TOKENS, LocalHub
from local_hub.storage import HubError


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="local_hub", description=f"A small Hugging Face Hub on {ADDRESS}.")
    parser.add_argument(
        "--root", required=True, metavar="DIR", help="folder of the repos, created if missing"
    )
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="0 picks a free one (default: %(default)s)"
    )
    help_text = "a token and its user, once for each user (default: hf_localdev:localdev)"
    parser.add_argument("--token", action="append", metavar="TOKEN[:USER]", default=[], help=help_text)
    options = parser.parse_args(arguments)
    if not options.root:
        sys.exit("--root takes a folder; '.' is the current one.")
    tokens = dict(read_token(text) for text in options.token)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with LocalHub(options.root, options.port, tokens) as hub:
            print_environment(hub)
            stop.wait()
    except HubError as error:
        sys.exit(error.message)


def read_token(text: str) -> tuple[str, str]:
    token, _, user = text.partition(":")
    if not token or any(character.isspace() for character in token):
        sys.exit("--token takes TOKEN or TOKEN:USER, without spaces.")
    return token, user or "localdev"


def print_environment(hub: LocalHub) -> None:
    """Print the lines to export, without a token given by --token: others read screens and logs."""
    print(f"# local Hub over {hub.root}; for the shell of the clients:")
    for name, value in hub.environment.items():
        secret = name == "HF_TOKEN" and value not in DEFAULT_TOKENS
        print("# export HF_TOKEN=…, as given by --token" if secret else f"export {name}={shlex.quote(value)}")
    print("# Ctrl-C ends it", flush=True)


if __name__ == "__main__":
    main()
