"""Decode any image file to upright 8-bit RGB: the one decoder of dataset build, training, scoring, `Classifier` and Space.

In: the bytes or path of a file, a PIL image or an array. Out: an RGB image, with EXIF orientation applied and transparency
composited on white, or an `ImageError`. The header is checked before anything is decoded, and nothing is written to disk.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile

from hub_model.inference.depth import WideTiff, copies_of, from_array, has_several_pages, is_deep, read_deep
from hub_model.inference.errors import ImageError

# file suffix -> format; Pillow may hand others to Ghostscript. HEIF requires the optional package pillow-heif
SUFFIXES = {
    "jpg": "JPEG", "jpeg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "png": "PNG", "tif": "TIFF", "tiff": "TIFF", "bmp": "BMP",
    "dib": "BMP", "webp": "WEBP", "gif": "GIF", "ppm": "PPM", "pgm": "PPM", "pbm": "PPM", "pnm": "PPM", "avif": "AVIF",
    "jp2": "JPEG2000", "j2k": "JPEG2000", "jpx": "JPEG2000", "jpf": "JPEG2000", "heic": "HEIF", "heif": "HEIF", "hif": "HEIF",
}  # fmt: skip
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "AVIF", "JPEG2000")
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 24_000_000  # of four bytes each while decoding, which holds more than one copy
DECODER_COPIES = {"WEBP": 2, "AVIF": 2, "HEIF": 2, "JPEG2000": 4}  # memory of decoders, in decoded images
MAX_SIDE = 12_000
MIN_SIDE = 16
MAX_ASPECT_RATIO = 40  # the transform scales the short side to the input size, and the long one with it
LARGE = 4_000_000  # pixels; only one such image is decoded at a time
CELL_SIDE = 1024  # images of single cells are reduced to this first
END_MARKERS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB`\x82", b"GIF8": b"\x3b"}  # by magic bytes
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM")
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
JPEG_2000_MAGIC = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
UNSUPPORTED_SUFFIXES = ("jxl", "dng", "nef", "cr2", "arw", "svs", "ndpi", "czi", "psd", "dcm")
UNSUPPORTED_MAGIC = {
    b"\xff\x0a": "JPEG XL file",
    b"\0\0\0\x0cJXL ": "JPEG XL file",
    b"ZISRAW": "CZI file",
    b"8BPS": "Photoshop file",
}
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_large_image_lock = threading.Lock()

ImageLike = Image.Image | str | os.PathLike | bytes | np.ndarray


def read_image(
    source: bytes | str | os.PathLike, max_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode one file completely, downscaled to at most `max_side` pixels per side, or raise ImageError."""
    return decode(open_image(source, max_pixels), max_side)


