"""Any picture file as upright 8-bit RGB: the one decoder of build, training, scoring, `Classifier` and Space.

In: the bytes or the path of one file, a PIL image or an array. Out: an RGB picture, EXIF orientation applied and transparency
laid on white, or an `ImageError`. The header is judged before anything is decoded, and nothing is written to disk.

Depth. Samples of more than 8 bits are divided by the largest value of the depth that is really used: cameras store 10, 12 or
14 bits in files of 16. It is the one that the file states (PNG sBIT; TIFF BitsPerSample, MaxSampleValue; OME SignificantBits)
where no sample exceeds it, else the smallest of 8, 10, 12, 14 and 16 bits that holds the largest sample. Floats may also run
from 0 to 1, and may overshoot by a quarter, as resampling does. What runs far below 0 or above 16 bits has no known scale and
is refused.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile

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
DEPTHS = (255, 1023, 4095, 16383)  # the largest samples of cameras' depths; 65535 comes on top of them
OVERSHOOT = 1.25  # what resampling may add to the largest float
UNDERSHOOT = 1 / 8  # of the largest sample, below 0: what subtracting a dark frame leaves
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
# Pillow keeps the high byte of 16-bit colour: the raw mode that unpacks the low one instead
LOW_BYTE = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B" if sys.byteorder == "little" else ";16L"}
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
        raise _unread(data) from None
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise ImageError("too_small", width=width, height=height, limit=MIN_SIDE)
    copies = 2 if _is_deep_colour(image) else COPIES.get(image.format, 1)
    if copies * width * height > max_pixels:
        raise ImageError("bomb", limit=max_pixels // copies // 10**6)
    if max(width, height) > max_side:
        raise ImageError("too_wide", width=width, height=height, limit=max_side)
    if max(width, height) > LONGEST * min(width, height):
        raise ImageError("too_narrow", width=width, height=height)
    try:
        animated = image.format != "MPO" and getattr(image, "is_animated", False)
    except Exception:  # a GIF's frames are read for it
        raise ImageError("damaged") from None
    if animated:
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


def _unread(data: bytes) -> ImageError:
    """Why a file that Pillow does not identify is not read."""
    if _is_heif(data):
        return ImageError("damaged" if importlib.util.find_spec("pillow_heif") else "needs_heif")
    if data.startswith(TIFF_MAGIC):
        return ImageError("unread", kind="TIFF file")
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
        image = _from_array(image)
    stored = image
    if _is_deep_colour(image):
        image = _read_deep_colour(image)
    elif image.mode.startswith("I") or image.mode == "F" or _is_signed(image):
        image = _read_deep_grey(image)
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


def _from_array(values: np.ndarray) -> Image.Image:
    """An array [H, W] or [H, W, channels] as an 8-bit image."""
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.dtype in (np.uint8, np.bool_):
        return Image.fromarray(values)
    most = min(np.iinfo(values.dtype).max, 65535) if values.dtype.kind in "iu" else 65535
    return _scaled(lambda top, bottom: values[top:bottom], *values.shape[:2], most=most)


def _orientation(image: Image.Image) -> int:
    """How its EXIF data says that it lies; damaged data says upright."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's parsers raise whatever they stumble over
        return 1


def _rawmode(image: Image.Image) -> str:
    """How a picture that is not decoded yet is stored, as Pillow's decoders name it."""
    tiles = getattr(image, "tile", None)
    args = tiles[0].args if tiles else ""
    return args if isinstance(args, str) else str(args[0]) if args else ""


def _is_deep_colour(image: Image.Image) -> bool:
    if image.format == "TIFF" and _tags(image).get(ExifTags.Base.PlanarConfiguration) == 2:
        bits = _tags(image).get(ExifTags.Base.BitsPerSample, ())
        return len(bits) > 1 and max(bits) > 8
    return image.mode in ("RGB", "RGBA", "LA") and _rawmode(image)[-4:] in LOW_BYTE


def _tags(image: Image.Image) -> dict:
    return getattr(image, "tag_v2", {})


def _is_signed(image: Image.Image) -> bool:
    return image.format == "TIFF" and 2 in _tags(image).get(ExifTags.Base.SampleFormat, ())


def _read_deep_colour(image: Image.Image) -> Image.Image:
    """16-bit colour, of which Pillow keeps the high byte, as 8 bits: the low byte is decoded once more beside it."""
    mode = _rawmode(image)
    if mode.startswith("RGBa") or mode[-4:] not in LOW_BYTE or image.fp is None:
        raise ImageError("unread", kind=f"16-bit {image.format} file")
    told, place = _stated_depth(image), image.fp.tell()
    image.fp.seek(0)
    low = Image.open(io.BytesIO(image.fp.read()), formats=[image.format])
    image.fp.seek(place)
    whole = mode.startswith("LA")  # Pillow has no other raw mode for it: all four bytes at once
    other = "RGBA" if whole else mode[:-4] + LOW_BYTE[mode[-4:]]
    low.tile = [t._replace(args=other if isinstance(t.args, str) else (other, *t.args[1:])) for t in low.tile]
    image.load()
    low.load()

    def read(top: int, bottom: int) -> np.ndarray:
        box = (0, top, image.width, bottom)
        if whole:
            both = np.asarray(low.crop(box), dtype=np.uint16)
            return both[..., 0::2] << 8 | both[..., 1::2]
        return np.asarray(image.crop(box), dtype=np.uint16) << 8 | np.asarray(low.crop(box))

    return _scaled(read, image.height, image.width, told, clear=image.info.get("transparency"))


