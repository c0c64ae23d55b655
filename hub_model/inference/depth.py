"""Samples of more than 8 bits, and of floats, as 8-bit pictures.

Samples are divided by the largest value of the depth that is really used: cameras store 10, 12 or 14 bits in files of 16. It is
the one that the file states (PNG sBIT; TIFF BitsPerSample, MaxSampleValue; OME SignificantBits) where no sample exceeds it, else
the smallest of 8, 10, 12, 14 and 16 bits that holds the largest sample. Floats may also run from 0 to 1, and may overshoot by a
quarter, as resampling does. What runs far below 0 or above 16 bits has no known scale and is refused.
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

DEPTHS = (255, 1023, 4095, 16383)  # the largest samples of cameras' depths; 65535 comes on top of them
OVERSHOOT = 1.25  # what resampling may add to the largest float
UNDERSHOOT = 1 / 8  # of the largest sample, below 0: what subtracting a dark frame leaves
# Pillow keeps the high byte of 16-bit colour: the raw mode that unpacks the low one instead
LOW_BYTE = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B" if sys.byteorder == "little" else ";16L"}
MOST_VERSIONS = 16  # of one picture in a TIFF
ALPHA = (2,)  # TIFF's ExtraSamples of a picture whose last channel is its transparency
COMPRESSIONS = {1: "none", 5: "LZW", 8: "deflate", 32773: "PackBits", 32946: "deflate"}  # of TIFF


class WideTiff(ImageFile.ImageFile):
    """A TIFF of a kind that Pillow does not read, through tifffile: colour in floats, 32 bits or planes, packed samples.

    Raises:
        ImageError: this kind is not read here either.
        Exception: the header is damaged; tifffile raises whatever it stumbles over.
    """

    format = "TIFF"
    is_animated = False

    def _open(self) -> None:
        from tifffile import TiffFile

        logging.getLogger("tifffile").setLevel(
            logging.CRITICAL
        )  # of a damaged file it also tells the terminal
        pages = TiffFile(self.fp).pages
        self.page = page = pages.first
        self._size, self._mode = (page.imagewidth, page.imagelength), "RGB"
        with contextlib.suppress(IndexError):
            self.is_animated = pages[1] is not None
        self.tags = {tag.code: tag.value for tag in page.tags} | {
            ExifTags.Base.BitsPerSample: (page.bitspersample,)
        }
        self.getexif()[ExifTags.Base.Orientation] = self.tags.get(ExifTags.Base.Orientation, 1)
        channels = (page.samplesperpixel, page.extrasamples)
        if page.photometric not in (0, 1, 2) or channels not in ((1, ()), (2, ALPHA), (3, ()), (4, ALPHA)):
            raise ImageError(
                "unread", kind=f"TIFF file of {page.samplesperpixel} channels ({page.photometric.name})"
            )
        if page.axes not in ("YX", "YXS", "SYX") or page.dtype is None or page.dtype.kind not in "iuf":
            raise ImageError("unread", kind=f"TIFF file of {page.bitspersample}-bit samples")
        if page.compression not in COMPRESSIONS:
            raise ImageError("unread", kind=f"{page.compression.name} TIFF file")
        if page.tilewidth * page.tilelength > 2**20 + 2 * page.imagewidth * page.imagelength:
            raise ImageError("damaged")
        packed = page.bitspersample not in (8, 16, 32, 64)
        coded = packed or page.compression > 1 or page.predictor > 1
        if coded and not importlib.util.find_spec("imagecodecs"):  # tifffile's own decoders know no limit
            kind = f"packed {page.bitspersample}-bit" if packed else COMPRESSIONS[page.compression]
            raise ImageError("unread", kind=f"{kind} TIFF file (without the package imagecodecs)")

    def samples(self) -> np.ndarray:
        """The samples [H, W] or [H, W, 2 to 4], even channel counts with alpha last."""
        values = self.page.asarray(maxworkers=1)
        return np.moveaxis(values, 0, -1) if self.page.axes == "SYX" else values


def is_deep(image: Image.Image) -> bool:
    """Whether an image that is not decoded yet has samples that Pillow would cut off, or scale by their type alone."""
    return isinstance(image, WideTiff) or _is_deep_colour(image) or image.mode[0] in "IF" or _is_signed(image)


def has_several_pages(image: Image.Image) -> bool:
    """Whether a file holds more than one picture; a TIFF's smaller versions of the same one do not count.

    Raises:
        Exception: what Pillow stumbles over: a GIF's frames are read for it.
    """
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return False
    if image.format != "TIFF" or isinstance(image, WideTiff):
        return True
    with contextlib.suppress(EOFError):
        for page in range(1, MOST_VERSIONS):
            image.seek(page)
            if not _tags(image).get(ExifTags.Base.NewSubfileType, 0) & 1:
                return True
    image.seek(0)
    return False


def copies_of(image: Image.Image) -> int:
    """How many pictures of four bytes a pixel the decoder of a deep image holds."""
    if isinstance(image, WideTiff):
        return 1 + -(-image.page.samplesperpixel * image.page.dtype.itemsize // 4)
    return 3 if _is_in_planes(image) else 2 if _is_deep_colour(image) else 1


def read_deep(image: Image.Image) -> Image.Image:
    """Decode an image that `is_deep` is true of, as 8 bits.

    Raises:
        ImageError: its samples have no known scale, or it is of a kind that is not read.
    """
    if _is_in_planes(image):
        image = WideTiff(io.BytesIO(_file_of(image)))
    if isinstance(image, WideTiff):
        values = image.samples()
        told = _stated_depth(image) if values.dtype.kind == "u" else None
        return from_array(values, told, inverted=image.page.photometric == 0)
    if maxval := _largest_of_pnm(image):
        shape = (image.height, image.width, 1 if image.mode[0] == "I" else 3)
        values = np.frombuffer(_file_of(image), ">u2", math.prod(shape), image.tile[0].offset).reshape(shape)
        return from_array(values, maxval if maxval < 65535 else None)
    return _read_deep_colour(image) if _is_deep_colour(image) else _read_deep_grey(image)


def from_array(values: np.ndarray, told: int | None = None, inverted: bool = False) -> Image.Image:
    """An array [H, W] or [H, W, channels] as an 8-bit image; see `_scaled`."""
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.dtype in (np.uint8, np.bool_) and not inverted:
        return Image.fromarray(values)
    most = min(np.iinfo(values.dtype).max, 65535) if values.dtype.kind in "iu" else 65535
    return _scaled(lambda top, bottom: values[top:bottom], *values.shape[:2], told, most, inverted=inverted)


def _rawmode(image: Image.Image) -> str:
    """How a picture that is not decoded yet is stored, as Pillow's decoders name it."""
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
    return deep or _is_in_planes(image) or _largest_of_pnm(image) > 0


def _largest_of_pnm(image: Image.Image) -> int:
    """The largest sample that a binary PGM or PPM of 16 bits states; 0 for anything else."""
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
    place = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(place)
    return data


def _read_deep_colour(image: Image.Image) -> Image.Image:
    """16-bit colour, of which Pillow keeps the high byte, as 8 bits: the low byte is decoded once more beside it."""
    mode = _rawmode(image)
    if mode.startswith("RGBa") or mode[-4:] not in LOW_BYTE or image.fp is None:
        raise ImageError("unread", kind=f"16-bit {image.format} file")
    told = _stated_depth(image)
    low = Image.open(io.BytesIO(_file_of(image)), formats=[image.format])
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
    if image.format == "PPM":
        return 65535  # Pillow has scaled it by the depth that its header states
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
