"""Images of more than 8 bits per sample, or of floats, converted to 8 bits.

Samples are divided by the largest value of the depth in use, since cameras store 10, 12 or 14 bits in files of 16. That depth is
the one stated by the file (PNG sBIT; TIFF BitsPerSample, MaxSampleValue; OME SignificantBits) where no sample exceeds it, else
the smallest of 8, 10, 12, 14 and 16 bits that holds the largest sample. Floats may also range from 0 to 1, and may overshoot by
a quarter, as resampling does. Samples far below 0 or above 16 bits have no known scale and are refused.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import math
import re
import sys
from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image, ImageFile

from hub_model.inference.errors import ImageError

DEPTH_MAXIMA = (255, 1023, 4095, 16383)  # largest samples of the depths of cameras, below 65535
OVERSHOOT = 1.25  # largest float after resampling, relative to that before
UNDERSHOOT = 1 / 8  # allowed below 0, relative to the largest sample: from subtracting a dark frame
# Pillow keeps the high byte of 16-bit colour; these are the raw modes that unpack the low byte instead
LOW_BYTE = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B" if sys.byteorder == "little" else ";16L"}
MAX_PYRAMID_LEVELS = 16
ALPHA = (2,)  # TIFF's ExtraSamples where the last channel is unassociated alpha
COMPRESSIONS = {1: "none", 5: "LZW", 8: "deflate", 32773: "PackBits", 32946: "deflate"}  # TIFF's codes


class WideTiff(ImageFile.ImageFile):
    """A TIFF that Pillow cannot read, opened with tifffile: colour in floats, 32 bits or planes, or packed samples.

    Raises:
        ImageError: this kind is not supported here either.
        Exception: the header is damaged; tifffile raises exceptions of any type for it.
    """

    format = "TIFF"
    is_animated = False

    def _open(self) -> None:
        from tifffile import TiffFile

        # damaged files raise; tifffile also logs them
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)
        pages = TiffFile(self.fp).pages
        self.page = page = pages.first
        self._size, self._mode = (page.imagewidth, page.imagelength), "RGB"
        with contextlib.suppress(IndexError):
            self.is_animated = pages[1] is not None
        self.tags = {tag.code: tag.value for tag in page.tags}
        self.tags[ExifTags.Base.BitsPerSample] = (page.bitspersample,)
        self.getexif()[ExifTags.Base.Orientation] = self.tags.get(ExifTags.Base.Orientation, 1)
        channels = (page.samplesperpixel, page.extrasamples)
        if page.photometric not in (0, 1, 2) or channels not in ((1, ()), (2, ALPHA), (3, ()), (4, ALPHA)):
            layout = f"{page.samplesperpixel} channels ({page.photometric.name})"
            raise ImageError("unread", kind=f"TIFF file with {layout}")
        if page.axes not in ("YX", "YXS", "SYX") or page.dtype is None or page.dtype.kind not in "iuf":
            raise ImageError("unread", kind=f"TIFF file with {page.bitspersample}-bit samples")
        if page.compression not in COMPRESSIONS:
            raise ImageError("unread", kind=f"{page.compression.name} TIFF file")
        if page.tilewidth * page.tilelength > 2**20 + 2 * page.imagewidth * page.imagelength:
            raise ImageError("damaged")
        packed = page.bitspersample not in (8, 16, 32, 64)
        encoded = packed or page.compression > 1 or page.predictor > 1
        # required: tifffile's fallback decoders do not limit the size of their output
        if encoded and not importlib.util.find_spec("imagecodecs"):
            kind = f"packed {page.bitspersample}-bit" if packed else COMPRESSIONS[page.compression]
            raise ImageError("unread", kind=f"{kind} TIFF file (without the package imagecodecs)")

    def samples(self) -> np.ndarray:
        """The samples [H, W] or [H, W, 2 to 4], with alpha last in 2 and 4 channels."""
        values = self.page.asarray(maxworkers=1)
        return np.moveaxis(values, 0, -1) if self.page.axes == "SYX" else values


def is_deep(image: Image.Image) -> bool:
    """Whether an image, not yet decoded, has samples that Pillow would truncate, or scale by their type alone."""
    return isinstance(image, WideTiff) or _is_deep_colour(image) or image.mode[0] in "IF" or _is_signed(image)


def has_several_pages(image: Image.Image) -> bool:
    """Whether a file holds more than one image, not counting the reduced-resolution pages of a TIFF pyramid.

    Raises:
        Exception: whatever Pillow raises for damaged frames: a GIF's are read to count them.
    """
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return False
    if image.format != "TIFF" or isinstance(image, WideTiff):
        return True
    with contextlib.suppress(EOFError):
        for page in range(1, MAX_PYRAMID_LEVELS):
            image.seek(page)
            if not _tags(image).get(ExifTags.Base.NewSubfileType, 0) & 1:
                return True
    image.seek(0)
    return False


def copies_of(image: Image.Image) -> int:
    """Memory that decoding takes, in images of four bytes per pixel."""
    if isinstance(image, WideTiff):
        return 1 + -(-image.page.samplesperpixel * image.page.dtype.itemsize // 4)
    return 3 if _is_in_planes(image) else 2 if _is_deep_colour(image) else 1


def read_deep(image: Image.Image) -> Image.Image:
    """Decode an image for which `is_deep` holds, as 8 bits.

    Raises:
        ImageError: its samples have no known scale, or its kind is not supported.
    """
    if _is_in_planes(image):
        image = WideTiff(io.BytesIO(_file_of(image)))
    if isinstance(image, WideTiff):
        values = image.samples()
        stated_max = _stated_max(image) if values.dtype.kind == "u" else None
        return from_array(values, stated_max, inverted=image.page.photometric == 0)
    if maxval := _pnm_maxval(image):
        shape = (image.height, image.width, 1 if image.mode[0] == "I" else 3)
        values = np.frombuffer(_file_of(image), ">u2", math.prod(shape), image.tile[0].offset).reshape(shape)
        return from_array(values, maxval if maxval < 65535 else None)
    return _read_deep_colour(image) if _is_deep_colour(image) else _read_deep_grey(image)


def from_array(values: np.ndarray, stated_max: int | None = None, inverted: bool = False) -> Image.Image:
    """An array [H, W] or [H, W, channels] as an 8-bit image; see `_to_8_bits`."""
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.dtype in (np.uint8, np.bool_) and not inverted:
        return Image.fromarray(values)
    type_max = min(np.iinfo(values.dtype).max, 65535) if values.dtype.kind in "iu" else 65535
    return _to_8_bits(values.__getitem__, values.shape[:2], stated_max, type_max, inverted=inverted)


def _rawmode(image: Image.Image) -> str:
    """The raw mode of an image that is not yet decoded: how Pillow's decoders name its layout."""
    tiles = getattr(image, "tile", None)
    args = tiles[0].args if tiles else ""
    return args if isinstance(args, str) else str(args[0]) if args else ""


