"""A model that costs nothing, images in six pieces, and their predictions: for the tests of bulk scoring."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub_model.scoring import score, write_images
from tests.hub_model.small_classifier import write_model


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def many(tmp_path_factory) -> Path:
    """1,500 images, six pieces."""
    return write_images(tmp_path_factory.mktemp("many"), 1500)


@pytest.fixture(scope="session")
def of_many(many, model, tmp_path_factory) -> Path:
    """Their predictions, from an undisturbed run of one process."""
    out = tmp_path_factory.mktemp("of_many") / "predictions.parquet"
    assert score(many, model, out) == 0
    return out
