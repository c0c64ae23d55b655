"""What a random view of a cell may and may not do."""

import pytest
import torch

from training.augment import BORDER, CellAugmentation, reflect_into_border

STILL = {"scale": (1.0, 1.0), "shift": 0.0, "stain": 0.0, "light": 0.0, "isolate": 0.0}
STILL |= {"sharpness": 0.0, "resample": 0.0, "grain": 0.0, "gamma": 0.0}


@pytest.fixture
def crops() -> torch.Tensor:
    """Four crops of a bright field with a dark disc in the middle: [4, 3, 80, 80] in 0..1."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 80), torch.linspace(-1, 1, 80), indexing="ij")
    field = torch.where(x**2 + y**2 < 0.25, 0.3, 0.9)
    return field.expand(4, 3, 80, 80).clone()


def test_a_view_has_the_size_asked_for_and_stays_in_range(crops):
    for seed in range(40):  # whether a batch is blurred is drawn
        torch.manual_seed(seed)
        view = CellAugmentation()(crops, 64)
        assert view.shape == (4, 3, 64, 64)
        assert view.min() >= 0 and view.max() <= 1


def test_the_same_seed_gives_the_same_view_and_another_seed_another(crops):
    views = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        views.append(CellAugmentation()(crops, 64))
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_with_everything_at_rest_only_rotation_and_mirroring_remain(crops):
    view = CellAugmentation(**STILL)(crops, 80)
    assert (view - crops).abs().mean() < 0.01  # a disc looks the same from every side


def test_shrinking_shows_the_cell_once(crops):
    view = CellAugmentation(**STILL | {"scale": (0.5, 0.5)})(crops, 80)
    dark = (view < 0.6).float().mean(dim=(1, 2, 3))
    assert torch.allclose(dark, torch.full((4,), torch.pi * 0.25 / 4 / 4), atol=0.01)


def test_what_lies_beyond_an_edge_is_taken_from_the_strip_along_it():
    grid = torch.linspace(-3, 3, 601)
    folded = reflect_into_border(grid)
    outside = grid.abs() > 1
    assert torch.equal(folded[~outside], grid[~outside])
    assert folded[outside].abs().min() >= 1 - BORDER - 1e-6
    assert folded.abs().max() <= 1


def test_more_dye_darkens_and_background_stays_bright(crops):
    torch.manual_seed(0)
    view = CellAugmentation(**STILL | {"stain": 0.3})(crops, 80)
    centre, corner = view[:, :, 36:44, 36:44].mean(dim=(1, 2, 3)), view[:, :, :4, :4].mean(dim=(1, 2, 3))
    assert centre.std() > 3 * corner.std()


def test_an_isolated_cell_loses_its_neighbours_and_keeps_itself(crops):
    crops[:, :, :10] = 0.3  # a dark neighbour along the upper edge
    view = CellAugmentation(**STILL | {"isolate": 1.0}).remove_surroundings(crops)
    assert torch.allclose(view[:, :, :4], torch.tensor(0.9), atol=0.05)
    assert torch.equal(view[:, :, 25:55, 25:55], crops[:, :, 25:55, 25:55])


def detail(images: torch.Tensor) -> torch.Tensor:
    """The power of what a small blur takes away, of each image."""
    return (images - torch.nn.functional.avg_pool2d(images, 3, 1, 1)).square().mean(dim=(1, 2, 3))


def test_sharpness_goes_both_ways_and_never_out_of_range(crops):
    torch.manual_seed(0)
    many = crops.repeat(16, 1, 3, 3)  # at 240 pixels the radius is 0.6 to 2.9 of them
    view = CellAugmentation(**STILL | {"sharpness": 1.0}).sharpen(many)
    change = detail(view) / detail(many)
    assert (change < 0.9).sum() > 5 and (change > 1.1).sum() > 5
    assert view.min() >= 0 and view.max() <= 1


def test_resampling_takes_detail_from_every_other_image_of_a_batch(crops):
    view = CellAugmentation(**STILL | {"resample": 1.0}).downsample(crops)
    assert torch.equal(view[1::2], crops[1::2])
    assert (detail(view[::2]) < detail(crops[::2])).all()


def test_noise_is_added_to_the_fraction_asked_for_and_gamma_keeps_the_order_of_brightness(crops):
    many = crops.repeat(50, 1, 1, 1)
    noisy = CellAugmentation(**STILL | {"grain": 0.4}).add_noise_and_gamma(many)
    changed = (noisy != many).flatten(1).any(dim=1).float().mean()
    assert 0.25 < changed < 0.55
    darker = CellAugmentation(**STILL | {"gamma": 0.25}).add_noise_and_gamma(crops)
    assert (darker[:, :, 40, 40] < darker[:, :, 2, 2]).all() and not torch.equal(darker, crops)


def test_what_is_switched_off_changes_nothing(crops):
    still = CellAugmentation(**STILL)
    for step in (still.sharpen, still.downsample, still.add_noise_and_gamma, still.remove_surroundings):
        assert torch.equal(step(crops), crops)
