"""Bad uploads by name, as visitors send them by mistake or on purpose."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable

from PIL import Image

from dataset_script.synthetic_cells import draw_cell
from tests.pictures import encoded, png_bomb


def jpeg(seed: int = 0) -> bytes:
    """A good cell."""
    return encoded(draw_cell("BLA", seed), "JPEG")


def even(mode: str, size: tuple[int, int], kind: str = "PNG") -> bytes:
    """A picture of one colour."""
    return encoded(Image.new(mode, size), kind)


def animated() -> bytes:
    """A GIF of three frames."""
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def half_a_frame() -> bytes:
    """A GIF whose second frame ends after its descriptor."""
    return even("P", (64, 64), "GIF").removesuffix(b";") + b"," + struct.pack("<HHHHB", 0, 0, 64, 64, 0)


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip file."""
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


# name -> (function that makes the bytes, reason of the expected error)
PICTURES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.jpg": (lambda: b"", "empty"),
    "text.jpg": (lambda: b"I am not a picture", "not_an_image"),
    "page.svg": (
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "not_an_image",
    ),
    "document.pdf": (lambda: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "not_an_image"),
    "truncated.jpg": (lambda: jpeg()[:3000], "truncated"),
    "damaged.png": (lambda: png_bomb(100, 100), "truncated"),
    "bomb.png": (lambda: png_bomb(30_000, 30_000), "bomb"),
    "huge-claim.png": (lambda: png_bomb(9_000, 9_000), "bomb"),
    "wide.png": (lambda: even("RGB", (20_000, 100)), "too_wide"),
    "line.png": (lambda: even("RGB", (4_000, 20)), "too_narrow"),
    "pixel.png": (lambda: even("RGB", (1, 1)), "too_small"),
    "animated.gif": (animated, "animated"),
    "half-a-frame.gif": (half_a_frame, "damaged"),
    "500-megabytes.jpg": (lambda: jpeg() + bytes(500 * 2**20), "too_large"),
}
