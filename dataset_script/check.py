"""Is this file a whole image? Bytes in; an `Accepted` (with what grouping needs) or a `Rejected` with its reason out.

Every image is decoded to the last pixel. The header is judged first: what would take absurdly much memory is refused
without being decoded. The bytes themselves are never changed.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from dataset_script.drawn_cells import COMMENT
from dataset_script.layout import IMAGE_SUFFIXES, Rejected, suffix
from dataset_script.overlaps import fingerprint
from dataset_script.source import MAX_FILE_BYTES
from hub_model.inference.errors import first_line

Image.init()  # `formats` below names decoders, which Pillow registers late

MAX_PIXELS = 24_000_000  # a photograph of a large camera; 96 MB decoded at most
MAX_SIDE = 16_384
MIN_SIDE = 8
LONGEST = 40  # long side to short one: whoever brings the short one to a network's size would fill the memory
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP")  # JPEG opens MPO too
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"GIF8", b"RIFF", b"BM")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h, see mallopt(3)
ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB`\x82", b"GIF8": b"\x3b"}  # first bytes -> last mark


@dataclass(frozen=True, slots=True)
class Accepted:
    """A whole image."""

    path: str
    sha256: bytes  # of the file, 32 bytes
    pixels: bytes  # digest of the decoded picture, 16 bytes: equal for a copy with other metadata
    size: tuple[int, int]  # width, height
    format: str
    length: int  # bytes of the file
    drawn: bool
    points: np.ndarray  # see overlaps.POINT


def luminance(image: Image.Image) -> np.ndarray:
    """Return a decoded image of any mode as luminance, uint8 or float32 [H, W] in 0…255; transparency over white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        low, high = np.inf, -np.inf
        for _, strip in strips(image):
            values = np.asarray(strip, dtype=np.float32)
            finite = values[np.isfinite(values)]
            low, high = finite.min(initial=low), finite.max(initial=high)
        gray = np.empty((image.height, image.width), dtype=np.float32)
        with np.errstate(all="ignore"):
            for top, strip in strips(image):
                values = (np.asarray(strip, dtype=np.float32) - low) * (255 / max(high - low, 1e-6))
                gray[top : top + strip.height] = np.nan_to_num(values).clip(0, 255)
        return gray
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        ground = Image.new("RGB", image.size, "white")
        ground.paste(image, mask=image.getchannel("A"))
        image = ground
    return np.asarray(image.convert("L"))


def strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield (first row, strip) from top to bottom, a million pixels at a time: Pillow hands out all pixels twice over."""
    rows = max(1, 2**20 // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _cut_short(data: bytes) -> bool:
    """Whether the file starts as an image but lacks the mark that its format ends with."""
    end = next((end for magic, end in ENDS.items() if data.startswith(magic)), b"")
    return end not in data[-65536:]


def _judge_header(path: str, image: Image.Image) -> Rejected | None:
    width, height = image.size
    pixels = width * height * (2 if image.format == "WEBP" else 1)  # its decoder keeps two more copies
    short, long = sorted((width, height))
    if pixels > MAX_PIXELS or long > MAX_SIDE or short < MIN_SIDE or long > LONGEST * short:
        return Rejected(path, "absurd dimensions", f"{width}x{height} pixels")
    kind = "JPEG" if image.format == "MPO" else image.format
    if IMAGE_SUFFIXES.get(suffix(path)) != kind:
        return Rejected(path, "wrong extension", f"content is {kind}")
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        return Rejected(path, "several pages", f"{image.n_frames} frames or pages in one file")
    return None


def _judge_error(path: str, data: bytes, error: Exception) -> Rejected:
    text = first_line(error)
    if isinstance(error, Image.DecompressionBombError):
        return Rejected(path, "absurd dimensions", text.split(",")[0])
    if "truncated" in text.lower() or _cut_short(data):
        return Rejected(path, "truncated", text)
    if isinstance(error, UnidentifiedImageError) and not data.startswith(MAGIC):
        return Rejected(path, "not an image")
    return Rejected(path, "damaged", text)


def check(path: str, data: bytes) -> Accepted | Rejected:
    """Decode one file completely; see the module for what is refused. Never raises for what is in the file."""
    if not data:
        return Rejected(path, "zero bytes")
    if len(data) > MAX_FILE_BYTES:
        return Rejected(path, "absurd file size", f"more than {MAX_FILE_BYTES >> 20} MB")
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library may have set it: a half image is no image
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            refused = _judge_header(path, image)
            if refused:
                return refused
            image.load()
            if _cut_short(data):
                return Rejected(path, "truncated", "the mark at the end of the file is missing")
            gray = luminance(image)
            digest = hashlib.blake2b(
                repr((image.mode, image.size, image.getpalette())).encode(), digest_size=16
            )
            for _, strip in strips(image):
                digest.update(strip.tobytes())
            comment = image.info.get("comment")
            return Accepted(
                path, hashlib.sha256(data).digest(), digest.digest(), image.size, image.format, len(data),
                comment == COMMENT, fingerprint(gray),
            )  # fmt: skip
    except Exception as error:  # whatever a decoder raises on bytes made to break it: it is this file's fault
        return _judge_error(path, data, error)


def keep_small_blocks() -> None:
    """Tell a worker's malloc, where it is glibc's, to keep up to 16 MB of what is freed, in blocks of up to 4 MB.

    As it is set up, it hands an image's buffers back to the system, which maps and zeroes their 600 pages anew for the next one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 4 * 2**20)
        mallopt(M_TRIM_THRESHOLD, 16 * 2**20)


def check_batch(batch: list[tuple[str, bytes]]) -> list[Accepted | Rejected]:
    """Check several files: what a worker process is given at a time."""
    return [check(path, data) for path, data in batch]
