"""One decoder: whatever a picture is stored as, the same pixels come out, or one sentence."""

from __future__ import annotations

import importlib.util
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from dataset_script.synthetic_cells import draw_cell
from hub_model.inference.errors import ImageError
from hub_model.inference.images import read_picture, to_rgb

CELL = draw_cell("EOS", 3)
RGB = np.asarray(CELL)
GREY = np.asarray(CELL.convert("L"))
DEPTHS = {10: 1023, 12: 4095, 14: 16383, 16: 65535}


def stored(image: Image.Image, kind: str, **options) -> bytes:
    image.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def png16(values: np.ndarray, significant: int | None = None, interlaced: bool = False) -> bytes:
    """A 16-bit PNG of values [H, W] or [H, W, 2 to 4], written by hand since Pillow writes no 16-bit colour."""
    values = values if values.ndim == 3 else values[..., None]
    height, width, channels = values.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    bits = chunk(b"sBIT", bytes([significant] * channels)) if significant else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + bits
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(values: np.ndarray, **options) -> bytes:
    options.setdefault("photometric", "rgb" if values.ndim == 3 else "minisblack")
    tifffile.imwrite(buffer := io.BytesIO(), values, **options)
    return buffer.getvalue()


def deep(values: np.ndarray, largest: int, kind: type = np.uint16) -> np.ndarray:
    return np.round(values / 255 * largest).astype(kind)


def off(data: bytes, wanted: np.ndarray) -> int:
    """The largest difference of a file's decoded pixels from the wanted ones."""
    wanted = wanted if wanted.ndim == 3 else np.repeat(wanted[..., None], 3, axis=2)
    return int(np.abs(np.asarray(read_picture(data)).astype(int) - wanted).max())


@pytest.mark.parametrize("values", [GREY, RGB], ids=["grey", "RGB"])
@pytest.mark.parametrize("largest", DEPTHS.values(), ids=[f"{bits} bits" for bits in DEPTHS])
@pytest.mark.parametrize(
    "store",
    [
        png16,
        tiff,
        lambda v: tiff(v, byteorder=">"),
        lambda v: tiff(v, compression="zlib"),
        lambda v: tiff(v, byteorder=">", compression="zlib"),
        lambda v: tiff(v, compression="zlib", predictor=True),
        lambda v: tiff(v, rowsperstrip=7),
        lambda v: tiff(v, tile=(64, 64)),
        lambda v: tiff(v, bigtiff=True),
    ],
    ids=["PNG", "TIFF", "TIFF >", "TIFF zlib", "TIFF > zlib", "TIFF predictor", "TIFF strips", "TIFF tiles", "BigTIFF"],
)  # fmt: skip
def test_a_16_bit_file_is_scaled_by_the_depth_that_is_used(values: np.ndarray, largest: int, store) -> None:
    assert off(store(deep(values, largest)), values) == 0


DARK, DARK_RGB = GREY // 5, RGB // 5


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (png16(deep(DARK, 4095), significant=12), DARK),
        (png16(deep(DARK_RGB, 4095), significant=12), DARK_RGB),
        (png16(deep(DARK_RGB, 65535), significant=16), DARK_RGB),
        (
            png16(deep(GREY, 65535), significant=12),
            GREY,
        ),  # as the PNG standard wants it: scaled up by the writer
        (tiff(deep(DARK, 4095), extratags=[(281, "H", 1, 4095, True)]), DARK),
        (
            tiff(deep(DARK, 4095), extratags=[(281, "H", 1, 3000, True)]),
            DARK,
        ),  # TIFF: the largest one that is used
        (tiff(deep(DARK_RGB, 4095), extratags=[(281, "H", 3, (4095,) * 3, True)]), DARK_RGB),
        (
            tiff(deep(DARK, 16383), description='<OME><Pixels SignificantBits="14"/></OME>', metadata=None),
            DARK,
        ),
    ],
)
def test_a_dark_picture_is_scaled_by_the_depth_that_its_file_states(data: bytes, wanted: np.ndarray) -> None:
    assert off(data, wanted) == 0


@pytest.mark.parametrize(
    ("largest", "kind"),
    [
        (1, np.float32), (255, np.float32), (4095, np.float32), (65535, np.float32),
        (255, np.int16), (4095, np.int16), (32767, np.int16), (255, np.int32), (16383, np.int32), (65535, np.int32),
        (127, np.int8),
    ],
)  # fmt: skip
def test_floats_and_signed_integers_are_scaled_by_what_they_hold(largest: int, kind: type) -> None:
    values = GREY / 255 * largest if kind is np.float32 else deep(GREY, largest, kind)
    assert off(tiff(values.astype(kind)), GREY) <= (1 if largest == 127 else 0)
    assert np.abs(np.asarray(to_rgb(values.astype(kind)))[..., 0].astype(int) - GREY).max() <= (
        largest == 127
    )


@pytest.mark.parametrize("largest", [1, 255, 65535])
def test_floats_that_overshoot_are_clipped_and_not_darkened(largest: int) -> None:
    values = (GREY.astype(np.float32) * 1.3 - 40) / 255 * largest
    assert off(tiff(values.astype(np.float32)), np.clip(np.round(GREY * 1.3 - 40), 0, 255)) <= 1


