"""The argument parsers of the programs, caught before they parse."""

from __future__ import annotations

import argparse
import functools
import importlib
from collections.abc import Iterator

import pytest


class Caught(Exception):
    """The parser that a command would have used."""


@functools.cache
def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser that a module's `main` makes."""

    def caught(parser: argparse.ArgumentParser, *_: object) -> None:
        raise Caught(parser)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Caught) as found:
        patched.setattr(argparse.ArgumentParser, "parse_args", caught)
        importlib.import_module(module).main([])
    return found.value.args[0]


def actions(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, argparse.Action]]:
    """Every argument of a parser and of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from actions(command)
        else:
            yield parser, action
