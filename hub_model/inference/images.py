"""What a visitor sends, checked by its header before it is decoded, and never written to disk here.

In: the bytes or the path of one upload. Out: an upright 8-bit RGB picture, or an `ImageError` whose
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

import numpy as np
from PIL import ExifTags, Image, ImageOps

from hub_model.inference.errors import ImageError

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM")
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 24_000_000  # four bytes each while it is decoded, and there is more than one copy then
MAX_SIDE = 12_000
MIN_SIDE = 16
LONGEST = 40  # long side to short one: the transform brings the short one to size
CELL_SIDE = 1024  # a picture of one cell is reduced to this before anything else looks at it
_one_large_picture_at_a_time = threading.Lock()

ImageLike = Image.Image | str | os.PathLike | bytes | np.ndarray


def read_picture(source: bytes | str | os.PathLike, max_side: int | None = None) -> Image.Image:
    """Decode one picture completely, or raise ImageError. Larger than `max_side`, it is reduced to that."""
    image = _open(source)
    with _one_large_picture_at_a_time if image.width * image.height > 4_000_000 else nullcontext():
        try:
            image.load()
            picture = to_rgb(image)
        except Exception as error:  # Pillow's parsers raise whatever they stumble over
            truncated = "truncat" in str(error).lower() or isinstance(error, EOFError)
            raise ImageError("truncated" if truncated else "damaged") from None
        if max_side and max(picture.size) > max_side:
            picture.thumbnail((max_side, max_side), Image.Resampling.BICUBIC, reducing_gap=3)
        return picture


def _open(source: bytes | str | os.PathLike) -> Image.Image:
    """The picture with its header read and nothing decoded."""
    try:
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    except FileNotFoundError:  # uploaded, then left alone for longer than uploads are kept
        raise ImageError("gone") from None
    if size == 0:
        raise ImageError("empty")
    if size > MAX_BYTES:
        raise ImageError("too_large", megabytes=size // 2**20, limit=MAX_BYTES // 2**20)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageError("bomb", limit=MAX_PIXELS // 10**6) from None
    except Exception:  # Pillow's parsers raise whatever they stumble over
        raise ImageError("not_an_image") from None
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise ImageError("too_small", width=width, height=height, limit=MIN_SIDE)
    copies = 2 if image.format == "WEBP" else 1  # its decoder keeps as much again
    if copies * width * height > MAX_PIXELS:
        raise ImageError("bomb", limit=MAX_PIXELS // copies // 10**6)
    if max(width, height) > MAX_SIDE:
        raise ImageError("too_wide", width=width, height=height, limit=MAX_SIDE)
    if max(width, height) > LONGEST * min(width, height):
        raise ImageError("too_narrow", width=width, height=height)
    try:
        animated = image.format != "MPO" and getattr(image, "is_animated", False)
    except Exception:  # a GIF's frames are read for it
        raise ImageError("damaged") from None
    if animated:
        raise ImageError("animated")
    return image


def to_rgb(image: ImageLike) -> Image.Image:
    """Any image as upright 8-bit RGB: EXIF orientation applied, 16 bits scaled to 8, transparency laid on
    white.

    Raises OSError (PIL.UnidentifiedImageError is one) for what cannot be decoded.
    """
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    elif isinstance(image, bytes):
        image = Image.open(io.BytesIO(image))
    elif not isinstance(image, Image.Image):
        image = Image.open(image)
    image.load()
    if _turned(image):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        ground = Image.new("RGB", image.size, "white")
        ground.paste(image, mask=image.getchannel("A"))
        return ground
    return image if image.mode == "RGB" else image.convert("RGB")


def _turned(image: Image.Image) -> bool:
    """Whether its EXIF data says that it lies on its side or is mirrored; damaged data says nothing."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # Pillow's parsers raise whatever they stumble over
        return False


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16 or 32 bits a pixel as 8-bit grey, a strip at a time: all in float64 would be eight times as large."""
    width, height, rows = *image.size, max(1, 2**20 // image.width)
    boxes = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]
    top_value = max(np.nan_to_num(np.asarray(image.crop(box))).max(initial=0) for box in boxes)
    scale = 257.0 if top_value > 255 else 1.0
    grey = np.empty((height, width), dtype=np.uint8)
    for box in boxes:
        values = np.nan_to_num(np.asarray(image.crop(box), dtype=np.float64))
        grey[box[1] : box[3]] = np.clip(np.round(values / scale), 0, 255)
    return Image.fromarray(grey)
