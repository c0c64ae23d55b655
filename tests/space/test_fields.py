"""Finding nucleated cells in a field: synthetic cells, crops of real cells, and empty fields."""

import random
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from dataset_script.synthetic_cells import LOOKS, draw_cell, draw_field
from space.dataset_repo import Sample
from space.fields import (
    CROP_SIDE,
    MAX_CELLS,
    SLIDE_SCALE,
    TILE,
    Box,
    background_of,
    cut,
    evenly,
    find_cells,
    typical_diameter,
)
from space.resources import Resources
from space.tab_field import example_field
from tests.pictures import encoded

KINDS = [label for label in LOOKS if label != "NIF"]


def matched(boxes: list[Box], centres: list[tuple[int, int]], distance: float) -> int:
    """How many centres (row, column) have the centre of a box within a distance."""
    found = np.array([(box.top + box.side / 2, box.left + box.side / 2) for box in boxes]).reshape(-1, 2)
    return sum(bool(len(found)) and np.hypot(*(found - centre).T).min() < distance for centre in centres)


def test_cells_of_a_drawn_field_are_found_once_each() -> None:
    spots = [(130 + 210 * row, 130 + 210 * column) for row in range(4) for column in range(6)]
    cells = [(KINDS[i % len(KINDS)], *spot) for i, spot in enumerate(spots)]
    field = draw_field(900, 1320, cells, seed=3)
    diameter = typical_diameter([draw_cell(label, i) for label in KINDS for i in range(4)])
    boxes = find_cells(field, diameter)
    assert matched(boxes, spots, 45) >= 22
    assert len(boxes) <= 26


def test_the_scale_of_the_picture_does_not_matter() -> None:
    spots = [(130 + 210 * row, 130 + 210 * column) for row in range(3) for column in range(3)]
    field = draw_field(680, 680, [(KINDS[i % len(KINDS)], *spot) for i, spot in enumerate(spots)], seed=4)
    small = find_cells(field)
    large = find_cells(field.resize((2040, 2040)))
    assert len(small) == pytest.approx(len(large), abs=1)
    assert large[0].side / small[0].side == pytest.approx(3, rel=0.15)


def test_of_very_many_cells_those_counted_are_spread_over_the_field() -> None:
    boxes = [Box(0, top, 10) for top in range(1000)]
    chosen = evenly(boxes)
    assert len(set(chosen)) == len(chosen) == MAX_CELLS
    assert np.mean([box.top for box in chosen]) == pytest.approx(499.5, abs=1)
    assert evenly(boxes[:7]) == boxes[:7] and evenly([]) == []


def slide(height: int, width: int, centres: list[tuple[int, int]]) -> Image.Image:
    """Blasts at (row, column) on an empty background."""
    patch = draw_field(300, 300, [("BLA", 150, 150)], seed=7)
    canvas = Image.new("RGB", (width, height), background_of(patch))
    for row, column in centres:
        canvas.paste(patch, (column - 150, row - 150))
    return canvas


def test_cells_on_the_borders_of_a_slides_tiles_are_found_once_each() -> None:
    edge = round(TILE / SLIDE_SCALE)
    shifts = [*range(-60, 61, 8)]  # a nucleus is some 90 pixels wide: on the border, beside it, half across
    along = [(edge + shift, 400 + 350 * i) for i, shift in enumerate(shifts[:8])]
    across = [(400 + 350 * i, edge + shift) for i, shift in enumerate(shifts[8:])]
    centres = [*along, *across, (edge, edge), (edge + 5, 2 * edge - 3)]
    boxes = find_cells(slide(4100, 8192, centres))
    assert len(boxes) == matched(boxes, centres, 12) == len(centres)


def test_memory_for_a_slide_is_that_of_a_tile_and_a_ninth_of_its_pixels() -> None:
    picture = slide(8192, 8192, [(500 + 700 * i, 500 + 650 * i) for i in range(11)])
    tracemalloc.start()
    try:
        assert len(find_cells(picture)) == 11
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < picture.width * picture.height * 4, "one float per pixel of the whole picture would be more"


@pytest.mark.parametrize("colour", [(244, 240, 238), (90, 40, 140), (0, 0, 0)])
def test_nothing_is_found_in_a_uniform_picture(colour: tuple) -> None:
    noise = np.random.default_rng(0).normal(0, 2, (400, 500, 3)) + colour
    assert find_cells(Image.fromarray(np.uint8(np.clip(noise, 0, 255)))) == []


def test_red_cells_alone_are_not_nucleated() -> None:
    assert len(find_cells(draw_field(600, 800, [], seed=5))) <= 1


def test_a_crop_over_the_edge_is_filled_with_background() -> None:
    field = draw_field(300, 300, [("BLA", 20, 20)], seed=6)
    crop = cut(field, Box(-100, -100, 240))
    assert crop.size == (CROP_SIDE, CROP_SIDE)
    assert np.asarray(crop)[:40, :40].min() > 120


def test_all_cells_of_the_example_are_found_whatever_the_light_of_some_crops(tmp_path: Path) -> None:
    samples = []
    for seed in range(4):
        for label in KINDS:
            light = ImageEnhance.Brightness(draw_cell(label, seed)).enhance(1 if seed else 0.6)
            samples.append(Sample(encoded(light, "PNG"), label, ""))
    classifier = SimpleNamespace(label_names=KINDS, label_descriptions={})
    path = example_field(Resources(classifier, None, None, [], held_out=samples), tmp_path)
    boxes = find_cells(Image.open(path).convert("RGB"))
    middles = [(150 + 300 * row, 150 + 300 * column) for row in range(3) for column in range(4)]
    assert matched(boxes, middles, 60) == len(boxes) == 12


@pytest.mark.real_data
def test_most_real_nuclei_are_found_in_a_mosaic_of_crops(real_images: Path) -> None:
    chosen = random.Random(1)
    classes = [folder for folder in sorted(real_images.iterdir()) if folder.is_dir() and folder.name != "NIF"]
    crops = [Image.open(chosen.choice(sorted(folder.glob("*.jpg")))).convert("RGB") for folder in classes * 5]
    found = 0
    for crop in crops:  # each crop is a small field of its own light and stain
        field = Image.new("RGB", (750, 750), tuple(int(v) for v in np.percentile(crop, 90, axis=(0, 1))))
        field.paste(crop, (250, 250))
        found += matched(find_cells(field, side=250), [(375, 375)], 50)
    assert found / len(crops) >= 0.8
