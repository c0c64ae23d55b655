"""Perturbations of a crop do what their names say."""

import numpy as np
import pytest

from dataset_script.synthetic_cells import draw_cell
from hub_model.studies.perturbations import (
    PERTURBATIONS,
    background_colour,
    colour_statistics,
    magnify,
    other_laboratory,
    reinhard,
    stain,
)


@pytest.fixture(scope="module")
def cell() -> np.ndarray:
    return np.asarray(draw_cell("LYT", 3))


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_every_perturbation_keeps_the_shape_and_is_seeded(cell, name):
    first, again = (PERTURBATIONS[name](cell, np.random.default_rng(4)) for _ in range(2))
    assert first.shape == cell.shape
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert np.array_equal(first, cell) == (name == "as photographed")


def test_stain_of_one_changes_nothing_and_more_blue_dye_is_darker(cell):
    assert np.abs(stain(cell).astype(int) - cell).max() <= 1
    assert stain(cell, haematoxylin=1.4).mean() < cell.mean() < stain(cell, haematoxylin=0.7).mean()


def test_stain_keeps_the_background(cell):
    before, after = background_colour(cell), background_colour(stain(cell, 1.4, 0.6))
    assert np.abs(after - before).max() < 6


def test_magnify_changes_the_size_of_the_cell(cell):
    def nucleus(image):
        return (image[..., 1] < 0.5 * background_colour(image)[1])[75:175, 75:175].sum()

    assert nucleus(magnify(cell, 0.7)) == pytest.approx(0.49 * nucleus(cell), rel=0.2)
    large = magnify(cell, 1.2)
    assert (large[..., 1] < 0.5 * background_colour(cell)[1]).sum() > nucleus(cell)


def test_another_laboratory_has_smaller_cells_on_a_warmer_field(cell):
    for seed in range(5):
        other = other_laboratory(cell, np.random.default_rng(seed))
        red, _, blue = background_colour(other)
        assert red > blue + 5
        assert (other[..., 1] < 130).sum() < 0.9 * (cell[..., 1] < 130).sum()


def test_reinhard_matches_the_target_statistics(cell):
    target = colour_statistics(np.asarray(draw_cell("MON", 5)))
    np.testing.assert_allclose(colour_statistics(reinhard(cell, target))[0], target[0], atol=4)
