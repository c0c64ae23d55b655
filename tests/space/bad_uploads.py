"""Bad uploads by name: what visitors send by mistake or on purpose. Used by the tests and by the report."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable

from PIL import Image

from dataset_script.synthetic_cells import draw_cell


def jpeg(seed: int = 0) -> bytes:
    """A good cell."""
    draw_cell("BLA", seed).save(buffer := io.BytesIO(), "JPEG")
    return buffer.getvalue()


def picture(mode: str, size: tuple[int, int], file_format: str = "PNG") -> bytes:
    """An even picture."""
    Image.new(mode, size).save(buffer := io.BytesIO(), file_format)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing: a decompression bomb's header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def animated() -> bytes:
    """A GIF of three frames."""
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    frames[0].save(buffer := io.BytesIO(), "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def half_a_frame() -> bytes:
    """A GIF whose second frame ends with its descriptor."""
    return picture("P", (64, 64), "GIF").removesuffix(b";") + b"," + struct.pack("<HHHHB", 0, 0, 64, 64, 0)


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip file."""
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


# Name → (bytes, the reason that it must get). What is made only when used is large.
PICTURES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.jpg": (lambda: b"", "empty"),
    "text.jpg": (lambda: b"I am not a picture", "not_an_image"),
    "page.svg": (
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "not_an_image",
    ),
    "document.pdf": (lambda: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "not_an_image"),
    "truncated.jpg": (lambda: jpeg()[:3000], "truncated"),
    "damaged.png": (lambda: png_header(100, 100), "truncated"),
    "bomb.png": (lambda: png_header(30_000, 30_000), "bomb"),
    "huge-claim.png": (lambda: png_header(9_000, 9_000), "bomb"),
    "wide.png": (lambda: picture("RGB", (20_000, 100)), "too_wide"),
    "line.png": (lambda: picture("RGB", (4_000, 20)), "too_narrow"),
    "pixel.png": (lambda: picture("RGB", (1, 1)), "too_small"),
    "animated.gif": (animated, "animated"),
    "half-a-frame.gif": (half_a_frame, "damaged"),
    "500-megabytes.jpg": (lambda: jpeg() + bytes(500 * 2**20), "too_large"),
}
