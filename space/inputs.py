"""Input components that pass on uploads as they are: their paths, not decoded or copied, each in a folder of its own.

`gr.Image` would decode an image before its header has been checked. URLs are refused: this Space downloads nothing for a
visitor.
"""

from __future__ import annotations

import re
import secrets
from abc import ABCMeta
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio import route_utils
from gradio_client.utils import is_http_url_like

from space.texts import say
from space.visits import UPLOAD


def refusal(sentence: str) -> gr.Error:
    """An error that the visitor sees, without a traceback in the log."""
    return gr.Error(sentence, print_exception=False)


def values_of(event: gr.EventData, **kinds: Callable[[Any], Any]) -> list[Any]:
    """The values of an event that a script of the page sends, each converted by its kind, or one sentence as an error."""
    try:
        return [kind(getattr(event, name)) for name, kind in kinds.items()]
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise refusal(say("en", "upload_unfit")) from None


class _WithoutStub(type(gr.Image)):
    """Gradio's metaclass (6.31, without an option) writes a `.pyi` file beside every subclass; this one does not."""

    def __new__(cls, name: str, bases: tuple, attributes: dict[str, Any]) -> type:
        return ABCMeta.__new__(cls, name, bases, attributes)


async def _accept_upload(component: gr.components.Component, path: str | Path | None) -> str | None:
    """Refuse a URL, which Gradio would download."""
    if is_http_url_like(str(path)):
        raise refusal("URLs are not accepted: upload the file itself.")
    return await gr.components.Component.async_move_resource_to_block_cache(component, path)


class PictureInput(gr.Image, metaclass=_WithoutStub):
    """`gr.Image` in the page (drop, paste, camera); the path of the upload, undecoded, in Python."""

    is_template = True  # the frontend shows it as its parent class
    async_move_resource_to_block_cache = _accept_upload

    def preprocess(self, payload: Any) -> str | None:
        return payload.path if payload else None


class Upload(str):
    """The path of an upload; `name` is the visitor's file name, of which Gradio's path replaces some characters."""

    name: str


class FileInput(gr.File, metaclass=_WithoutStub):
    """`gr.File` in the page; the uploads in Python (its parent class leaves an empty file for each)."""

    is_template = True
    async_move_resource_to_block_cache = _accept_upload

    def preprocess(self, payload: Any) -> Upload | list[Upload] | None:
        if payload is None:
            return None
        paths = []
        for file in payload if isinstance(payload, list) else getattr(payload, "root", [payload]):
            paths.append(Upload(file.path))
            paths[-1].name = Path(str(file.orig_name or file.path).replace("\\", "/")).name
        return paths if self.file_count == "multiple" else paths[0]


def refuse_invalid_inputs(page: gr.Blocks) -> None:
    """Answer inputs of the wrong type with one sentence.

    A patch: Gradio 6.31 logs a traceback and tells the caller nothing. Obsolete once `launch` has an option for it.
    """
    preprocess = page.preprocess_data

    async def preprocess_or_refuse(*arguments: Any, **options: Any) -> list[Any]:
        try:
            return await preprocess(*arguments, **options)
        except gr.Error as error:
            raise refusal(error.message) from None
        except Exception:  # depends on what the caller sent as a path or a value
            raise refusal(say("en", "upload_unfit")) from None

    page.preprocess_data = preprocess_or_refuse


class _Upload(route_utils.GradioUploadFile):
    """An upload in a folder of its own, whose name cannot be guessed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        name = Path(self.filename or "").name
        self.filename = re.sub(r"^\.*$", "picture", name)  # "", "." and ".." are not file names
        folder = UPLOAD + secrets.token_hex(16)
        self.sha = SimpleNamespace(update=lambda data: None, hexdigest=lambda: folder)


def isolate_uploads() -> None:
    """Give every upload a folder of its own, for the rest of this process.

    A patch: Gradio 6.31 names the folder after the hash of the content, so two visitors who send the same file share it, and it
    is deleted as soon as the first of them has been answered. Obsolete once uploads belong to a session.
    """
    route_utils.GradioUploadFile = _Upload