def _read_deep_grey(image: Image.Image) -> Image.Image:
    """A picture of 16 or 32 bits a pixel, or of signed ones, as 8-bit grey."""
    told = None if _is_signed(image) else _stated_depth(image)
    image.load()
    bits = max(_tags(image).get(ExifTags.Base.BitsPerSample, (16,)))
    most = 2 ** (bits - 1) - 1 if _is_signed(image) and bits <= 16 else 65535

    def read(top: int, bottom: int) -> np.ndarray:
        values = np.asarray(image.crop((0, top, image.width, bottom)))
        return values.view(np.int8) if image.mode == "L" else values

    return _scaled(
        read, image.height, image.width, told, most,
        clear=image.info.get("transparency"),
        inverted=_tags(image).get(ExifTags.Base.PhotometricInterpretation) == 0,
    )  # fmt: skip


def _stated_depth(image: Image.Image) -> int | None:
    """The largest sample of the depth that the file states, None where it states none; damaged metadata states none."""
    if image.format in ("PPM", "JPEG2000"):
        return 65535  # Pillow has scaled it by the depth that their headers state
    with contextlib.suppress(Exception):
        tags, bits = _tags(image), 0
        if image.format == "PNG":
            bits = _significant_bits(image)
        elif ExifTags.Base.BitsPerSample in tags:
            stored = max(tags[ExifTags.Base.BitsPerSample])
            largest = tags.get(281, 0)  # MaxSampleValue, the largest sample that is used
            largest = max(largest) if isinstance(largest, tuple) else largest
            ome = re.search(r'SignificantBits="(\d+)"', str(tags.get(ExifTags.Base.ImageDescription, "")))
            bits = stored if stored < 16 else int(ome[1]) if ome else int(largest).bit_length()
        if 0 < bits <= 16:
            return max(2**bits - 1, 255)
    return None


def _significant_bits(image: Image.Image) -> int:
    """The depth that a PNG's sBIT chunk states, 0 without one."""
    place = image.fp.tell()
    image.fp.seek(8)
    while len(head := image.fp.read(8)) == 8 and head[4:] not in (b"IDAT", b"sBIT"):
        image.fp.seek(int.from_bytes(head[:4]) + 4, io.SEEK_CUR)
    bits = max(image.fp.read(int.from_bytes(head[:4])), default=0) if head[4:] == b"sBIT" else 0
    image.fp.seek(place)
    return bits


def _scaled(
    read: Callable[[int, int], np.ndarray], height: int, width: int, told: int | None = None, most: int = 65535,
    *, clear: int | tuple[int, ...] | None = None, inverted: bool = False,
) -> Image.Image:  # fmt: skip
    """Rows of deep samples as an 8-bit image, a strip at a time: all of them in float64 would be eight times as large.

    read: gives the rows from top to bottom, [rows, W] or [rows, W, 2 to 4], the even channel counts with alpha last.
    told: the largest sample of the depth that the file states; most: of the type that holds the samples.
    clear: the sample value that is transparent; inverted: whether 0 is white.
    """
    step = max(1, 2**20 // width)
    spans = [(top, min(top + step, height)) for top in range(0, height, step)]

    def strip(span: tuple[int, int]) -> np.ndarray:
        values = read(*span)
        return np.nan_to_num(values if values.ndim == 3 else values[..., None], nan=0)

    floating = strip((0, 1)).dtype.kind == "f"
    channels = strip((0, 1)).shape[2]
    colours = channels - (channels in (2, 4))
    extremes = [(part.min(axis=(0, 1)), part.max(axis=(0, 1))) for part in map(strip, spans)]
    low, high = np.min([pair[0] for pair in extremes], axis=0), np.max([pair[1] for pair in extremes], axis=0)
    limits = np.empty(channels)
    limits[:colours] = _largest_sample(low[:colours].min(), high[:colours].max(), told, most, floating)
    limits[colours:] = [_largest_sample(0, alpha, None, most, floating) for alpha in high[colours:]]
    out = np.empty((height, width, channels), dtype=np.uint8)
    for top, bottom in spans:
        values = strip((top, bottom))
        scaled = np.clip(np.round(values * (255.0 / limits)), 0, 255)
        out[top:bottom] = 255 - scaled if inverted else scaled
        if isinstance(clear, int | tuple):
            out[top:bottom][(values == np.asarray(clear)).all(axis=2)] = 255
    return Image.fromarray(out[..., 0] if channels == 1 else out)


def _largest_sample(low: float, high: float, told: int | None, most: int, floating: bool) -> int:
    """The sample that becomes 255; see the module.

    Raises:
        ImageError: no depth fits the samples.
    """
    limits = [*(n for n in DEPTHS if n < most), most]
    if floating:
        told, limits = None, [1, *limits]
    slack = OVERSHOOT if floating else 1
    limit = told if told and high <= told else next((n for n in limits if high <= slack * n), None)
    if limit is None or low < -UNDERSHOOT * limit:
        raise ImageError("depth", low=f"{low:g}", high=f"{high:g}")
    return limit
