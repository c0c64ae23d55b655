"""Bad uploads get one sentence each, unusual but valid ones are accepted, and zip files are read safely."""

import io
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import space
from hub_model.inference.errors import ImageError
from hub_model.inference.images import CELL_SIDE, MAX_PIXELS, read_image
from space import archives
from space.archives import MAX_ENTRIES, MAX_PICTURES, count_uploads, read_cell, read_slide, read_uploads
from space.fields import CROP_SIDE
from space.tab_cell import CellPicture, checked_frame
from space.texts import say_error
from space.visits import Visit
from tests.pictures import png_bomb
from tests.space.bad_uploads import PICTURES, even, jpeg, zipped


@pytest.mark.parametrize("name", PICTURES)
def test_a_bad_picture_gets_its_own_sentence(name: str, tmp_path: Path) -> None:
    make, reason = PICTURES[name]
    path = tmp_path / name
    path.write_bytes(make())
    with pytest.raises(ImageError) as refusal:
        read_image(path)
    assert refusal.value.reason == reason
    for language in ("en", "id"):
        sentence = say_error(language, refusal.value)
        assert sentence.endswith(".") and "\n" not in sentence and "{" not in sentence


def test_a_photograph_of_a_phone_is_reduced_while_it_is_decoded(tmp_path: Path) -> None:
    Image.new("RGB", (6500, 4000), "white").save(tmp_path / "phone.jpg")  # 26 megapixels
    Image.new("RGB", (6500, 4000), "white").save(tmp_path / "phone.png")
    assert read_cell(tmp_path / "phone.jpg").size == (CELL_SIDE, round(CELL_SIDE * 4000 / 6500))
    with pytest.raises(ImageError, match="crop it, or use the field tab"):
        read_cell(tmp_path / "phone.png")
    assert read_slide(tmp_path / "phone.png").size == (6500, 4000)


def test_a_slide_may_be_long_and_large_but_not_beyond_memory() -> None:
    assert read_slide(even("L", (30_000, 1_000))).size == (30_000, 1_000)
    with pytest.raises(ImageError, match="more than 144 million pixels: cut it into several"):
        read_slide(png_bomb(13_000, 12_000))


def test_a_crop_is_taken_from_the_picture_as_it_was_sent(tmp_path: Path) -> None:
    photograph = Image.new("RGB", (6400, 4000), "white")
    photograph.paste((200, 0, 0), (3200, 1000, 3600, 1400))
    photograph.save(tmp_path / "phone.png", compress_level=1)
    picture = CellPicture(str(tmp_path / "phone.png"))
    with pytest.raises(ImageError, match="crop it"):
        picture.read(Visit(tmp_path / "visit"))
    assert (picture.preview["width"], picture.preview["height"]) == (CELL_SIDE, 640), "it can be cropped"
    picture.frame = checked_frame({"left": 0.5, "top": 0.25, "side": 1 / 16})
    crop = np.asarray(picture.read(Visit(tmp_path / "visit")))
    assert crop.shape == (CROP_SIDE, CROP_SIDE, 3) and (crop == (200, 0, 0)).all()


@pytest.mark.parametrize(
    "value", [None, 5, {}, {"left": "x", "top": 0, "side": 1}, {"left": 0, "top": 0, "side": 0}]
)
def test_an_invalid_frame_means_the_whole_picture(value: object) -> None:
    assert checked_frame(value) is None


def entries(tmp_path: Path, data: bytes) -> dict[str, str]:
    """Name -> reason of the error, or "" for a picture."""
    (tmp_path / "a.zip").write_bytes(data)
    uploads = read_uploads([str(tmp_path / "a.zip")])
    return {e.name.removeprefix("a.zip/"): e.error.reason if e.error else "" for e in uploads}


def test_a_zip_gives_its_pictures_and_names_the_bad_ones(tmp_path: Path) -> None:
    data = zipped(
        {
            "good/1.jpg": jpeg(1),
            "good/2.jpg": jpeg(2),
            "__MACOSX/good/._1.jpg": b"litter",
            "good/.DS_Store": b"litter",
            "good/._2.jpg": b"litter",
            "Thumbs.db": b"litter",
            "good/desktop.ini": b"litter",
            "notes.txt": b"text",
            "cut.jpg": jpeg(3)[:2000],
            "bomb.png": png_bomb(40_000, 40_000),
            "inner.zip": zipped({"x.jpg": jpeg(4)}),
            "../climb.jpg": jpeg(5),
            "/absolute.jpg": jpeg(6),
            "..\\windows.jpg": jpeg(7),
        }
    )
    assert entries(tmp_path, data) == {
        "good/1.jpg": "",
        "good/2.jpg": "",
        "notes.txt": "not_an_image",
        "cut.jpg": "truncated",
        "bomb.png": "bomb",
        "inner.zip": "not_an_image",
        "../climb.jpg": "zip_path",
        "/absolute.jpg": "zip_path",
        "../windows.jpg": "zip_path",
    }
    assert count_uploads([str(tmp_path / "a.zip")]) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_zip_bomb_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_UNPACKED", 20 * 2**20)
    assert entries(tmp_path, zipped({"zeros.jpg": bytes(30 * 2**20)})) == {"a.zip": "zip_bomb"}


