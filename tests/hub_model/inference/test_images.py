"""One decoder: an image has the same pixels in every file format, or a one-sentence error."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from dataset_script.synthetic_cells import draw_cell
from hub_model.inference.errors import ImageError
from hub_model.inference.images import read_image, to_rgb
from tests.pictures import deep, encoded, packed_tiff, planar_tiff, png16, tiff

CELL = draw_cell("EOS", 3)
RGB = np.asarray(CELL)
GREY = np.asarray(CELL.convert("L"))
DEPTHS = {10: 1023, 12: 4095, 14: 16383, 16: 65535}


def max_error(data: bytes, expected: np.ndarray) -> int:
    """The largest difference of a file's decoded pixels from the expected ones."""
    expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
    return int(np.abs(np.asarray(read_image(data)).astype(int) - expected).max())


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
def test_a_16_bit_file_is_scaled_by_the_depth_in_use(values: np.ndarray, largest: int, store) -> None:
    assert max_error(store(deep(values, largest)), values) == 0


def pnm(values: np.ndarray, largest: int) -> bytes:
    """A binary PGM or PPM with this maxval."""
    kind, samples = b"P5" if values.ndim == 2 else b"P6", values.astype(">u2" if largest > 255 else "u1")
    return kind + f" {values.shape[1]} {values.shape[0]} {largest}\n".encode() + samples.tobytes()


DARK, DARK_RGB = GREY // 5, RGB // 5
OME_14_BITS = '<OME><Pixels SignificantBits="14"/></OME>'


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png16(deep(DARK, 4095), significant=12), DARK),
        (png16(deep(DARK_RGB, 4095), significant=12), DARK_RGB),
        (png16(deep(DARK_RGB, 65535), significant=16), DARK_RGB),
        # scaled up by the writer, as the PNG standard requires
        (png16(deep(GREY, 65535), significant=12), GREY),
        (tiff(deep(DARK, 4095), extratags=[(281, "H", 1, 4095, True)]), DARK),
        # TIFF's MaxSampleValue is the largest one in use
        (tiff(deep(DARK, 4095), extratags=[(281, "H", 1, 3000, True)]), DARK),
        (tiff(deep(DARK_RGB, 4095), extratags=[(281, "H", 3, (4095,) * 3, True)]), DARK_RGB),
        (pnm(deep(DARK, 1023), 1023), DARK),
        (pnm(deep(DARK_RGB, 4095), 4095), DARK_RGB),
        (pnm(deep(GREY, 4095), 65535), GREY),  # 12 bits in 16, as in TIFF
        (pnm(deep(RGB, 4095), 65535), RGB),
        (encoded(Image.fromarray(deep(GREY, 4095)), "JPEG2000"), GREY),
        (tiff(deep(DARK, 16383), description=OME_14_BITS, metadata=None), DARK),
    ],
)
def test_a_dark_image_is_scaled_by_the_depth_stated_in_its_file(data: bytes, expected: np.ndarray) -> None:
    assert max_error(data, expected) == 0


@pytest.mark.parametrize(
    ("largest", "kind"),
    [
        (1, np.float32), (255, np.float32), (4095, np.float32), (65535, np.float32),
        (255, np.int16), (4095, np.int16), (32767, np.int16), (255, np.int32), (16383, np.int32), (65535, np.int32),
        (127, np.int8),
    ],
)  # fmt: skip
def test_floats_and_signed_integers_are_scaled_by_their_largest_value(largest: int, kind: type) -> None:
    values = (GREY / 255 * largest if kind is np.float32 else deep(GREY, largest, kind)).astype(kind)
    tolerance = 1 if largest == 127 else 0
    assert max_error(tiff(values), GREY) <= tolerance
    assert np.abs(np.asarray(to_rgb(values))[..., 0].astype(int) - GREY).max() <= tolerance


@pytest.mark.parametrize("largest", [1, 255, 65535])
def test_floats_that_overshoot_are_clipped_and_not_darkened(largest: int) -> None:
    values = (GREY.astype(np.float32) * 1.3 - 40) / 255 * largest
    assert max_error(tiff(values.astype(np.float32)), np.clip(np.round(GREY * 1.3 - 40), 0, 255)) <= 1


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
        with pytest.raises(ImageError, match=r"^The pixel values range from .* to .*: save the picture"):
            to_rgb(source)


