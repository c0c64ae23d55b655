"""Preprocessed pixels are bit-identical to those of timm's evaluation transform."""

import itertools

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform, resolve_data_config

from hub_model.inference.errors import RepoError
from hub_model.inference.preprocessing import Preprocessing

MODES = ["center", "squash", "border"]
SIZES = [(3, 96, 96), (3, 128, 96), (3, 64, 131)]
PICTURES = [
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    for width, height in [(16, 17), (17, 640), (250, 250), (301, 173), (96, 97), (33, 31)]
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_bit_identical_to_timms(size: tuple, mode: str) -> None:
    for crop_pct, interpolation in itertools.product(
        [1.0, 0.95, 0.875, 1.2], ["bicubic", "bilinear", "nearest", "lanczos"]
    ):
        config = {"input_size": size, "crop_pct": crop_pct, "crop_mode": mode, "interpolation": interpolation}
        config |= {"mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1)}
        transform = create_transform(**resolve_data_config(pretrained_cfg=config), is_training=False)
        expected = np.stack([transform(picture).numpy() for picture in PICTURES])
        assert np.array_equal(Preprocessing(config)(PICTURES), expected), config


def test_fields_missing_from_a_config_have_timms_defaults() -> None:
    assert Preprocessing({}).config == resolve_data_config(pretrained_cfg={"input_size": None})


@pytest.mark.parametrize(
    "config",
    [{"interpolation": "random walk"}, {"mean": (1, 2)}, {"input_size": (3, 96)}, {"crop_pct": "half"}],
)
def test_a_config_that_timm_would_not_accept_is_refused_in_one_sentence(config: dict) -> None:
    with pytest.raises(RepoError, match="pretrained_cfg cannot be used"):
        Preprocessing(config)