def _tags(image: Image.Image) -> dict:
    return image.tags if isinstance(image, WideTiff) else getattr(image, "tag_v2", {})


def _is_in_planes(image: Image.Image) -> bool:
    if image.format != "TIFF" or _tags(image).get(ExifTags.Base.PlanarConfiguration) != 2:
        return False
    bits = _tags(image).get(ExifTags.Base.BitsPerSample, ())
    return len(bits) > 1 and max(bits) > 8


def _is_deep_colour(image: Image.Image) -> bool:
    deep = image.mode in ("RGB", "RGBA", "LA") and _rawmode(image)[-4:] in LOW_BYTE
    return deep or _is_in_planes(image) or _pnm_maxval(image) > 0


def _pnm_maxval(image: Image.Image) -> int:
    """The largest sample stated by the header of a binary 16-bit PGM or PPM; 0 for anything else."""
    if image.format != "PPM" or not image.tile or image.tile[0].codec_name == "ppm_plain":
        return 0
    if _rawmode(image) == "I;16B":
        return 65535
    args = image.tile[0].args
    return args[1] if image.tile[0].codec_name == "ppm" and args[1] > 255 else 0


def _is_signed(image: Image.Image) -> bool:
    return image.format == "TIFF" and 2 in _tags(image).get(ExifTags.Base.SampleFormat, ())


def _file_of(image: Image.Image) -> bytes:
    """The bytes of the file that an image was opened from."""
    position = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(position)
    return data


def _read_deep_colour(image: Image.Image) -> Image.Image:
    """16-bit colour, of which Pillow keeps the high bytes, as 8 bits: a second decode reads the low bytes."""
    mode = _rawmode(image)
    if mode.startswith("RGBa") or mode[-4:] not in LOW_BYTE or image.fp is None:
        raise ImageError("unread", kind=f"16-bit {image.format} file")
    stated_max = _stated_max(image)
    low = Image.open(io.BytesIO(_file_of(image)), formats=[image.format])
    both_bytes = mode.startswith("LA")  # Pillow has no raw mode for its low bytes: read all four as RGBA
    raw = "RGBA" if both_bytes else mode[:-4] + LOW_BYTE[mode[-4:]]
    low.tile = [t._replace(args=raw if isinstance(t.args, str) else (raw, *t.args[1:])) for t in low.tile]
    image.load()
    low.load()

    def read(rows: slice) -> np.ndarray:
        box = (0, rows.start, image.width, rows.stop)
        if both_bytes:
            samples = np.asarray(low.crop(box), dtype=np.uint16)
            return samples[..., 0::2] << 8 | samples[..., 1::2]
        return np.asarray(image.crop(box), dtype=np.uint16) << 8 | np.asarray(low.crop(box))

    return _to_8_bits(read, image.size[::-1], stated_max, transparent=image.info.get("transparency"))


