"""Alterations of a crop do what their names say; the study measures what they cost."""

import numpy as np
import pytest

from dataset_script.synthetic_cells import draw_cell
from hub_model.studies.crops import batched
from hub_model.studies.perturbations import (
    PERTURBATIONS,
    background_colour,
    brightness,
    colour_statistics,
    magnify,
    other_laboratory,
    reinhard,
    stain,
)
from hub_model.studies.robustness import measure_robustness, recalls, score, section

NAMES = ("dark", "light")


class Brightness:
    """A classifier of two classes by mean brightness, with the interface of `hub_model.inference.classifier.Classifier`."""

    label_names = NAMES

    def preprocess(self, images):
        return np.stack([np.asarray(i, np.float32).transpose(2, 0, 1) / 255 for i in images])

    def network(self, pixels):
        mean = pixels.mean(axis=(1, 2, 3))
        return np.stack([0.75 - mean, mean - 0.75], axis=1), pixels.mean(axis=(2, 3))


class FewCrops:
    """Crops in memory: pale fields with a dark spot (class 0) or without one (class 1)."""

    def __init__(self, images: int = 12):
        self.labels = np.arange(images) % 2
        self.images = [np.full((64, 64, 3), 235, dtype=np.uint8) for _ in range(images)]
        for image, label in zip(self.images, self.labels, strict=True):
            if label == 0:
                image[8:56, 8:56] = 60

    def __iter__(self):
        return iter(self.images)


@pytest.fixture(scope="module")
def cell() -> np.ndarray:
    return np.asarray(draw_cell("LYT", 3))


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_every_condition_keeps_the_frame_and_repeats(cell, name):
    first, again = (PERTURBATIONS[name](cell, np.random.default_rng(4)) for _ in range(2))
    assert first.shape == cell.shape
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert np.array_equal(first, cell) == (name == "as photographed")


def test_stain_of_one_changes_nothing_and_more_blue_dye_is_darker(cell):
    assert np.abs(stain(cell).astype(int) - cell).max() <= 1
    assert stain(cell, haematoxylin=1.4).mean() < cell.mean() < stain(cell, haematoxylin=0.7).mean()


def test_stain_leaves_the_empty_field(cell):
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


def test_reinhard_gives_the_wanted_statistics(cell):
    target = colour_statistics(np.asarray(draw_cell("MON", 5)))
    np.testing.assert_allclose(colour_statistics(reinhard(cell, target))[0], target[0], atol=4)


def test_recall_skips_classes_without_images():
    found = recalls(np.array([0, 1, 0]), np.array([0, 0, 0]), 3)
    assert found[0] == pytest.approx(2 / 3)
    assert np.isnan(found[1:]).all()
    figures = score(np.eye(3)[[0, 1, 0]], np.array([0, 0, 0]), ("A", "B", "C"))
    assert figures["balanced_accuracy"] == pytest.approx(2 / 3)
    assert figures["recall"] == {"A": pytest.approx(2 / 3)}


def test_the_table_shows_the_fall():
    conditions = {
        "as photographed": PERTURBATIONS["as photographed"],
        "dim": lambda image, rng: brightness(image, 0.6),
    }
    rows = measure_robustness(Brightness(), FewCrops(), conditions)
    assert [row["balanced_accuracy"] for row in rows] == [1.0, 0.5]
    assert rows[1]["recall"] == {"dark": 1.0, "light": 0.0}
    assert "| dim | 0.500 [0.500, 0.500] |" in section(rows)


def test_batches_hold_everything_once():
    assert [len(b) for b in batched(iter(range(7)), 3)] == [3, 3, 1]
