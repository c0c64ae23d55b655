"""`python -m tests.space.session OUT [CELLS]`: screenshots of a full session, from mixed files to a corrected model.

In: MODEL_ID of the environment, else the release. Out: numbered PNG files in OUT that show the count of CELLS (default: 200)
mixed files, the review by keyboard, exports and report, and the same files in a Space of the model fine-tuned on the export.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Page, expect

from dataset_script.synthetic_cells import LOOKS, draw_cell
from tests.space import small_dataset_repo
from tests.space.browser import chromium
from tests.space.running import of_repos, running
from tests.space.screenshots import RELEASE, ROOT, fill_tab, open_tab, shoot, visit

KINDS = ("jpg", "png", "tif", "bmp", "webp")


def mixed_files(folder: Path, cells: int) -> list[Path]:
    """Half of the cells in a zip file with class folders, half as loose files of five formats, and some unusable files."""
    loose, labels = [], list(LOOKS)
    with zipfile.ZipFile(folder / "slide-1.zip", "w") as archive:
        for number in range(cells):
            label = labels[number % len(labels)]
            path = folder / f"{label.lower()}-{number:03d}.{KINDS[number % len(KINDS)]}"
            draw_cell(label, 900 + number).save(path)
            if number % 2:
                archive.write(path, f"{label}/{path.name}")
            else:
                loose.append(path)
        archive.writestr("Thumbs.db", b"litter")
        archive.writestr("notes.txt", b"no picture")
    (folder / "cut-off.jpg").write_bytes(loose[0].read_bytes()[:3000])
    return [folder / "slide-1.zip", folder / "cut-off.jpg", *loose]


def truth_of(tile_title: str) -> int:
    """The key of the class in the file name of a synthetic cell."""
    file = tile_title.partition(":")[0].rpartition("/")[2]
    return 1 + list(LOOKS).index(file.partition("-")[0].upper())


def review(page: Page) -> int:
    """Correct all cells with arrow and number keys, most uncertain first; returns how many changed."""
    tiles = page.locator("#cells-desk .tile")
    tiles.first.click()
    for number in range(tiles.count()):
        title = page.locator("#cells-desk .tile[aria-current]").get_attribute("title")
        page.keyboard.press(str(truth_of(title)))
        if number + 1 < tiles.count():
            page.keyboard.press("ArrowRight")
    page.wait_for_timeout(2000)
    return page.locator("#cells-desk .tile b", has_text="✓").count()


def accuracy(page: Page) -> str:
    """How many synthetic cells are classified correctly."""
    tiles = page.locator("#cells-desk .tile").evaluate_all(
        'tiles => tiles.map(tile => [tile.title, tile.querySelector("b").textContent.trim()])'
    )
    correct = sum(list(LOOKS)[truth_of(title) - 1] == label for title, label in tiles)
    return f"{correct} of {len(tiles)} cells are classified correctly"


def export(page: Page, folder: Path) -> tuple[Path, Path]:
    """Download the exports; returns the folder of the dataset and the report."""
    page.locator("#cells-export").click()
    links = page.locator("#cells-exported a[download]")
    expect(links.first).to_be_visible(timeout=300_000)
    for link in links.all():
        with page.expect_download() as waiting:
            link.click()
        waiting.value.save_as(folder / waiting.value.suggested_filename)
    with zipfile.ZipFile(folder / "cells-dataset.zip") as archive:
        archive.extractall(folder / "dataset")
    return folder / "dataset", folder / "cells-report.html"


def fine_tune(dataset: Path, model: str, folder: Path) -> Path:
    """Fine-tune the model on the export; returns the folder of the new model repo."""
    run, repo = folder / "run", folder / "corrected-model"
    train = [
        "train_accelerate.py",
        "--dataset",
        dataset,
        "--init_from",
        model,
        "--epochs",
        2,
        "--output_dir",
        run,
    ]
    for command in (train, ["-m", "hub_model", "build", run, repo]):
        print("$ python " + " ".join(map(str, command)), flush=True)
        subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)
    return repo


def count_files(page: Page, files: Sequence[Path]) -> None:
    """Upload the files to "Many cells" and wait for the count."""
    open_tab(page, "cells")
    page.set_input_files("#cells-files input[type=file]", files)
    page.locator("#cells-files .file-preview").wait_for()
    page.locator("#cells-run").click()
    page.locator("#cells-desk .tile").first.wait_for(timeout=600_000)


def main(arguments: list[str]) -> int:
    if not arguments:
        print("usage: python -m tests.space.session OUT [CELLS]", file=sys.stderr)
        return 2
    out, cells = Path(arguments[0]), int((arguments[1:] or ["200"])[0])
    out.mkdir(parents=True, exist_ok=True)
    model = os.environ.get("MODEL_ID") or RELEASE
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        folder = Path(scratch)
        dataset = small_dataset_repo.build(folder / "data", {"train": 12, "validation": 2, "test": 6})
        files = mixed_files(folder, cells)
        page = browser.new_page(viewport={"width": 1440, "height": 900}, locale="en-US")
        page.set_default_timeout(600_000)
        with running(of_repos(model, dataset, folder / "space")) as space:
            visit(page, space.address, "en")
            count_files(page, files)
            print(accuracy(page))
            shoot(page, out / "1-counted.png")
            print(f"{review(page)} cells were corrected by keyboard")
            shoot(page, out / "2-reviewed.png")
            exported, report = export(page, folder)
            shoot(page, out / "3-exported.png")
            page.goto(report.as_uri())
            shoot(page, out / "4-report.png")
        tuned = fine_tune(exported, model, folder)
        with running(of_repos(tuned, dataset, folder / "space")) as space:
            visit(page, space.address, "en")
            count_files(page, files)
            print(accuracy(page))
            shoot(page, out / "5-corrected-model.png")
            fill_tab(page, "model", {})
            shoot(page, out / "6-its-figures.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
