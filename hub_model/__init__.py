"""From a run folder to a model repo, and the one home of inference: `from hub_model import Classifier`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hub_model.inference.classifier import Classifier, Predictions

__all__ = ["Classifier", "Predictions"]


def __getattr__(name: str):
    """Import the public classes on first use, so that `import hub_model` stays light."""
    if name in __all__:
        from hub_model.inference import classifier

        return getattr(classifier, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