@pytest.mark.parametrize(
    ("kind", "largest"),
    [
        (np.float16, 1), (np.float16, 255), (np.float32, 1), (np.float32, 65535), (np.float64, 4095),
        (np.uint32, 255), (np.uint32, 65535), (np.int32, 4095), (np.int16, 32767),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "store", [tiff, planar_tiff, lambda v: tiff(v, tile=(64, 64)), lambda v: tiff(v, byteorder=">")]
)
def test_colour_in_floats_or_32_bits_is_read(kind: type, largest: int, store) -> None:
    values = RGB / 255 * largest if np.issubdtype(kind, np.floating) else deep(RGB, largest)
    assert max_error(store(values.astype(kind)), RGB) == 0


@pytest.mark.parametrize("largest", DEPTHS.values(), ids=[f"{bits} bits" for bits in DEPTHS])
def test_16_bit_colour_in_planes_is_read(largest: int) -> None:
    assert max_error(planar_tiff(deep(RGB, largest)), RGB) == 0


PACKED = [
    packed_tiff(deep(values, 2**bits - 1), bits) for bits in (10, 12, 14) for values in (DARK, DARK_RGB)
]
ENCODED = [
    tiff(RGB.astype(np.float32), compression="zlib"), tiff(RGB / 255, compression="lzw"),
    planar_tiff(deep(RGB, 4095), compression="zlib", predictor=True), tiff(RGB.astype(np.uint32), compression="packbits"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(PACKED) + len(ENCODED)))
def test_packed_and_compressed_rare_tiffs_require_the_optional_package(number: int, monkeypatch) -> None:
    data = [*PACKED, *ENCODED][number]
    assert max_error(data, RGB if number >= len(PACKED) else (DARK, DARK_RGB)[number % 2]) == 0
    if number != 2:  # packed 12-bit grey is Pillow's own
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        hint = r"\(without the package imagecodecs\) .*: save the picture as PNG"
        with pytest.raises(ImageError, match=hint):
            read_image(data)


@pytest.mark.parametrize(
    "data",
    [
        tiff(np.repeat(GREY[None], 5, axis=0), planarconfig="separate", photometric="minisblack"),
        tiff(np.dstack([RGB, GREY]).astype(np.float32), photometric="separated"),
        tiff(RGB.astype(np.complex64)),
        b"\xff\x0a" + bytes(100),
        b"\0" * 128 + b"DICM" + bytes(100),
        b"\0\0\0\x18ftypheic" + bytes(200),
    ],
    ids=["five channels", "float CMYK", "complex numbers", "JPEG XL", "DICOM", "HEIC"],
)  # fmt: skip
def test_the_error_for_an_unsupported_kind_says_what_to_do(data: bytes, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # pillow-heif is optional
    with pytest.raises(ImageError, match=r"(save the picture as|install it)"):
        read_image(data)


def test_damaged_rare_tiffs_are_an_error_and_huge_tiles_are_not_allocated() -> None:
    intact = tiff(RGB.astype(np.float32), tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(io.BytesIO(intact)) as file:
        tags = file.pages.first.tags
        offsets = [tags[name].valueoffset for name in ("TileWidth", "TileLength")]
    huge_tiles = bytearray(intact)
    for offset in offsets:
        huge_tiles[offset : offset + 4] = (2**16).to_bytes(4, "little")
    for data in (bytes(huge_tiles), intact[:2000], planar_tiff(deep(RGB, 4095))[:-9000]):
        with pytest.raises(ImageError, match=r"(damaged|cut off)"):
            read_image(data)


def two_page_tiff(second: np.ndarray, subfiletype: int) -> bytes:
    with tifffile.TiffWriter(buffer := io.BytesIO()) as writer:
        writer.write(RGB, photometric="rgb")
        writer.write(second, photometric="rgb", subfiletype=subfiletype)
    return buffer.getvalue()


def test_the_reduced_resolution_pages_of_a_tiff_pyramid_do_not_count_as_pages() -> None:
    assert max_error(two_page_tiff(RGB[::4, ::4], 1), RGB) == 0
    for data in (two_page_tiff(RGB, 0), tiff(np.zeros((2, 32, 32, 3), np.float32))):
        with pytest.raises(ImageError, match="several pages"):
            read_image(data)


def test_white_is_zero_is_inverted() -> None:
    assert max_error(tiff(65535 - deep(GREY, 65535), photometric="miniswhite"), GREY) == 0


CUT_OUT = np.dstack([RGB, np.where(np.arange(250)[:, None] < 60, 0, 255).repeat(250, 1).astype(np.uint8)])
CUT_OUT[:60, :, :3] = 0  # the colour of transparent pixels from most segmentation tools
ON_WHITE = np.where(CUT_OUT[..., 3:] > 0, RGB, 255)
GREY_CUT = np.dstack([np.where(CUT_OUT[..., 3] > 0, GREY, 0).astype(np.uint8), CUT_OUT[..., 3]])
GREY_ON_WHITE = np.where(CUT_OUT[..., 3] > 0, GREY, 255)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(Image.fromarray(CUT_OUT), "PNG"), ON_WHITE),
        (encoded(Image.fromarray(CUT_OUT), "WEBP", lossless=True, exact=True), ON_WHITE),
        (encoded(Image.fromarray(CUT_OUT), "TIFF"), ON_WHITE),
        (encoded(Image.fromarray(GREY_CUT), "PNG"), GREY_ON_WHITE),
        (png16(deep(CUT_OUT, 65535)), ON_WHITE),
        (png16(deep(CUT_OUT, 4095)), ON_WHITE),
        (png16(np.dstack([deep(RGB, 4095), deep(CUT_OUT[..., 3], 65535)])), ON_WHITE),
        (png16(deep(GREY_CUT, 1023)), GREY_ON_WHITE),
        (tiff(deep(CUT_OUT, 4095), extrasamples="unassalpha"), ON_WHITE),
        (encoded(CELL.convert("CMYK"), "TIFF"), RGB),
        (encoded(CELL, "PPM"), RGB),
        (encoded(Image.fromarray(deep(GREY, 65535)), "PPM"), GREY),
    ],
)
def test_transparency_is_composited_on_white_in_any_format(data: bytes, expected: np.ndarray) -> None:
    assert max_error(data, expected) == 0


