"""`python -m tests.space.screenshots OUT` takes screenshots of every tab: desktop and phone, light and dark, both languages.

In: MODEL_ID and DATASET_ID of the environment, else the release and a dataset of synthetic cells. Out: PNG files
`TAB-SIZE-SCHEME-LANGUAGE.png`, and docs/screenshot.png for the README.
"""

from __future__ import annotations

import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page

from dataset_script.synthetic_cells import LOOKS, draw_cell, draw_field
from hub_model.inference.classifier import Classifier
from tests.space.browser import TIMEOUT_MS, chromium
from tests.space.running import RunningSpace, running

ROOT = Path(__file__).resolve().parents[2]
RELEASE = str(ROOT / "hub_model" / "release")
SIZES = {"desktop": (1440, 900), "phone": (390, 844)}
TABS = ("cell", "cells", "field", "learn", "model", "data", "api")
LOCALES = {"en": "en-US", "id": "id-ID"}


def draw_inputs(folder: Path) -> dict[str, Path]:
    """A cell, a zip file of cells with two bad files, and a field, by tab."""
    draw_cell("PMO", 77).save(folder / "cell.jpg", quality=90)
    with zipfile.ZipFile(folder / "cells.zip", "w") as archive:
        for number, label in enumerate(list(LOOKS) * 6):
            draw_cell(label, 500 + number).save(folder / "one.jpg", quality=90)
            archive.write(folder / "one.jpg", f"slide/{label.lower()}-{number:02d}.jpg")
        archive.writestr("slide/notes.txt", "no picture")
        archive.writestr("slide/cut-off.jpg", (folder / "one.jpg").read_bytes()[:4000])
    cells = [
        (label, 130 + 210 * (i // 5), 130 + 210 * (i % 5)) for i, label in enumerate([*LOOKS, *LOOKS][:13])
    ]
    draw_field(680, 1120, cells, seed=1).save(folder / "field.jpg", quality=90)
    return {"cell": folder / "cell.jpg", "cells": folder / "cells.zip", "field": folder / "field.jpg"}


def known_cell(model: str) -> Image.Image:
    """The first synthetic cell that the model is sure of: most synthetic cells are out of distribution."""
    classifier = Classifier.from_pretrained(model)
    cells = (draw_cell(label, seed) for seed in range(100) for label in LOOKS)
    return next(cell for cell in cells if classifier.predict(cell).verdicts[0].kind == "sure")


def visit(page: Page, address: str, language: str) -> None:
    """Open the Space in a language and wait until it is ready."""
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(f"{address}/?lang={language}")
    page.locator("#cell-picture").wait_for()
    page.locator(f"html[lang={language}]").wait_for()


def open_tab(page: Page, name: str) -> None:
    """Select a tab."""
    page.locator(f"#tab-{name}-button").click()


def fill_tab(page: Page, name: str, inputs: dict[str, Path]) -> None:
    """Use a tab as a visitor would, and wait for its results."""
    open_tab(page, name)
    if name == "cell":
        page.set_input_files("#cell-picture input[type=file]", inputs["cell"])
        page.locator("#cell-similar figure").first.wait_for()
    elif name == "cells":
        page.set_input_files("#cells-files input[type=file]", inputs["cells"])
        page.locator("#cells-files .file-preview").wait_for()
        page.locator("#cells-run").click()
        page.locator("#cells-similar figure").first.wait_for()
        page.locator("#cells-chart .js-plotly-plot").wait_for()
    elif name == "field":
        page.set_input_files("#field-picture input[type=file]", inputs["field"])
        page.locator("#field-picture img").wait_for()
        page.locator("#field-run").click()
        page.locator("#field-similar figure").first.wait_for()
    elif name == "learn":
        page.locator("#learn-cell img").wait_for()
        page.locator("#learn-guess label").nth(2).click()
        page.locator("#learn-check").click()
        page.locator("#learn-verdict .answer").wait_for()
    else:
        ready = {
            "model": "#model-coverage .js-plotly-plot",
            "data": "#data-examples img",
            "api": "#api-page summary",
        }
        page.locator(ready[name]).first.wait_for()


IMAGES_LOADED = """() => {
  const images = [...document.querySelectorAll("img")];
  images.forEach(image => { image.loading = "eager"; });
  document.querySelectorAll(".desk .tile").forEach(tile => { tile.style.contentVisibility = "visible"; });
  return images.every(image => image.complete);
}"""


def shoot(page: Page, path: Path) -> Path:
    """Take a screenshot of the full page, including images below the fold."""
    page.wait_for_function(IMAGES_LOADED)
    page.wait_for_timeout(700)  # the plots are rendered
    page.screenshot(path=path, full_page=True)
    return path


def take(
    browser: Browser, address: str, inputs: dict[str, Path], out: Path, tabs: tuple[str, ...]
) -> Iterator[Path]:
    """Take the tabs in every size, colour scheme and language."""
    for size, (width, height) in SIZES.items():
        for scheme in ("light", "dark"):
            for language, locale in LOCALES.items():
                context = browser.new_context(
                    viewport={"width": width, "height": height}, color_scheme=scheme, locale=locale
                )
                page = context.new_page()
                visit(page, address, language)
                for name in tabs:
                    fill_tab(page, name, inputs)
                    yield shoot(page, out / f"{name}-{size}-{scheme}-{language}.png")
                context.close()


def main(arguments: list[str]) -> int:
    if not arguments:
        print("usage: python -m tests.space.screenshots OUT [TAB …]", file=sys.stderr)
        return 2
    out = Path(arguments[0])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        space = RunningSpace(["-m", "space", *_repos(folder)], folder / "space", cwd=ROOT)
        with running(space), chromium() as browser:
            inputs = draw_inputs(folder)
            known_cell(os.environ.get("MODEL_ID") or RELEASE).save(inputs["cell"], quality=90)
            for path in take(browser, space.address, inputs, out, tuple(arguments[1:]) or TABS):
                print(path, flush=True)
    if (shown := out / "cell-desktop-light-en.png").is_file():
        write_readme_picture(shown, ROOT / "docs" / "screenshot.png")
    return 0


def write_readme_picture(source: Path, target: Path) -> None:
    """A screenshot small enough for the README (at most 200 KB): 1,000 pixels wide, 128 colours."""
    with Image.open(source) as image:
        picture = image.convert("RGB")
    picture = picture.crop((0, 0, picture.width, min(picture.height, 900)))
    picture.thumbnail((1000, 1000), Image.Resampling.LANCZOS)
    picture.quantize(128).save(target, optimize=True)


def _repos(folder: Path) -> list[str]:
    if os.environ.get("MODEL_ID"):
        return []
    from tests.space import small_dataset_repo

    dataset = small_dataset_repo.build(folder / "dataset", {"train": 12, "validation": 3, "test": 12})
    return ["--model", RELEASE, "--dataset", str(dataset)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
