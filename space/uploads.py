"""What a visitor sends, checked by its header before it is decoded, and never written to disk here.

In: the bytes or the path of one upload. Out: an upright 8-bit RGB picture, or an `UploadError` whose
`reason` is a key of the texts (`upload_<reason>`) and whose message is that one sentence in English.
Greyscale, palette, RGBA, CMYK, 16-bit and EXIF-rotated pictures are accepted.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path

from PIL import Image

from space.classifier import to_rgb
from space.texts import say

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM")
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 24_000_000  # four bytes each while it is decoded, and there is more than one copy then
MAX_SIDE = 12_000
MIN_SIDE = 16
LONGEST = 40  # long side to short one: the transform brings the short one to size
CELL_SIDE = 1024  # a picture of one cell is reduced to this before anything else looks at it
_one_large_picture_at_a_time = threading.Lock()


class UploadError(ValueError):
    """One upload that cannot be used. `reason` names the sentence, `values` fill it."""

    def __init__(self, reason: str, **values: object) -> None:
        self.reason, self.values = reason, values
        super().__init__(self.sentence("en"))

    def sentence(self, language: str) -> str:
        return say(language, f"upload_{self.reason}", **self.values)


def read_picture(source: bytes | str | os.PathLike, max_side: int | None = None) -> Image.Image:
    """Decode one picture completely, or raise UploadError. Larger than `max_side`, it is reduced to that."""
    image = _open(source)
    with _one_large_picture_at_a_time if image.width * image.height > 4_000_000 else nullcontext():
        try:
            image.load()
            picture = to_rgb(image)
        except Exception as error:  # Pillow's parsers raise whatever they stumble over
            truncated = "truncat" in str(error).lower() or isinstance(error, EOFError)
            raise UploadError("truncated" if truncated else "damaged") from None
        if max_side and max(picture.size) > max_side:
            picture.thumbnail((max_side, max_side), Image.Resampling.BICUBIC, reducing_gap=3)
        return picture


def _open(source: bytes | str | os.PathLike) -> Image.Image:
    """The picture with its header read and nothing decoded."""
    try:
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    except FileNotFoundError:  # uploaded, then left alone for longer than uploads are kept
        raise UploadError("gone") from None
    if size == 0:
        raise UploadError("empty")
    if size > MAX_BYTES:
        raise UploadError("too_large", megabytes=size // 2**20, limit=MAX_BYTES // 2**20)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except Image.DecompressionBombError:
        raise UploadError("bomb", limit=MAX_PIXELS // 10**6) from None
    except Exception:  # Pillow's parsers raise whatever they stumble over
        raise UploadError("not_an_image") from None
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise UploadError("too_small", width=width, height=height, limit=MIN_SIDE)
    copies = 2 if image.format == "WEBP" else 1  # its decoder keeps as much again
    if copies * width * height > MAX_PIXELS:
        raise UploadError("bomb", limit=MAX_PIXELS // copies // 10**6)
    if max(width, height) > MAX_SIDE:
        raise UploadError("too_wide", width=width, height=height, limit=MAX_SIDE)
    if max(width, height) > LONGEST * min(width, height):
        raise UploadError("too_narrow", width=width, height=height)
    try:
        animated = image.format != "MPO" and getattr(image, "is_animated", False)
    except Exception:  # a GIF's frames are read for it
        raise UploadError("damaged") from None
    if animated:
        raise UploadError("animated")
    return image
