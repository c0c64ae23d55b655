"""Alterations of a crop do what their names say; cures undo what they claim to."""

import numpy as np
import pytest
import torch

from dataset_script.synthetic_cells import draw_cell
from hub_model.inference.errors import RepoError
from hub_model.perturbations import (
    PERTURBATIONS,
    background_colour,
    brightness,
    colour_statistics,
    magnify,
    other_laboratory,
    reinhard,
    stain,
    white_balance,
)
from hub_model.robustness import (
    Reference,
    adapt_batch_norm,
    batched_list,
    cures,
    four_flips,
    measure_robustness,
    recalls,
    score,
    table,
)

NAMES = ("dark", "light")


class Brightness:
    """A classifier of two classes by mean brightness, with the interface of `hub_model.inference.classifier.Classifier`."""

    label_names = NAMES

    def preprocess(self, images):
        return np.stack([np.asarray(i, np.float32).transpose(2, 0, 1) / 255 for i in images])

    def forward(self, pixels):
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


def test_white_balance_undoes_a_colour_cast(cell):
    reference = Reference.of([cell])
    cast = white_balance(cell, [0.9, 0.8, 0.7])
    seen = []

    class Watch(Brightness):
        def preprocess(self, images):
            seen.extend(images)
            return super().preprocess(images)

    cures(reference)["white balance"](Watch(), [cast])
    assert np.abs(background_colour(seen[0]) - background_colour(cell)).max() <= 3


def test_four_flips_give_mirror_images_the_same_answer():
    class Corner(Brightness):
        def forward(self, pixels):
            corner = pixels[:, 0, :20, :20].mean(axis=(1, 2))
            return np.stack([corner, -corner], axis=1), None

    image = np.asarray(draw_cell("NGS", 1))
    once, mirrored = (four_flips(Corner(), [i]) for i in (image, image[:, ::-1].copy()))
    np.testing.assert_allclose(once, mirrored, rtol=1e-6)
    assert not np.allclose(Corner().forward(Corner().preprocess([image]))[0], once)


def test_adapted_batch_norm_moves_half_way_and_leaves_the_model():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3)).eval()
    batch = np.random.default_rng(0).normal(4, 2, (512, 3, 8, 8)).astype(np.float32)
    adapted = adapt_batch_norm(model, [batch[:256], batch[256:]], weight=0.5)
    np.testing.assert_allclose(adapted[0].running_mean, 2, atol=0.1)
    np.testing.assert_allclose(adapted[0].running_var, 2.5, atol=0.1)
    assert model[0].running_mean.abs().max() == 0
    with pytest.raises(RepoError, match="no batch norm"):
        adapt_batch_norm(torch.nn.Linear(2, 2), [])


def test_recall_skips_classes_without_images():
    found = recalls(np.array([0, 1, 0]), np.array([0, 0, 0]), 3)
    assert found[0] == pytest.approx(2 / 3)
    assert np.isnan(found[1:]).all()
    figures = score(np.eye(3)[[0, 1, 0]], np.array([0, 0, 0]), ("A", "B", "C"))
    assert figures["balanced_accuracy"] == pytest.approx(2 / 3)
    assert figures["recall"] == {"A": pytest.approx(2 / 3)}


def test_the_table_shows_the_fall_and_the_cure():
    crops = FewCrops()
    reference = Reference.of(crops)
    conditions = {
        "as photographed": PERTURBATIONS["as photographed"],
        "dim": lambda image, rng: brightness(image, 0.6),
    }
    rows = measure_robustness(Brightness(), crops, reference, conditions, ["white balance"])
    before, dim = ({k: v["balanced_accuracy"] for k, v in row["cures"].items()} for row in rows)
    assert before == {"none": 1.0, "white balance": 1.0}
    assert dim == {"none": 0.5, "white balance": 1.0}
    assert table(rows).splitlines()[-1] == "| dim | 0.500 | 1.000 |"


def test_an_unknown_cure_is_named():
    with pytest.raises(RepoError, match="unknown cure 'prayer'"):
        measure_robustness(Brightness(), FewCrops(), Reference.of(FewCrops()), chosen=["prayer"])


def test_batches_hold_everything_once():
    assert [len(b) for b in batched_list(iter(range(7)), 3)] == [3, 3, 1]
