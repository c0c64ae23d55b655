"""A small model that trains in seconds: features of a frozen backbone, a logistic regression on top.

In: crops, and a backbone that has never seen them: a folder with `config.json` and `model.safetensors`, such as
`python -m runs.imagenet_lite 0 OUT` writes. Out: features [N, D] and out-of-fold probabilities. Good enough to compare
ways of splitting the data and to rank labels; the released model is not made this way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from hub_model.inference.errors import RepoError
from hub_model.inference.model_repo import read_json
from hub_model.robustness import batched_list

SIZE = 192  # pixels a side
REACH = 0.5  # half-widths: how far the weight of a place falls off from the middle, where the cell is
STRENGTH = 0.001  # inverse regularisation of the logistic regression; thousands of features, few images
STAGES = 4  # deepest stages of the backbone that are pooled
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which the backbone was trained with


def load_backbone(folder: Path) -> torch.nn.Module:
    """The architecture and weights of a model folder, in evaluation mode. Raises RepoError."""
    architecture = read_json(folder / "config.json").get("architecture")
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise RepoError(f"{folder / 'config.json'}: timm has no architecture {architecture!r}")
    try:
        weights = load_file(folder / "model.safetensors")
        weights = {key: value.float() for key, value in weights.items()}
        model = timm.create_model(architecture, num_classes=0)
        body = model.state_dict()
        model.load_state_dict({key: weights[key] for key in body})
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RepoError(f"{folder}/model.safetensors does not fit {architecture}: {reason}") from None
    if not hasattr(model, "forward_intermediates"):
        raise RepoError(f"{architecture} does not give out its intermediate features")
    return model.eval()


def _centre_weights(height: int, width: int) -> torch.Tensor:
    """Weights [H, W] that sum to 1 and fall off from the middle."""
    rows, columns = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None]
    weights = torch.exp(-(rows**2 + columns**2) / REACH**2)
    return weights / weights.sum()


def pool(features: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] to [N, 3 C]: mean and spread weighted to the middle, and the plain mean."""
    weights = _centre_weights(*features.shape[-2:])
    middle = (features * weights).sum(dim=(2, 3))
    spread = ((features - middle[..., None, None]) ** 2 * weights).sum(dim=(2, 3)).sqrt()
    return torch.cat([middle, spread, features.mean(dim=(2, 3))], dim=1)


def extract(
    backbone: torch.nn.Module, images: Iterable[np.ndarray], size: int = SIZE, total: int | None = None
) -> np.ndarray:
    """Features, float32 [N, D], of uint8 RGB crops [H, W, 3]: the deepest stages of the backbone, pooled."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    pooled = []
    with (
        torch.inference_mode(),
        tqdm(total=total, desc="features", unit="crop", disable=None) as progress,
    ):
        for batch in batched_list(images, 32):
            pixels = [torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() for image in batch]
            pixels = [F.interpolate(p, (size, size), mode="bicubic", antialias=True) for p in pixels]
            inputs = (torch.cat(pixels).clamp(0, 255) / 255 - mean) / std
            stages = backbone.forward_intermediates(inputs, indices=STAGES, intermediates_only=True)
            pooled.append(torch.cat([pool(stage) for stage in stages], dim=1))
            progress.update(len(batch))
    return torch.cat(pooled).numpy()


def small_model(strength: float = STRENGTH) -> Pipeline:
    """Standardised features, then multinomial logistic regression."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))


def out_of_fold(
    features: np.ndarray,
    labels: np.ndarray,
    folds: Iterable[tuple[np.ndarray, np.ndarray]],
    classes: int,
    strength: float = STRENGTH,
) -> np.ndarray:
    """Probabilities [N, C] of every image from a small model that did not train on its fold.

    folds: pairs of index arrays (train, held out) that hold every image out once. A class that is missing from a fold's
    training images gets probability 0 there.
    """
    probabilities = np.zeros((len(labels), classes))
    for train, held in folds:
        model = small_model(strength).fit(features[train], labels[train])
        probabilities[np.ix_(held, model.classes_)] = model.predict_proba(features[held])
    return probabilities


def balanced_accuracies(
    predicted: np.ndarray, labels: np.ndarray, folds: Sequence[np.ndarray]
) -> list[float]:
    """Balanced accuracy on each held-out fold, over the classes that it has."""
    return [
        float(np.mean([(predicted[f][labels[f] == c] == c).mean() for c in np.unique(labels[f])]))
        for f in folds
    ]
