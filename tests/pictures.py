"""Image files of every kind, as bytes: written with Pillow and tifffile, or by hand where neither can."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    image.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def noise(rng: np.random.Generator, side: int = 64) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def deep(values: np.ndarray, largest: int, kind: type = np.uint16) -> np.ndarray:
    """8-bit values rescaled to [0, largest]."""
    return np.round(values / 255 * largest).astype(kind)


def png(header: bytes, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG from the 13 bytes of its header, its rows, and other chunks (kind, data) before them."""
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def png_bomb(width: int, height: int) -> bytes:
    """A PNG whose header declares width × height pixels, with a few bytes of data."""
    return png(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), bytes(1000))


def png16(values: np.ndarray, significant: int | None = None) -> bytes:
    """A 16-bit PNG of values [H, W] or [H, W, 2 to 4]; Pillow cannot write 16-bit colour."""
    values = values if values.ndim == 3 else values[..., None]
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(header, rows, *([(b"sBIT", bytes([significant] * channels))] if significant else []))


def tiff(values: np.ndarray, **options) -> bytes:
    options.setdefault("photometric", "minisblack" if values.ndim == 2 else "rgb")
    tifffile.imwrite(buffer := io.BytesIO(), values, **options)
    return buffer.getvalue()


def planar_tiff(values: np.ndarray, **options) -> bytes:
    """A TIFF of values [H, W, C] with separate colour planes."""
    return tiff(np.moveaxis(values, 2, 0), planarconfig="separate", **options)


def packed_tiff(values: np.ndarray, bits: int) -> bytes:
    """A TIFF of values [H, W] or [H, W, 3] in packed samples of `bits` bits, with each row padded to whole bytes."""
    height, width, channels = np.atleast_3d(values).shape
    digits = (values[..., None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8)
    data = np.packbits(digits.reshape(height, -1), axis=1).tobytes()
    ifd = 8 + 2 + 9 * 12 + 4  # end of the header and its nine entries
    entries = [
        (256, width), (257, height), (258, bits if channels == 1 else ifd), (259, 1), (262, 1 if channels == 1 else 2),
        (273, ifd + 6), (277, channels), (278, height), (279, len(data)),
    ]  # fmt: skip
    header = struct.pack("<4sIH", b"II*\0", 8, len(entries))
    for tag, value in entries:
        header += struct.pack("<HHII", tag, 3 if tag == 258 else 4, channels if tag == 258 else 1, value)
    return header + struct.pack("<I3H", 0, *[bits] * 3) + data
