"""The stress tests use the small model and dataset of the Space's tests."""

from tests.space.conftest import small_dataset

__all__ = ["small_dataset"]
