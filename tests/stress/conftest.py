"""The stress tests use the small model, the dataset and the running Space of the Space's tests."""

from tests.space.conftest import small_dataset, space

__all__ = ["small_dataset", "space"]
