"""A raw folder of 300 good files and 300 that the build has to reject."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_script.synthetic_cells import LOOKS, draw_folder
from tests.pictures import encoded, png_bomb


def write_odd_folder(raw: Path, outside: Path) -> dict[str, int]:
    """Write 300 good and 300 bad files into `raw`; return the expected number of rejected files by reason."""
    rng = np.random.default_rng(5)
    draw_folder(raw, per_class=40, seed=3)
    names = list(LOOKS)

    def noise() -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (64, 72, 3), dtype=np.uint8))

    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated by 90°
    for i in range(4):  # 20 unusual but good ones: 280 + 20 = 300 kept
        (raw / "EOS" / f"gray_{i}.png").write_bytes(encoded(noise().convert("L"), "PNG"))
        deep = Image.fromarray(rng.integers(0, 65536, (60, 60), np.uint16))
        (raw / "EOS" / f"deep_{i}.png").write_bytes(encoded(deep, "PNG"))
        (raw / "LYT" / f"cmyk_{i}.jpg").write_bytes(encoded(noise().convert("CMYK"), "JPEG"))
        (raw / "MON" / f"alpha_{i}.webp").write_bytes(encoded(noise().convert("RGBA"), "WEBP", lossless=True))
        (raw / "NGS" / f"turned_{i}.JPG").write_bytes(encoded(noise(), "JPEG", exif=exif))
    good = [(raw / n / f"{n}_synthetic_{i:05d}.jpg").read_bytes() for n in names for i in range(1, 8)]
    expected = {}

    def put(reason: str, path: str, data: bytes) -> None:
        file = raw / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        expected[reason] = expected.get(reason, 0) + 1

    for i in range(30):
        name, data = names[i % 7], good[i]
        put("truncated", f"{name}/cut_{i}.jpg", data[: int(len(data) * (0.02 + 0.03 * i))])
        put("zero bytes", f"{name}/deep/er/empty_{i}.jpg", b"")
        put("not an image", f"{name}/text_{i}.jpg", b"<script>alert(1)</script>" * (i + 1))
        put("wrong extension", f"{name}/really_png_{i}.jpg", encoded(noise(), "PNG"))
        put("absurd dimensions", f"{name}/bomb_{i}.png", png_bomb(30_000 + i, 30_000))
        put("duplicate", f"{names[i // 7]}/copy_{i}.jpg", good[i])
        put("hidden or system file", f"{name}/.hidden_{i}.jpg" if i % 2 else f"Thumbs{i}/Thumbs.db", b"x")
        put("unknown class folder", f"XYZ/other_{i}.jpg", encoded(noise(), "JPEG"))
    for i in range(10):
        data, animation = encoded(noise(), "JPEG"), {"save_all": True, "append_images": [noise()]}
        put("same bytes under different labels", f"BLA/both_{i}.jpg", data)
        put("same bytes under different labels", f"PMO/both_{i}.jpg", data)
        put("several pages", f"NIF/moving_{i}.gif", encoded(noise(), "GIF", **animation))
        put("damaged", f"NIF/broken_{i}.png", b"\x89PNG\r\n\x1a\n" + rng.bytes(200) + b"IEND\xaeB`\x82")
    outside.mkdir()
    (outside / "secret.jpg").write_bytes(encoded(noise(), "JPEG"))
    for i in range(20):
        os.symlink(outside / "secret.jpg", raw / "BLA" / f"link_{i}.jpg")
    expected["symlink out of the folder"] = 20
    return expected
