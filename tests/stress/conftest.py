"""The stress tests use the small model and dataset of the Space's tests."""

from tests.space.conftest import small_dataset, small_model

__all__ = ["small_dataset", "small_model"]