def open_image(
    source: bytes | str | os.PathLike, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE
) -> Image.Image:
    """Open a file and check its header; return the image, not yet decoded, with its `format`.

    Raises:
        ImageError: it is missing, not an image, of an unsupported kind, or decoding it would take too much memory.
    """
    try:
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        if size == 0:
            raise ImageError("empty")
        if size > MAX_BYTES:
            raise ImageError("too_large", megabytes=size // 2**20, limit=MAX_BYTES // 2**20)
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except FileNotFoundError:  # also an upload that has expired
        raise ImageError("gone") from None
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(data), formats=_formats(data))
    except Image.DecompressionBombError:
        raise ImageError("bomb", limit=max_pixels // 10**6) from None
    except Exception:  # Pillow's parsers raise exceptions of any type
        image = _open_unidentified(data)
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise ImageError("too_small", width=width, height=height, limit=MIN_SIDE)
    copies = DECODER_COPIES.get(image.format) or copies_of(image)
    if copies * width * height > max_pixels:
        raise ImageError("bomb", limit=max_pixels // copies // 10**6)
    if max(width, height) > max_side:
        raise ImageError("too_wide", width=width, height=height, limit=max_side)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError("too_narrow", width=width, height=height)
    try:
        several_pages = has_several_pages(image)
    except Exception:
        raise ImageError("damaged") from None
    if several_pages:
        raise ImageError("animated")
    return image


def _formats(data: bytes) -> tuple[str, ...]:
    if _is_heif(data) and importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
        return (*FORMATS, "HEIF")
    return FORMATS


def _is_heif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS


def looks_like_image(name: str, head: bytes) -> bool:
    """Whether a file is an image, of a supported kind or not, by its suffix or its first 16 bytes."""
    if name.rpartition(".")[2].lower() in (*SUFFIXES, *UNSUPPORTED_SUFFIXES) or _is_heif(head):
        return True
    if head.startswith((b"RIFF", b"BM")):
        return head[8:12] == b"WEBP" or head[6:10] == bytes(4)
    magic = (*MAGIC, *TIFF_MAGIC, *JPEG_2000_MAGIC, *UNSUPPORTED_MAGIC)
    return head.startswith(magic) or head[4:12] == b"ftypavif"


def _open_unidentified(data: bytes) -> Image.Image:
    """Open as `WideTiff` a file that Pillow does not identify, or raise ImageError with the reason why it is unsupported."""
    if data.startswith(TIFF_MAGIC):
        try:
            return WideTiff(io.BytesIO(data))
        except ImageError:
            raise
        except Exception:  # tifffile's parsers raise exceptions of any type
            raise ImageError("damaged") from None
    if _is_heif(data):
        raise ImageError("damaged" if importlib.util.find_spec("pillow_heif") else "needs_heif")
    kind = next((kind for magic, kind in UNSUPPORTED_MAGIC.items() if data.startswith(magic)), None)
    if kind is None and data[128:132] == b"DICM":
        kind = "DICOM file"
    if kind:
        raise ImageError("unread", kind=kind)
    if data.startswith(MAGIC):
        raise ImageError("truncated" if _is_truncated(data) else "damaged")
    raise ImageError("not_an_image")


def _is_truncated(data: bytes) -> bool:
    """Whether a file lacks the end marker of its format."""
    end = next((end for magic, end in END_MARKERS.items() if data.startswith(magic)), b"")
    return end not in data[-65536:]


def decode(image: Image.Image, max_side: int | None = None) -> Image.Image:
    """Decode an image from `open_image` to RGB, down to its last pixel; downscaled to at most `max_side` pixels per side.

    Raises:
        ImageError: it is damaged or truncated, or its samples have no known scale.
    """
    data = image.fp.getvalue() if image.fp else b""
    with _large_image_lock if image.width * image.height > LARGE else contextlib.nullcontext():
        ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library may have set it
        try:
            with warnings.catch_warnings(action="ignore"):
                picture = to_rgb(image)
        except ImageError:
            raise
        except Exception as error:  # Pillow's parsers raise exceptions of any type
            truncated = "truncat" in str(error).lower() or isinstance(error, EOFError) or _is_truncated(data)
            raise ImageError("truncated" if truncated else "damaged") from None
        if _is_truncated(data):
            raise ImageError("truncated")
        if max_side and max(picture.size) > max_side:
            picture.thumbnail((max_side, max_side), Image.Resampling.BICUBIC, reducing_gap=3)
        return picture


def to_rgb(image: ImageLike) -> Image.Image:
    """Convert any image to upright 8-bit RGB; files are decoded with `read_image`.

    Raises:
        ImageError: it cannot be decoded. A PIL image that fails while it is loaded raises Pillow's exception.
    """
    if isinstance(image, bytes | str | os.PathLike):
        return read_image(image)
    if isinstance(image, np.ndarray):
        image = from_array(image)
    picture = read_deep(image) if is_deep(image) else image
    picture.load()
    if (orientation := _orientation(image)) in UPRIGHT:
        picture = picture.transpose(UPRIGHT[orientation])
        for key in ("exif", "xmp", "XML:com.adobe.xmp"):  # or the upright picture would be transposed again
            picture.info.pop(key, None)
    if picture.has_transparency_data:
        picture = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        background = Image.new("RGB", picture.size, "white")
        background.paste(picture, mask=picture.getchannel("A"))
        return background
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where it is missing or damaged."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's parsers raise exceptions of any type
        return 1
