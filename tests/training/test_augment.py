"""Random views of cells."""

import pytest
import torch

from training.augment import BORDER, CellAugmentation, reflect_into_border

DISABLED = {"scale": (1.0, 1.0), "shift": 0.0, "stain": 0.0, "light": 0.0, "isolate": 0.0}
DISABLED |= {"sharpness": 0.0, "resample": 0.0, "grain": 0.0, "gamma": 0.0}


@pytest.fixture
def crops() -> torch.Tensor:
    """Four images of a dark disc on a bright background: [4, 3, 80, 80] in 0..1."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 80), torch.linspace(-1, 1, 80), indexing="ij")
    field = torch.where(x**2 + y**2 < 0.25, 0.3, 0.9)
    return field.expand(4, 3, 80, 80).clone()


def test_a_view_has_the_requested_size_and_stays_in_range(crops):
    for seed in range(40):  # whether a batch is blurred is random
        torch.manual_seed(seed)
        view = CellAugmentation()(crops, 64)
        assert view.shape == (4, 3, 64, 64)
        assert view.min() >= 0 and view.max() <= 1


def test_views_depend_on_the_seed_only(crops):
    views = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        views.append(CellAugmentation()(crops, 64))
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_with_everything_disabled_only_rotation_and_mirroring_remain(crops):
    view = CellAugmentation(**DISABLED)(crops, 80)
    assert (view - crops).abs().mean() < 0.01  # a disc looks the same from every side


def test_scaling_down_shows_the_cell_once(crops):
    view = CellAugmentation(**DISABLED | {"scale": (0.5, 0.5)})(crops, 80)
    dark = (view < 0.6).float().mean(dim=(1, 2, 3))
    assert torch.allclose(dark, torch.full((4,), torch.pi * 0.25 / 4 / 4), atol=0.01)


def test_pixels_beyond_an_edge_are_reflected_from_the_border():
    grid = torch.linspace(-3, 3, 601)
    reflected = reflect_into_border(grid)
    outside = grid.abs() > 1
    assert torch.equal(reflected[~outside], grid[~outside])
    assert reflected[outside].abs().min() >= 1 - BORDER - 1e-6
    assert reflected.abs().max() <= 1


def test_more_stain_darkens_the_cell_and_not_the_background(crops):
    torch.manual_seed(0)
    view = CellAugmentation(**DISABLED | {"stain": 0.3})(crops, 80)
    centre, corner = view[:, :, 36:44, 36:44].mean(dim=(1, 2, 3)), view[:, :, :4, :4].mean(dim=(1, 2, 3))
    assert centre.std() > 3 * corner.std()


def test_isolation_removes_neighbours_and_does_not_change_the_cell(crops):
    crops[:, :, :10] = 0.3  # a dark neighbour along the upper edge
    view = CellAugmentation(**DISABLED | {"isolate": 1.0}).remove_surroundings(crops)
    assert torch.allclose(view[:, :, :4], torch.tensor(0.9), atol=0.05)
    assert torch.equal(view[:, :, 25:55, 25:55], crops[:, :, 25:55, 25:55])


def detail(images: torch.Tensor) -> torch.Tensor:
    """The power of the high frequencies of each image."""
    return (images - torch.nn.functional.avg_pool2d(images, 3, 1, 1)).square().mean(dim=(1, 2, 3))


def test_images_are_blurred_and_sharpened_within_range(crops):
    torch.manual_seed(0)
    many = crops.repeat(16, 1, 3, 3)  # at 240 pixels the radius is 0.6 to 2.9 of them
    view = CellAugmentation(**DISABLED | {"sharpness": 1.0}).sharpen(many)
    change = detail(view) / detail(many)
    assert (change < 0.9).sum() > 5 and (change > 1.1).sum() > 5
    assert view.min() >= 0 and view.max() <= 1


def test_every_other_image_of_a_batch_is_downsampled(crops):
    view = CellAugmentation(**DISABLED | {"resample": 1.0}).downsample(crops)
    assert torch.equal(view[1::2], crops[1::2])
    assert (detail(view[::2]) < detail(crops[::2])).all()


def test_noise_is_added_to_a_fraction_of_images_and_gamma_is_monotonic(crops):
    many = crops.repeat(50, 1, 1, 1)
    noisy = CellAugmentation(**DISABLED | {"grain": 0.4}).add_noise_and_gamma(many)
    changed = (noisy != many).flatten(1).any(dim=1).float().mean()
    assert 0.25 < changed < 0.55
    darker = CellAugmentation(**DISABLED | {"gamma": 0.25}).add_noise_and_gamma(crops)
    assert (darker[:, :, 40, 40] < darker[:, :, 2, 2]).all() and not torch.equal(darker, crops)


def test_disabled_augmentations_do_not_change_the_images(crops):
    disabled = CellAugmentation(**DISABLED)
    for step in ("sharpen", "downsample", "add_noise_and_gamma", "remove_surroundings"):
        assert torch.equal(getattr(disabled, step)(crops), crops)
