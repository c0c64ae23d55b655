"""What other stains, cameras and microscopes do to the model, and what a cure at prediction time gives back.

In: a model and crops of a dataset repo. Out: `robustness` of `metrics.json`: a row for each condition of
`perturbations` with balanced accuracy, without a cure and with each of these, none of which sees a label:

    white balance            each crop's background is brought to the usual background colour
    Reinhard                 each crop gets the usual mean and spread in L*a*b* (Reinhard et al. 2001)
    four flips               logits averaged over the crop, its two mirror images and its half turn
    three magnifications     logits averaged over × 1, × 1.2 and × 1.45
    adapted batch norm       batch-norm statistics moved half way to those of the crops at hand (Schneider et al. 2020)

"Usual" is the mean over crops of `validation`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from hub_model.crops import Crops, altered
from hub_model.evaluation import SEED, bootstrap
from hub_model.inference.classifier import BATCH_SIZE, Classifier
from hub_model.inference.errors import RepoError
from hub_model.perturbations import (
    PERTURBATIONS,
    Perturbation,
    background_colour,
    colour_statistics,
    magnify,
    reinhard,
    white_balance,
)

RESAMPLES = 200
GAINS = (0.5, 2.0)  # white balance moves no channel by more than this
ZOOMS = (1.0, 1.2, 1.45)
UNCURED = "none"
BATCH_NORMS = (torch.nn.BatchNorm2d, torch.nn.BatchNorm1d)
Images = list[np.ndarray]
Cure = Callable[[Classifier, Images], np.ndarray]


@dataclass(frozen=True)
class Reference:
    """How crops usually look: background [3] in 0…255; mean and spread [2, 3] in L*a*b*."""

    background: np.ndarray
    colours: np.ndarray

    @classmethod
    def of(cls, images: Iterable[np.ndarray]) -> Reference:
        """Means over crops, uint8 RGB [H, W, 3] each."""
        seen = [(background_colour(image), colour_statistics(image)) for image in images]
        return cls(*(np.mean(values, axis=0) for values in zip(*seen, strict=True)))


def pixel_batches(classifier: Classifier, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Normalised network inputs, float32 [≤ 32, 3, H, W]."""
    for batch in batched_list(images, BATCH_SIZE):
        yield classifier.preprocess(batch)


def batched_list(images: Iterable[np.ndarray], size: int) -> Iterator[Images]:
    """Lists of at most `size`."""
    batch: Images = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def uncured(classifier: Classifier, images: Images) -> np.ndarray:
    """Logits [N, C] as the model gives them."""
    return np.concatenate([classifier.forward(pixels)[0] for pixels in pixel_batches(classifier, images)])


def four_flips(classifier: Classifier, images: Images) -> np.ndarray:
    """Mean logits over both mirror images, the half turn and the crop itself."""
    views = ((), (-1,), (-2,), (-2, -1))
    return np.concatenate(
        [
            np.mean([classifier.forward(np.flip(pixels, axes).copy())[0] for axes in views], axis=0)
            for pixels in pixel_batches(classifier, images)
        ]
    )


def three_magnifications(classifier: Classifier, images: Images) -> np.ndarray:
    """Mean logits over the crop as it is and magnified."""
    views = [uncured(classifier, [magnify(image, zoom) for image in images]) for zoom in ZOOMS]
    return np.mean(views, axis=0)


def adapt_batch_norm(
    model: torch.nn.Module, batches: Iterable[np.ndarray], weight: float = 0.5
) -> torch.nn.Module:
    """A copy of the model whose batch-norm statistics are mixed with those of the given inputs.

    weight: that of the new statistics (Schneider et al. 2020, eq. 2). Raises RepoError for a model without batch
    norm.
    """
    adapted = copy.deepcopy(model).eval()
    norms = [module for module in adapted.modules() if isinstance(module, BATCH_NORMS)]
    if not norms:
        raise RepoError("the model has no batch norm to adapt")
    before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    with torch.inference_mode():
        for pixels in batches:
            if len(pixels) > 1:
                adapted(torch.from_numpy(pixels))
    for norm, (mean, variance) in zip(norms, before, strict=True):
        norm.running_mean.lerp_(mean, 1 - weight)
        norm.running_var.lerp_(variance, 1 - weight)
    return adapted.eval()


