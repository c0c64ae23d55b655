"""The exceptions of inference, and the first line of a library's error without memory addresses."""

from __future__ import annotations

import re

IMAGE_ERRORS = {
    "empty": "The file is empty.",
    "too_large": "The file has {megabytes} MB; up to {limit} MB are accepted.",
    "not_an_image": "This is not an image in a supported format (such as JPEG, PNG, TIFF, BMP or WebP).",
    "unread": "This {kind} is not supported: save the picture as PNG, or as TIFF with 8 or 16 bits per channel.",
    "needs_heif": "HEIC pictures require another package (pip install pillow-heif): install it, or save the picture as JPEG.",
    "depth": "The pixel values range from {low} to {high}: save the picture with 8 or 16 bits per channel, 0 for black.",
    "too_small": "The picture has only {width}×{height} pixels; at least {limit} on each side are needed.",
    "too_wide": "The picture has {width}×{height} pixels; sides up to {limit} are accepted.",
    "bomb": "The picture has more than {limit} million pixels: crop it, or use the field tab.",
    "slide": "The picture has more than {limit} million pixels: cut it into several and count them one by one.",
    "animated": "The file is animated or has several pages; please provide a single picture.",
    "truncated": "The file is cut off: part of the picture is missing.",
    "damaged": "The file is damaged and cannot be decoded.",
    "bad_zip": "The zip file is damaged.",
    "zip_bomb": "The zip file would unpack to far more than pictures need and was not opened.",
    "zip_crowded": "The zip file has {entries} entries; up to {limit} are accepted.",
    "zip_path": "The path of this zip entry is outside the archive, or it is a link.",
    "zip_locked": "This zip entry is encrypted.",
    "too_many": "Only the first {limit} pictures are counted.",
    "missing": "Please upload a picture.",
    "too_narrow": "The picture is {width} × {height} pixels: too narrow for a cell.",
    "unfit": "These inputs are not valid for this call: a picture must be a file that was uploaded here.",
    "gone": "The picture was not found: check its path, or upload it again (uploads are deleted after a while).",
}
OBJECT_REPR = re.compile(r"\s*<[^<>]* at 0x[0-9a-fA-F]+>")  # Pillow's messages hold the address of a buffer


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type when it has none."""
    return next(iter(OBJECT_REPR.sub("", str(error)).strip().splitlines()), type(error).__name__)


class RepoError(ValueError):
    """A model, dataset or Space repo (or its folder) is missing, unsafe or malformed; the message is one sentence."""


class ImageError(ValueError):
    """An image file that cannot be used; `reason` is a key of IMAGE_ERRORS, `values` fill its placeholders."""

    def __init__(self, reason: str, **values: object) -> None:
        self.reason, self.values = reason, values
        super().__init__(IMAGE_ERRORS[reason].format(**values))
