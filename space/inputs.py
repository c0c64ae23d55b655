"""Inputs that hand over uploads as they are: their paths, nothing decoded, nothing copied.

`gr.Image` would decode a picture before anyone has looked at its header.
"""

from __future__ import annotations

from abc import ABCMeta
from pathlib import Path
from typing import Any

import gradio as gr


class _WithoutStub(type(gr.Image)):
    """Gradio's own metaclass would write a `.pyi` file beside this one."""

    def __new__(cls, name: str, bases: tuple, attributes: dict[str, Any]) -> type:
        return ABCMeta.__new__(cls, name, bases, attributes)


class PictureInput(gr.Image, metaclass=_WithoutStub):
    """`gr.Image` in the page (drop, paste, camera); the path of the upload, undecoded, in Python."""

    is_template = True  # the page shows it as its parent

    def preprocess(self, payload: Any) -> str | None:
        return payload.path if payload else None


class FileInput(gr.File, metaclass=_WithoutStub):
    """`gr.File` in the page; the paths of the uploads in Python (its parent leaves an empty file for each)."""

    is_template = True

    def preprocess(self, payload: Any) -> str | list[str] | None:
        if payload is None:
            return None
        files = payload if isinstance(payload, list) else getattr(payload, "root", [payload])
        paths = [file.path for file in files]
        return paths if self.file_count == "multiple" else paths[0]


def forget(paths: list[str]) -> None:
    """Delete uploads as soon as they were read; Gradio's own sweep (`delete_cache`) gets the rest."""
    for path in paths:
        Path(path).unlink(missing_ok=True)