def adapted_batch_norm(classifier: Classifier, images: Images) -> np.ndarray:
    """Logits after the statistics are moved half way to those of these images, taken together."""
    adapted = adapt_batch_norm(classifier.model, pixel_batches(classifier, images))
    with torch.inference_mode():
        logits = [adapted(torch.from_numpy(p)).numpy() for p in pixel_batches(classifier, images)]
    return np.concatenate(logits)


def cures(reference: Reference) -> dict[str, Cure]:
    """All cures by name, `UNCURED` first; the colour cures bring crops to the reference."""

    def balanced(image: np.ndarray) -> np.ndarray:
        gains = reference.background / np.maximum(background_colour(image), 1)
        return white_balance(image, np.clip(gains, *GAINS))

    return {
        UNCURED: uncured,
        "white balance": lambda model, images: uncured(model, [balanced(i) for i in images]),
        "Reinhard": lambda model, images: uncured(model, [reinhard(i, reference.colours) for i in images]),
        "four flips": four_flips,
        "three magnifications": three_magnifications,
        "adapted batch norm": adapted_batch_norm,
    }


def recalls(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Share of each class's images that are called by its name, [C]; NaN for a class without images."""
    hits = np.bincount(labels[predicted == labels], minlength=classes)
    support = np.bincount(labels, minlength=classes)
    return np.divide(hits, support, out=np.full(classes, np.nan), where=support > 0)


def score(logits: np.ndarray, labels: np.ndarray, label_names: tuple[str, ...]) -> dict:
    """Accuracy, balanced accuracy with its bootstrap interval, and recall of each class that has images."""
    predicted, classes = logits.argmax(axis=1), len(label_names)
    recall = recalls(predicted, labels, classes)
    interval = bootstrap(
        lambda i: np.nanmean(recalls(predicted[i], labels[i], classes), keepdims=True),
        len(labels),
        RESAMPLES,
        SEED,
    )
    return {
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(np.nanmean(recall)),
        "interval": interval[:, 0].tolist(),
        "recall": {n: float(r) for n, r in zip(label_names, recall, strict=True) if not np.isnan(r)},
    }


def measure_robustness(
    classifier: Classifier,
    crops: Crops,
    reference: Reference,
    conditions: Mapping[str, Perturbation] = PERTURBATIONS,
    chosen: Iterable[str] | None = None,
    seed: int = 0,
) -> list[dict]:
    """One row a condition: {"condition", "images", "cures": {name: {accuracy, balanced_accuracy, interval, recall}}}.

    Every cure sees the same altered crops. `chosen` names the cures to try besides none; all by default. Memory holds
    the crops of one condition: bound it by `crops.sample`.

    Raises RepoError: a cure that is not known.
    """
    known = cures(reference)
    names = list(known) if chosen is None else [UNCURED, *(name for name in chosen if name != UNCURED)]
    if unknown := [name for name in names if name not in known]:
        raise RepoError(f"unknown cure {unknown[0]!r} (known: {', '.join(known)})")
    rows, labels = [], crops.labels
    for condition in tqdm(conditions, desc="robustness", unit="condition", disable=None):
        images = list(altered(crops, conditions[condition], seed))
        results = {
            name: score(known[name](classifier, images), labels, classifier.label_names) for name in names
        }
        rows.append({"condition": condition, "images": len(images), "cures": results})
    return rows


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table of balanced accuracies, one column a cure."""
    names = list(rows[0]["cures"])
    lines = [f"| condition | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for row in rows:
        values = (f"{row['cures'][name]['balanced_accuracy']:.3f}" for name in names)
        lines.append(f"| {row['condition']} | {' | '.join(values)} |")
    return "\n".join(lines)
