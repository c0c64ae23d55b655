"""What is told of a library's error: its first line, without what differs from run to run."""

from __future__ import annotations

import re

OBJECT = re.compile(r"\s*<[^<>]* at 0x[0-9a-fA-F]+>")  # Pillow names a buffer by its address


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind when it has none."""
    return next(iter(OBJECT.sub("", str(error)).strip().splitlines()), type(error).__name__)