def _read_deep_grey(image: Image.Image) -> Image.Image:
    """A greyscale image of 16 or 32 bits, or of signed samples, as 8-bit greyscale."""
    stated_max = None if _is_signed(image) else _stated_max(image)
    image.load()
    bits = max(_tags(image).get(ExifTags.Base.BitsPerSample, (16,)))
    type_max = 2 ** (bits - 1) - 1 if _is_signed(image) and bits <= 16 else 65535

    def read(rows: slice) -> np.ndarray:
        values = np.asarray(image.crop((0, rows.start, image.width, rows.stop)))
        return values.view(np.int8) if image.mode == "L" else values

    return _to_8_bits(
        read, image.size[::-1], stated_max, type_max,
        transparent=image.info.get("transparency"),
        inverted=_tags(image).get(ExifTags.Base.PhotometricInterpretation) == 0,
    )  # fmt: skip


def _stated_max(image: Image.Image) -> int | None:
    """The largest sample of the depth stated by the file; None where it states none, or its metadata is damaged."""
    if image.format == "PPM":
        return 65535  # Pillow has scaled it by the maxval of its header
    with contextlib.suppress(Exception):
        tags, bits = _tags(image), 0
        if image.format == "PNG":
            bits = _significant_bits(image)
        elif image.format == "JPEG2000":
            data = _file_of(image)
            stored = 1 + (data[data.index(b"\xff\x4f\xff\x51") + 42] & 127)
            bits = 16 if stored < 16 else 0  # Pillow has scaled it to 16
        elif ExifTags.Base.BitsPerSample in tags:
            stored = max(tags[ExifTags.Base.BitsPerSample])
            largest = tags.get(281, 0)  # MaxSampleValue, the largest sample in use
            largest = max(largest) if isinstance(largest, tuple) else largest
            ome = re.search(r'SignificantBits="(\d+)"', str(tags.get(ExifTags.Base.ImageDescription, "")))
            bits = stored if stored < 16 else int(ome[1]) if ome else int(largest).bit_length()
        if 0 < bits <= 16:
            return max(2**bits - 1, 255)
    return None


def _significant_bits(image: Image.Image) -> int:
    """The depth stated by the sBIT chunk of a PNG; 0 without one."""
    file = io.BytesIO(_file_of(image))
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"sBIT"):
        file.seek(int.from_bytes(head[:4]) + 4, io.SEEK_CUR)
    return max(file.read(int.from_bytes(head[:4])), default=0) if head[4:] == b"sBIT" else 0


def _to_8_bits(
    read: Callable[[slice], np.ndarray], shape: tuple[int, int], stated_max: int | None = None, type_max: int = 65535,
    *, transparent: int | tuple[int, ...] | None = None, inverted: bool = False,
) -> Image.Image:  # fmt: skip
    """Convert an image in strips of rows: as float64 all at once, it would take eight times the memory.

    read: returns rows of the image of `shape` [H, W]: [rows, W] or [rows, W, 2 to 4], with alpha last in 2 and 4 channels.
    stated_max: the largest sample of the depth stated by the file; type_max: that of the type of the samples.
    transparent: the sample value of transparent pixels, which become white; inverted: whether 0 is white.
    """
    height, width = shape
    step = max(1, 2**20 // width)
    spans = [slice(top, min(top + step, height)) for top in range(0, height, step)]

    def strip(rows: slice) -> np.ndarray:
        values = read(rows)
        return np.nan_to_num(values if values.ndim == 3 else values[..., None], nan=0)

    first_row = strip(slice(0, 1))
    floating, channels = first_row.dtype.kind == "f", first_row.shape[2]
    colours = channels - (channels in (2, 4))
    extremes = [(values.min(axis=(0, 1)), values.max(axis=(0, 1))) for values in map(strip, spans)]
    low, high = np.min([pair[0] for pair in extremes], axis=0), np.max([pair[1] for pair in extremes], axis=0)
    maxima = np.empty(channels)
    maxima[:colours] = _full_scale(low[:colours].min(), high[:colours].max(), stated_max, type_max, floating)
    maxima[colours:] = [_full_scale(0, alpha, None, type_max, floating) for alpha in high[colours:]]
    out = np.empty((height, width, channels), dtype=np.uint8)
    for rows in spans:
        values = strip(rows)
        scaled = np.clip(np.round(values * (255.0 / maxima)), 0, 255)
        out[rows] = 255 - scaled if inverted else scaled
        if isinstance(transparent, int | tuple):
            out[rows][(values == np.asarray(transparent)).all(axis=2)] = 255
    return Image.fromarray(out[..., 0] if channels == 1 else out)


def _full_scale(low: float, high: float, stated_max: int | None, type_max: int, floating: bool) -> int:
    """The sample value that becomes 255, by the rules at the top of this file.

    Raises:
        ImageError: no depth fits the samples.
    """
    candidates = [*(n for n in DEPTH_MAXIMA if n < type_max), type_max]
    if floating:
        candidates = [1, *candidates]
    elif stated_max and high <= stated_max:
        candidates = [stated_max]
    slack = OVERSHOOT if floating else 1
    maximum = next((n for n in candidates if high <= slack * n), None)
    if maximum is None or low < -UNDERSHOOT * maximum:
        raise ImageError("depth", low=f"{low:g}", high=f"{high:g}")
    return maximum
