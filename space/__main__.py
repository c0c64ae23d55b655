"""`python -m space` runs the app here; `python -m space push OWNER/NAME` makes it a Space.

In: MODEL_ID and DATASET_ID (or `--model`, `--dataset`): Hub ids or folders. Out: the app on 127.0.0.1, or
one commit to a Space repo.
"""

from __future__ import annotations

import argparse
import os
import sys

from hub_model.inference.errors import RepoError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m space", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", help="model repo: Hub id or folder (default: MODEL_ID, else the front matter)"
    )
    parser.add_argument(
        "--dataset", help="dataset repo: Hub id or folder (default: DATASET_ID, else the front matter)"
    )
    parser.add_argument(
        "--port", type=_port, help="port on 127.0.0.1 (default: the first free one from 7860)"
    )
    commands = parser.add_subparsers(dest="command")
    push = commands.add_parser("push", help="create or update a Space repo, in one commit")
    push.add_argument("repo_id", metavar="OWNER/NAME")
    push.add_argument("--model", help="the model repo that the Space shows")
    push.add_argument("--dataset", help="the dataset repo that the Space shows")
    push.add_argument("--private", action="store_true")
    chosen = parser.parse_args(arguments)
    for name, variable in (("model", "MODEL_ID"), ("dataset", "DATASET_ID")):
        if getattr(chosen, name):
            os.environ[variable] = getattr(chosen, name)
    return _push(chosen) if chosen.command == "push" else _run(chosen)


def _port(text: str) -> int:
    """Argparse type; the Space stands alone, so it has its own."""
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"must be a whole number in 1..65535, not {text!r}")
    return int(text)


def _run(chosen: argparse.Namespace) -> int:
    from space.app import start
    from space.resources import chosen_repos

    os.environ.setdefault("GRADIO_TEMP_DIR", _own_temporary_folder())
    try:
        page = start(
            *chosen_repos(),
            os.environ.get("MODEL_REVISION") or None,
            server_name="127.0.0.1",
            server_port=chosen.port,
            prevent_thread_lock=True,
        )
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"The Space is at {page.local_url} (Ctrl-C ends it)", flush=True)
    page.block_thread()
    return 0


def _own_temporary_folder() -> str:
    import tempfile

    return tempfile.mkdtemp(prefix="space-uploads-")


def _push(chosen: argparse.Namespace) -> int:
    from space.push import push_space
    from space.resources import chosen_repos

    try:
        url = push_space(chosen.repo_id, *chosen_repos(), private=chosen.private)
    except RepoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
