"""Inputs that hand over uploads as they are: their paths, nothing decoded, nothing copied, each in a folder of its own.

`gr.Image` would decode a picture before anyone has looked at its header. An address is no upload: this Space fetches
nothing that a visitor names.
"""

from __future__ import annotations

import re
import secrets
from abc import ABCMeta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio import route_utils
from gradio_client.utils import is_http_url_like

from space.texts import say
from space.visits import UPLOAD


class _WithoutStub(type(gr.Image)):
    """Gradio's metaclass (6.31, without an option) writes a `.pyi` file beside every subclass; this one does not."""

    def __new__(cls, name: str, bases: tuple, attributes: dict[str, Any]) -> type:
        return ABCMeta.__new__(cls, name, bases, attributes)


async def _accept_upload(component: gr.components.Component, path: str | Path | None) -> str | None:
    """Refuse an address, which Gradio would download."""
    if is_http_url_like(str(path)):
        raise gr.Error("An address cannot be used: upload the file itself.", print_exception=False)
    return await gr.components.Component.async_move_resource_to_block_cache(component, path)


class PictureInput(gr.Image, metaclass=_WithoutStub):
    """`gr.Image` in the page (drop, paste, camera); the path of the upload, undecoded, in Python."""

    is_template = True  # the page shows it as its parent
    async_move_resource_to_block_cache = _accept_upload

    def preprocess(self, payload: Any) -> str | None:
        return payload.path if payload else None


class Upload(str):
    """The path of an upload; `name` is what its sender calls it, where Gradio's path has other characters."""

    name: str


class FileInput(gr.File, metaclass=_WithoutStub):
    """`gr.File` in the page; the uploads in Python (its parent leaves an empty file for each)."""

    is_template = True
    async_move_resource_to_block_cache = _accept_upload

    def preprocess(self, payload: Any) -> Upload | list[Upload] | None:
        if payload is None:
            return None
        files = payload if isinstance(payload, list) else getattr(payload, "root", [payload])
        paths = []
        for file in files:
            paths.append(Upload(file.path))
            paths[-1].name = Path(str(file.orig_name or file.path).replace("\\", "/")).name
        return paths if self.file_count == "multiple" else paths[0]


def refuse_what_does_not_fit(page: gr.Blocks) -> None:
    """Answer inputs that an event cannot take with a sentence.

    A patch: Gradio 6.31 logs a traceback and tells the caller nothing. It can go when `launch` has an option for it.
    """
    read = page.preprocess_data

    async def read_or_refuse(*arguments: Any, **options: Any) -> list[Any]:
        try:
            return await read(*arguments, **options)
        except gr.Error as error:
            raise gr.Error(error.message, print_exception=False) from None
        except Exception:  # a path of any kind, or a value of any type
            raise gr.Error(say("en", "upload_unfit"), print_exception=False) from None

    page.preprocess_data = read_or_refuse


class _Upload(route_utils.GradioUploadFile):
    """An upload whose folder nobody else has, and nobody can guess."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.filename = re.sub(
            r"^\.*$", "picture", Path(self.filename or "").name
        )  # "", "." and ".." are no names
        name = UPLOAD + secrets.token_hex(16)
        self.sha = SimpleNamespace(update=lambda data: None, hexdigest=lambda: name)


def separate_uploads() -> None:
    """Give every upload a folder of its own, from now on in this process.

    A patch: Gradio 6.31 names the folder by the hash of the content, so two visitors who send the same picture share one
    file, and the first to be answered takes it away from the other. It can go when uploads belong to a session.
    """
    route_utils.GradioUploadFile = _Upload
