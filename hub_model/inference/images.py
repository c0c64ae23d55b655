"""Any picture file as upright 8-bit RGB: the one decoder of build, training, scoring, `Classifier` and Space.

In: the bytes or the path of one file, a PIL image or an array. Out: an RGB picture, EXIF orientation applied and transparency
laid on white, or an `ImageError`. The header is judged before anything is decoded, and nothing is written to disk.
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

# file ending -> format; Pillow may hand others to Ghostscript. HEIF needs the optional package pillow-heif
SUFFIXES = {
    "jpg": "JPEG", "jpeg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "png": "PNG", "tif": "TIFF", "tiff": "TIFF", "bmp": "BMP",
    "dib": "BMP", "webp": "WEBP", "gif": "GIF", "ppm": "PPM", "pgm": "PPM", "pbm": "PPM", "pnm": "PPM", "avif": "AVIF",
    "jp2": "JPEG2000", "j2k": "JPEG2000", "jpx": "JPEG2000", "jpf": "JPEG2000", "heic": "HEIF", "heif": "HEIF", "hif": "HEIF",
}  # fmt: skip
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "AVIF", "JPEG2000")
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 24_000_000  # four bytes each while it is decoded, and there is more than one copy then
COPIES = {"WEBP": 2, "AVIF": 2, "HEIF": 2, "JPEG2000": 4}  # what their decoders hold, in pictures
MAX_SIDE = 12_000
MIN_SIDE = 16
LONGEST = 40  # long side to short one: the transform brings the short one to size
LARGE = 4_000_000  # pixels; of such pictures one is decoded at a time
CELL_SIDE = 1024  # a picture of one cell is reduced to this before anything else looks at it
ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB`\x82", b"GIF8": b"\x3b"}  # first bytes -> last mark
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM")
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
JPEG_2000_MAGIC = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
OTHER_SUFFIXES = ("jxl", "dng", "nef", "cr2", "arw", "svs", "ndpi", "czi", "psd", "dcm")
OTHER_KINDS = {
    b"\xff\x0a": "JPEG XL file",
    b"\0\0\0\x0cJXL ": "JPEG XL file",
    b"ZISRAW": "CZI file",
    b"8BPS": "Photoshop file",
}
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_one_large_picture_at_a_time = threading.Lock()

ImageLike = Image.Image | str | os.PathLike | bytes | np.ndarray


def read_picture(
    source: bytes | str | os.PathLike, max_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode one file completely, or raise ImageError. Larger than `max_side`, the picture is reduced to that."""
    return decode(open_picture(source, max_pixels), max_side)


