"""Damaged files: synthetic cells in six formats, each changed in one of eight ways, some to use much memory. Seeded."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_script.synthetic_cells import LOOKS, draw_cell
from tests.pictures import encoded, png_bomb

LABELS = tuple(LOOKS)
ENDINGS = {"JPEG": "jpg", "PNG": "png", "TIFF": "tif", "BMP": "bmp", "GIF": "gif", "WEBP": "webp"}
SIDE = 250  # of a synthetic cell
CELLS = 4  # drawn for each label, each in every format


@dataclass(frozen=True)
class Damaged:
    """A file for the folder of its label. `kind` is the kind of damage."""

    name: str
    label: str
    kind: str
    data: bytes


@cache
def undamaged(label: str, number: int, file_format: str) -> bytes:
    """A synthetic cell as an image file."""
    cell = draw_cell(label, 7_000 + number)
    return encoded(cell.convert("P") if file_format == "GIF" else cell, file_format)


def flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for i in rng.integers(len(data), size=rng.integers(1, 20)):
        changed[i] ^= 1 << rng.integers(8)
    return bytes(changed)


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(len(data))]


def edit_header(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for i in rng.integers(min(len(data), 200), size=rng.integers(1, 8)):
        changed[i] = rng.integers(256)
    return bytes(changed)


def blank_block(data: bytes, rng: np.random.Generator) -> bytes:
    start, length = rng.integers(len(data)), rng.integers(1, 2000)
    return data[:start] + bytes(length) + data[start + length :]


def splice(data: bytes, rng: np.random.Generator) -> bytes:
    """The head of one file and the tail of another."""
    label, number = LABELS[rng.integers(len(LABELS))], int(rng.integers(CELLS))
    other = undamaged(label, number, list(ENDINGS)[rng.integers(len(ENDINGS))])
    return data[: rng.integers(len(data))] + other[rng.integers(len(other)) :]


def claim_size(data: bytes, rng: np.random.Generator) -> bytes:
    """Write a false width and height, some of them absurd, to the header."""
    width, height = (int(side) for side in rng.choice([0, 1, 251, 4_000, 20_000, 65_535], size=2))
    for code in (">II", ">HH", "<HH", "<ii"):  # PNG; JPEG; GIF and WebP; BMP
        data = data.replace(struct.pack(code, SIDE, SIDE), struct.pack(code, width, height), 1)
    for tag, side in ((256, width), (257, height)):  # TIFF
        for kind in (3, 4):
            entry = struct.pack("<HHI", tag, kind, 1)
            data = data.replace(entry + struct.pack("<I", SIDE), entry + struct.pack("<I", side), 1)
    if data.startswith(b"\x89PNG"):
        data = data[:29] + struct.pack(">I", zlib.crc32(data[12:29])) + data[33:]
    return data


CHANGES: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "bits flipped": flip_bits,
    "cut short": cut,
    "header edited": edit_header,
    "block blanked": blank_block,
    "spliced": splice,
    "size claimed": claim_size,
}


@cache
def heavy(which: str) -> tuple[str, bytes]:
    """(extension, file) of an image at the size limit, or with a header beyond it, that compresses to a small file."""
    if which == "bomb":
        return "png", png_bomb(30_000, 30_000)
    if which == "WEBP":
        return "webp", encoded(Image.new("RGBA", (4_000, 2_999), (90, 20, 120, 128)), "WEBP")
    if which == "CMYK":
        return "jpg", encoded(Image.new("CMYK", (4_890, 4_900)), "JPEG")
    if which == "I;16":
        return "png", encoded(Image.fromarray(np.zeros((4_900, 4_890), dtype=np.uint16)), "PNG")
    if which == "F":
        return "tif", encoded(Image.new("F", (4_890, 4_900)), "TIFF", compression="tiff_deflate")
    return "png", encoded(Image.new(which, (4_890, 4_900)), "PNG")


HEAVY = ("bomb", "RGBA", "I;16", "WEBP", "RGB", "CMYK", "F", "L")


def damaged_files(count: int, seed: int = 0) -> Iterator[Damaged]:
    """Yield `count` files: the first eight use much memory, one in ten has a wrong extension, the others have one change."""
    rng = np.random.default_rng(seed)
    kinds, formats = list(CHANGES), list(ENDINGS)
    for i in range(count):
        label = LABELS[rng.integers(len(LABELS))]
        if i < len(HEAVY):
            ending, data = heavy(HEAVY[i])
            yield Damaged(f"damaged_{i}.{ending}", label, f"heavy {HEAVY[i]}", data)
            continue
        file_format = formats[rng.integers(len(formats))]
        data = undamaged(label, int(rng.integers(CELLS)), file_format)
        if rng.integers(10) == 0:
            other = formats[(formats.index(file_format) + int(rng.integers(1, len(formats)))) % len(formats)]
            yield Damaged(f"damaged_{i}.{ENDINGS[other]}", label, "wrong ending", data)
        else:
            kind = kinds[rng.integers(len(kinds))]
            yield Damaged(f"damaged_{i}.{ENDINGS[file_format]}", label, kind, CHANGES[kind](data, rng))


def write_damaged(raw: Path, count: int, seed: int = 0) -> dict[str, Damaged]:
    """Write the files below `raw`, one folder per label; return them by file name, without their bytes."""
    written = {}
    for file in damaged_files(count, seed):
        folder = raw / file.label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).write_bytes(file.data)
        written[file.name] = Damaged(file.name, file.label, file.kind, b"")
    return written
