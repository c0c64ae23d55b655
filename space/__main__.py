"""The Space: run it locally, assemble its repo (`build OUT`), or publish it (`push OWNER/NAME`).

In: MODEL_ID and DATASET_ID (or `--model`, `--dataset`): Hub ids, or folders for a local run. Out: the app on
127.0.0.1, a folder, or one commit to a Space repo.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from hub_model.inference.errors import RepoError


def main(arguments: list[str] | None = None) -> int:
    repos = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    for name in ("model", "dataset"):
        repos.add_argument(
            f"--{name}",
            help=f"{name} repo: Hub id or folder (default: {name.upper()}_ID, else the front matter of README.md)",
        )
    parser = argparse.ArgumentParser(
        prog="python -m space", description=__doc__.splitlines()[0], parents=[repos]
    )
    parser.add_argument(
        "--port", type=_port, help="port on 127.0.0.1 (default: the first free one from 7860)"
    )
    commands = parser.add_subparsers(dest="command")
    build = commands.add_parser("build", parents=[repos], help="write the complete Space repo to a folder")
    build.add_argument("out", metavar="OUT", type=Path, help="new or empty folder")
    build.add_argument(
        "--static",
        action="store_true",
        help="a static Space instead: the model runs in the visitor's browser, and images never leave that machine",
    )
    push = commands.add_parser("push", parents=[repos], help="create or update a Space repo in one commit")
    push.add_argument("repo_id", metavar="OWNER/NAME", help="Space repo to create or update")
    push.add_argument("--private", action="store_true", help="make the Space private (default: public)")
    try:
        return _run(parser.parse_args(arguments))
    except (RepoError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    from space.resources import chosen_repos

    named = {f"{name.upper()}_ID": vars(options)[name] for name in ("model", "dataset") if name in options}
    repos = chosen_repos(os.environ | named)
    if options.command is None:
        from space.app import serve

        return serve(*repos, "127.0.0.1", options.port)
    from space.build import build_space, check_ids, push_space

    if options.command == "push":
        print(push_space(options.repo_id, *repos, private=options.private))
    elif options.static:
        from space.static_space import build_static_space

        files = build_static_space(options.out, repos[0])
        print(f"{options.out}: {len(files)} files; serve it with `python -m http.server -d {options.out}`")
    else:
        check_ids(*repos)
        files = build_space(options.out, *repos)
        print(f"{options.out}: {len(files)} files; run it with `python app.py`")
    return 0


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"must be a whole number in 1..65535, not {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
