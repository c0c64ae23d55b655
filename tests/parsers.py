"""The argument parsers of the programs."""

from __future__ import annotations

import argparse
import functools
import importlib
from collections.abc import Iterator

import pytest


class Created(Exception):
    """Carries the parser out of `main`."""


@functools.cache
def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser that a module's `main` creates."""
    with pytest.MonkeyPatch.context() as patched, pytest.raises(Created) as created:
        patched.setattr(argparse.ArgumentParser, "parse_args", instead_of_parsing)
        importlib.import_module(module).main([])
    return created.value.args[0]


def instead_of_parsing(parser: argparse.ArgumentParser, *_: object) -> None:
    raise Created(parser)


def actions(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, argparse.Action]]:
    """Every argument of a parser and of its subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from actions(command)
        else:
            yield parser, action