def test_a_palette_with_alpha_is_composited_on_white() -> None:
    picture = Image.fromarray(CUT_OUT).quantize(64)
    assert picture.mode == "P" and "transparency" not in picture.info
    assert (np.asarray(to_rgb(picture))[:60] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_upright_at_any_depth(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    files = [encoded(CELL.crop((0, 0, 200, 100)), kind, exif=exif) for kind in ("PNG", "TIFF")]
    wide = RGB[:100, :200]
    files.append(encoded(Image.fromarray(deep(GREY[:100, :200], 65535)), "PNG", exif=exif))
    files += [tiff(deep(v, 4095), extratags=[(274, "H", 1, orientation, True)]) for v in (wide, wide[..., 0])]
    for data, values in zip(files, (wide, wide, GREY[:100, :200], wide, wide[..., 0]), strict=True):
        flat = Image.fromarray(values)
        flat.getexif()[0x0112] = orientation
        assert max_error(data, np.asarray(ImageOps.exif_transpose(flat))) == 0


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_avif_and_jpeg_2000_are_read(kind: str) -> None:
    data = encoded(CELL, kind, **({"quality": 95} if kind == "AVIF" else {}))
    assert np.abs(np.asarray(read_image(data)).astype(int) - RGB).mean() < 4


def test_heic_is_read_with_the_optional_package() -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    assert np.abs(np.asarray(read_image(encoded(CELL, "HEIF", quality=90))).astype(int) - RGB).mean() < 4


def test_the_error_for_a_slide_points_to_the_field_tab() -> None:
    with pytest.raises(ImageError, match="crop it, or use the field tab"):
        read_image(encoded(Image.new("L", (8192, 8192)), "PNG"))


def test_the_error_for_a_missing_file_says_to_check_its_path(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not found: check its path"):
        to_rgb(tmp_path / "missing.png")


def test_a_file_is_decoded_by_its_bytes_not_its_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(png16(deep(RGB, 4095)))
    with Image.open(tmp_path / "a") as image:
        assert np.array_equal(to_rgb(image), RGB)
    assert np.array_equal(to_rgb(tmp_path / "a"), RGB) and np.array_equal(to_rgb(str(tmp_path / "a")), RGB)