@pytest.mark.parametrize(
    "values",
    [
        GREY.astype(np.int16) * 200 - 25_000, GREY.astype(np.int32) * 10_000_000, GREY.astype(np.float32) / 127.5 - 1,
        GREY.astype(np.float32) * 1e6, np.where(GREY > 200, np.inf, 1.0).astype(np.float32), GREY.astype(np.int8),
    ],
    ids=["offset binary", "32 bits", "-1 to 1", "millions", "infinite", "int8 with a sign"],
)  # fmt: skip
def test_samples_without_a_known_scale_are_refused(values: np.ndarray) -> None:
    for source in (tiff(values), values):
        with pytest.raises(ImageError, match=r"^The pixel values run from .* to .*: save the picture"):
            to_rgb(source)


@pytest.mark.parametrize(
    "data",
    [
        tiff(np.moveaxis(deep(RGB, 4095), 2, 0), planarconfig="separate"),
        tiff(RGB.astype(np.float32)),
        tiff(RGB.astype(np.uint32)),
        b"\xff\x0a" + bytes(100),
        b"\0" * 128 + b"DICM" + bytes(100),
        b"\0\0\0\x18ftypheic" + bytes(200),
    ],
    ids=["planar 16-bit RGB", "float RGB", "32-bit RGB", "JPEG XL", "DICOM", "HEIC"],
)  # fmt: skip
def test_a_kind_that_is_not_read_says_what_to_do(data: bytes, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # pillow-heif is optional
    with pytest.raises(ImageError, match=r"(save the picture as|install it)"):
        read_picture(data)


def test_white_is_zero_is_turned_round() -> None:
    assert off(tiff(65535 - deep(GREY, 65535), photometric="miniswhite"), GREY) == 0


CUT_OUT = np.dstack([RGB, np.where(np.arange(250)[:, None] < 60, 0, 255).repeat(250, 1).astype(np.uint8)])
CUT_OUT[:60, :, :3] = 0  # what most segmentation tools leave below transparent pixels
ON_WHITE = np.where(CUT_OUT[..., 3:] > 0, RGB, 255)
GREY_CUT = np.dstack([np.where(CUT_OUT[..., 3] > 0, GREY, 0).astype(np.uint8), CUT_OUT[..., 3]])
GREY_ON_WHITE = np.where(CUT_OUT[..., 3] > 0, GREY, 255)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (stored(Image.fromarray(CUT_OUT), "PNG"), ON_WHITE),
        (stored(Image.fromarray(CUT_OUT), "WEBP", lossless=True, exact=True), ON_WHITE),
        (stored(Image.fromarray(CUT_OUT), "TIFF"), ON_WHITE),
        (stored(Image.fromarray(GREY_CUT), "PNG"), GREY_ON_WHITE),
        (png16(deep(CUT_OUT, 65535)), ON_WHITE),
        (png16(deep(CUT_OUT, 4095)), ON_WHITE),
        (png16(np.dstack([deep(RGB, 4095), deep(CUT_OUT[..., 3], 65535)])), ON_WHITE),
        (png16(deep(GREY_CUT, 1023)), GREY_ON_WHITE),
        (tiff(deep(CUT_OUT, 4095), extrasamples="unassalpha"), ON_WHITE),
        (stored(CELL.convert("CMYK"), "TIFF"), RGB),
        (stored(CELL, "PPM"), RGB),
        (stored(Image.fromarray(deep(GREY, 65535)), "PPM"), GREY),
    ],
)
def test_transparency_is_laid_on_white_whatever_the_file(data: bytes, wanted: np.ndarray) -> None:
    assert off(data, wanted) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright_at_any_depth(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    files = [stored(CELL.crop((0, 0, 200, 100)), kind, exif=exif) for kind in ("PNG", "TIFF")]
    wide = RGB[:100, :200]
    files.append(stored(Image.fromarray(deep(GREY[:100, :200], 65535)), "PNG", exif=exif))
    files += [tiff(deep(v, 4095), extratags=[(274, "H", 1, orientation, True)]) for v in (wide, wide[..., 0])]
    for data, values in zip(files, (wide, wide, GREY[:100, :200], wide, wide[..., 0]), strict=True):
        flat = Image.fromarray(values)
        flat.getexif()[0x0112] = orientation
        assert off(data, np.asarray(ImageOps.exif_transpose(flat))) == 0


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_avif_and_jpeg_2000_are_read(kind: str) -> None:
    data = stored(CELL, kind, **({"quality": 95} if kind == "AVIF" else {}))
    assert np.abs(np.asarray(read_picture(data)).astype(int) - RGB).mean() < 4


def test_heic_is_read_with_the_optional_package() -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    assert np.abs(np.asarray(read_picture(stored(CELL, "HEIF", quality=90))).astype(int) - RGB).mean() < 4


def test_a_slide_is_sent_to_the_field_tab() -> None:
    with pytest.raises(ImageError, match="crop it, or use the field tab"):
        read_picture(stored(Image.new("L", (8192, 8192)), "PNG"))


def test_a_file_is_what_its_bytes_are(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(png16(deep(RGB, 4095)))
    with Image.open(tmp_path / "a") as image:
        assert np.array_equal(to_rgb(image), RGB)
    assert np.array_equal(to_rgb(tmp_path / "a"), RGB) and np.array_equal(to_rgb(str(tmp_path / "a")), RGB)
