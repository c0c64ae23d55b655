"""`python -m local_hub --root DIR [--port N] [--token TOKEN[:USER]]`: serve the repos in DIR until Ctrl-C.

Prints the `export` lines for the shell that the clients run in.
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
    option = parser.add_argument
    option("--root", required=True, metavar="DIR", help="folder of the repos, created if missing")
    option("--port", type=int, default=DEFAULT_PORT, help="0 picks a free one (default: %(default)s)")
    token = "a token and its user; repeat it for more users (default: hf_localdev:localdev)"
    option("--token", action="append", metavar="TOKEN[:USER]", default=[], help=token)
    options = parser.parse_args(arguments)
    if not options.root:
        sys.exit("--root takes a folder; '.' is the current one.")
    tokens = dict(read_token(text) for text in options.token)
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())
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
    """Print the lines to export. A token from --token is left out, since screens and logs are seen by others."""
    print(f"# local Hub in {hub.root}; in the shell of the clients:")
    for name, value in hub.environment.items():
        secret = name == "HF_TOKEN" and value not in DEFAULT_TOKENS
        print("# export HF_TOKEN=…, as given by --token" if secret else f"export {name}={shlex.quote(value)}")
    print("# Ctrl-C stops it", flush=True)


if __name__ == "__main__":
    main()