def test_a_picture_that_shrinks_well_is_no_bomb(tmp_path: Path) -> None:
    assert entries(tmp_path, zipped({"white.bmp": even("RGB", (3000, 3000), "BMP")})) == {"white.bmp": ""}


def test_names_of_zip_entries_are_decoded(tmp_path: Path) -> None:
    """UTF-8 without its flag, as macOS writes it, and backslashes, as some Windows programs do."""

    class WithoutFlag(zipfile.ZipInfo):
        def _encodeFilenameFlags(self) -> tuple[bytes, int]:
            return "sel\\é.jpg".encode(), self.flag_bits & ~0x800

    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr(WithoutFlag("x"), jpeg())
    assert entries(tmp_path, buffer.getvalue()) == {"sel/é.jpg": ""}


def patched(patches: dict[tuple[bytes, int], bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip file of one picture, with bytes overwritten: (signature of a header, offset in it) -> bytes."""
    data = bytearray(zipped({"a.jpg": jpeg()}, compression))
    for (signature, offset), new in patches.items():
        start = data.rindex(signature) + offset
        data[start : start + len(new)] = new
    return bytes(data)


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"  # signatures of the headers of an entry


def test_a_zip_that_lies_about_sizes_is_caught(tmp_path: Path) -> None:
    data = patched({(CENTRAL, 24): (10).to_bytes(4, "little")})  # the unpacked size
    assert entries(tmp_path, data)["a.jpg"] in {"zip_bomb", "damaged", "truncated", "not_an_image"}


def test_links_locks_and_damaged_zips_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    assert entries(tmp_path, buffer.getvalue()) == {"link.jpg": "zip_path"}
    encrypted = patched({(LOCAL, 6): b"\x01", (CENTRAL, 8): b"\x01"})
    assert entries(tmp_path, encrypted) == {"a.jpg": "zip_locked"}
    assert set(entries(tmp_path, zipped({"a.jpg": jpeg()})[:-30]).values()) == {"bad_zip"}


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (lambda: patched({(LOCAL, 200): b"\xff" * 1800}, zipfile.ZIP_LZMA), "bad.zip/a.jpg", "damaged"),
        (lambda: patched({(CENTRAL, 6): bytes([99])}), "bad.zip", "bad_zip"),
        (lambda: patched({(CENTRAL, 28): b"\0", (CENTRAL, 32): b"\x05"}), "bad.zip/", "zip_path"),
        (lambda: zipped(dict.fromkeys(map(str, range(MAX_ENTRIES + 1)), b"")), "bad.zip", "zip_crowded"),
    ],
    ids=["damaged LZMA data", "version 9.9", "name in the comment", "too many entries"],
)
def test_a_damaged_zip_leaves_the_picture_beside_it_alone(
    make: Callable[[], bytes], name: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.zip").write_bytes(make())
    (tmp_path / "good.jpg").write_bytes(jpeg())
    paths = [str(tmp_path / "bad.zip"), str(tmp_path / "good.jpg")]
    assert count_uploads(paths) >= 2
    bad, good = read_uploads(paths)
    assert (bad.name, bad.error.reason, good.error) == (name, reason, None)


def test_the_pixels_that_are_claimed_are_those_of_the_sentence_and_of_the_readme() -> None:
    with pytest.raises(ImageError, match="more than 12 million"):
        read_image(even("RGB", (4_000, 3_500), "WEBP"))
    assert f"{MAX_PIXELS // 10**6} megapixels" in (Path(space.__file__).parent / "README.md").read_text()


def test_past_the_limit_nothing_is_left_out_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_PICTURES", 5)
    names = [f"{label}/{i}.jpg" for label in ("BLA", "EOS") for i in range(4)]
    (tmp_path / "a.zip").write_bytes(zipped(dict.fromkeys(names, even("RGB", (16, 16), "JPEG"))))
    uploads = list(read_uploads([str(tmp_path / "a.zip")]))
    assert [entry.name for entry in uploads] == [f"a.zip/{name}" for name in names]
    assert [entry.error.reason for entry in uploads if entry.error] == ["too_many"] * 3
    assert MAX_PICTURES == 5_000