def open_picture(
    source: bytes | str | os.PathLike, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE
) -> Image.Image:
    """Read a file's header and judge it: the picture, not decoded yet, with its `format`.

    Raises:
        ImageError: it is no picture, is of a kind that is not read, or would take absurdly much memory.
    """
    try:
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        if size == 0:
            raise ImageError("empty")
        if size > MAX_BYTES:
            raise ImageError("too_large", megabytes=size // 2**20, limit=MAX_BYTES // 2**20)
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except FileNotFoundError:  # uploaded, then left alone for longer than uploads are kept
        raise ImageError("gone") from None
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(data), formats=_formats(data))
    except Image.DecompressionBombError:
        raise ImageError("bomb", limit=max_pixels // 10**6) from None
    except Exception:  # Pillow's parsers raise whatever they stumble over
        image = _open_otherwise(data)
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise ImageError("too_small", width=width, height=height, limit=MIN_SIDE)
    copies = COPIES.get(image.format) or copies_of(image)
    if copies * width * height > max_pixels:
        raise ImageError("bomb", limit=max_pixels // copies // 10**6)
    if max(width, height) > max_side:
        raise ImageError("too_wide", width=width, height=height, limit=max_side)
    if max(width, height) > LONGEST * min(width, height):
        raise ImageError("too_narrow", width=width, height=height)
    try:
        several = has_several_pages(image)
    except Exception:
        raise ImageError("damaged") from None
    if several:
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


def looks_like_picture(name: str, head: bytes) -> bool:
    """Whether a file is meant as a picture, of a kind that is read or not, by its ending or its first 16 bytes."""
    if name.rpartition(".")[2].lower() in (*SUFFIXES, *OTHER_SUFFIXES) or _is_heif(head):
        return True
    if head.startswith((b"RIFF", b"BM")):
        return head[8:12] == b"WEBP" or head[6:10] == bytes(4)
    return head.startswith((*MAGIC, *TIFF_MAGIC, *JPEG_2000_MAGIC, *OTHER_KINDS)) or head[4:12] == b"ftypavif"


def _open_otherwise(data: bytes) -> Image.Image:
    """Open a file that Pillow does not identify.

    Raises:
        ImageError: it is not read, and why.
    """
    if data.startswith(TIFF_MAGIC):
        try:
            return WideTiff(io.BytesIO(data))
        except ImageError:
            raise
        except Exception:  # tifffile's, too
            raise ImageError("damaged") from None
    raise _unread(data)


def _unread(data: bytes) -> ImageError:
    """Why a file that Pillow does not identify is not read."""
    if _is_heif(data):
        return ImageError("damaged" if importlib.util.find_spec("pillow_heif") else "needs_heif")
    kind = next((kind for magic, kind in OTHER_KINDS.items() if data.startswith(magic)), None)
    if kind is None and data[128:132] == b"DICM":
        kind = "DICOM file"
    if kind:
        return ImageError("unread", kind=kind)
    if data.startswith(MAGIC):
        return ImageError("truncated" if _cut_short(data) else "damaged")
    return ImageError("not_an_image")


def _cut_short(data: bytes) -> bool:
    """Whether the file starts as a picture but lacks the mark that its format ends with."""
    end = next((end for magic, end in ENDS.items() if data.startswith(magic)), b"")
    return end not in data[-65536:]


def decode(image: Image.Image, max_side: int | None = None) -> Image.Image:
    """Decode what `open_picture` gave, to its last pixel, as RGB; reduced to `max_side` where it is larger.

    Raises:
        ImageError: it is damaged, cut off, or of an unknown scale.
    """
    data = image.fp.getvalue() if image.fp else b""
    with _one_large_picture_at_a_time if image.width * image.height > LARGE else contextlib.nullcontext():
        ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library may have set it: half a picture is none
        try:
            with warnings.catch_warnings(action="ignore"):
                picture = to_rgb(image)
        except ImageError:
            raise
        except Exception as error:  # Pillow's parsers raise whatever they stumble over
            cut = "truncat" in str(error).lower() or isinstance(error, EOFError) or _cut_short(data)
            raise ImageError("truncated" if cut else "damaged") from None
        if _cut_short(data):
            raise ImageError("truncated")
        if max_side and max(picture.size) > max_side:
            picture.thumbnail((max_side, max_side), Image.Resampling.BICUBIC, reducing_gap=3)
        return picture


def to_rgb(image: ImageLike) -> Image.Image:
    """Any picture as upright 8-bit RGB; files are read with `read_picture`.

    Raises:
        ImageError: it cannot be read. A PIL image that breaks off while it is loaded raises what Pillow raises.
    """
    if isinstance(image, bytes | str | os.PathLike):
        return read_picture(image)
    if isinstance(image, np.ndarray):
        image = from_array(image)
    stored = image
    if is_deep(image):
        image = read_deep(image)
    else:
        image.load()
    if (orientation := _orientation(stored)) in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
        for told in ("exif", "xmp", "XML:com.adobe.xmp"):  # or the upright picture would be turned again
            image.info.pop(told, None)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        ground = Image.new("RGB", image.size, "white")
        ground.paste(image, mask=image.getchannel("A"))
        return ground
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """How its EXIF data says that it lies; damaged data says upright."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's parsers raise whatever they stumble over
        return 1
