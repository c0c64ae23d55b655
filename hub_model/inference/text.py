"""File names and text from untrusted files: recognized, and made safe to display and to write into tables."""

from __future__ import annotations

import re

# files and folders that macOS, Windows and Synology add, in lower case
SYSTEM_NAMES = {
    "thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", "icon\r", "__macosx", "@eadir", "$recycle.bin",
    "system volume information",
}  # fmt: skip
FORMULA = re.compile(r"\s*[=+\-@]|[\t\r\n]")  # a spreadsheet evaluates a cell that begins like this


def is_system_file(path: str) -> bool:
    """Whether a path, with forward slashes, is or is in something that an operating system adds to folders."""
    parts = path.lower().split("/")
    return parts[-1].startswith("._") or not SYSTEM_NAMES.isdisjoint(parts)


def printable(text: str) -> str:
    """Return a file name as valid Unicode, with undecodable bytes and control characters escaped as \\xNN."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def csv_cell(value: object) -> str:
    """Return a CSV cell, escaped with an apostrophe where a spreadsheet would evaluate it (OWASP, *CSV injection*)."""
    text = str(value)
    return f"'{text}" if FORMULA.match(text) else text
