"""A small model that trains in seconds: features of a frozen backbone, a logistic regression on top.

In: crops, and a backbone that has never seen them: a folder with `config.json` and `model.safetensors`, such as
`python -m runs.imagenet_weights efficientnet_lite0 OUT` writes. Out: features [N, D] and out-of-fold probabilities. Good enough
to compare ways of splitting the data and to rank labels; the released model is not made this way.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from hub_model.inference.errors import RepoError, first_line
from hub_model.inference.model_repo import read_json
from hub_model.studies.crops import Crops, add_data, batched, read_crops

SIZE = 192  # pixels a side
REACH = 0.5  # half-widths: how far the weight of a position falls off from the middle, where the cell is
STRENGTH = 0.001  # inverse regularisation of the logistic regression; thousands of features, few images
STAGES = 4  # deepest stages of the backbone that are pooled
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which the backbone was trained with


def add_data_and_backbone(parser: argparse.ArgumentParser) -> None:
    """Add the arguments `dataset`, `--revision` and `--backbone`."""
    add_data(parser)
    parser.add_argument(
        "--backbone",
        type=Path,
        required=True,
        help="model folder that has not seen these images (`python -m runs.imagenet_weights efficientnet_lite0 OUT` makes one)",
    )


def read_features(arguments: argparse.Namespace) -> tuple[Crops, np.ndarray]:
    """Crops of train and validation, and their features [N, D] by the frozen backbone."""
    crops = read_crops(arguments.dataset, "train", "validation", revision=arguments.revision)
    return crops, extract(load_backbone(arguments.backbone), crops, total=len(crops))


def load_backbone(folder: Path) -> torch.nn.Module:
    """The architecture and weights of a model folder, in evaluation mode. Raises RepoError."""
    architecture = read_json(folder / "config.json").get("architecture")
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise RepoError(f"{folder / 'config.json'}: timm has no architecture {architecture!r}")
    try:
        weights = load_file(folder / "model.safetensors")
        model = timm.create_model(architecture, num_classes=0)
        model.load_state_dict({key: weights[key].float() for key in model.state_dict()})
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        reason = first_line(error)
        raise RepoError(f"{folder}/model.safetensors does not fit {architecture}: {reason}") from None
    if not hasattr(model, "forward_intermediates"):
        raise RepoError(f"{architecture} has no intermediate features in timm")
    return model.eval()


def pool(features: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] to [N, 3 C]: mean and spread weighted to the middle, and the plain mean."""
    height, width = features.shape[-2:]
    rows, columns = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None]
    weights = torch.exp(-(rows**2 + columns**2) / REACH**2)
    weights = weights / weights.sum()
    middle = (features * weights).sum(dim=(2, 3))
    spread = ((features - middle[..., None, None]) ** 2 * weights).sum(dim=(2, 3)).sqrt()
    return torch.cat([middle, spread, features.mean(dim=(2, 3))], dim=1)


def extract(
    backbone: torch.nn.Module, images: Iterable[np.ndarray], size: int = SIZE, total: int | None = None
) -> np.ndarray:
    """Features, float32 [N, D], of uint8 RGB crops [H, W, 3]: the deepest stages of the backbone, pooled."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    pooled = []
    with torch.inference_mode(), tqdm(total=total, desc="features", disable=None) as progress:
        for batch in batched(images):
            pixels = [torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() for image in batch]
            pixels = [F.interpolate(p, (size, size), mode="bicubic", antialias=True) for p in pixels]
            inputs = (torch.cat(pixels).clamp(0, 255) / 255 - mean) / std
            stages = backbone.forward_intermediates(inputs, indices=STAGES, intermediates_only=True)
            pooled.append(torch.cat([pool(stage) for stage in stages], dim=1))
            progress.update(len(batch))
    return torch.cat(pooled).numpy()


def out_of_fold(
    features: np.ndarray, labels: np.ndarray, folds: Iterable[tuple[np.ndarray, np.ndarray]], classes: int
) -> np.ndarray:
    """Probabilities [N, C] of every image from a multinomial logistic regression that did not see its fold.

    folds: pairs of index arrays (train, held out) that hold every image out once. A class that is missing from a fold's
    training images gets probability 0 there.
    """
    probabilities = np.zeros((len(labels), classes))
    for train, held in folds:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=300))
        model.fit(features[train], labels[train])
        probabilities[np.ix_(held, model.classes_)] = model.predict_proba(features[held])
    return probabilities
