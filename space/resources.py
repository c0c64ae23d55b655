"""What the page shows: one model repo and one dataset repo, and what is read from them once at start-up.

In: MODEL_ID and DATASET_ID, else the first of `models:` and `datasets:` in the front matter of README.md. Out: `Resources`.
A broken model repo raises RepoError; the dataset is optional.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import ImageError, RepoError
from hub_model.inference.images import CELL_SIDE, read_image
from space.batching import Batcher
from space.dataset_repo import DatasetRepo, Sample, open_dataset_repo
from space.fields import typical_diameter
from space.similar import SimilarCells

SIMILAR_PER_CLASS = 100
SHOWN_PER_CLASS = 24


@dataclass
class Resources:
    """`held_out` is a small class-balanced set of labelled samples that the model was not trained on."""

    classifier: Classifier
    batcher: Batcher
    metrics: dict[str, Any] | None
    history: list[dict[str, Any]]
    dataset: DatasetRepo | None = None
    dataset_error: str = ""
    held_out: list[Sample] = field(default_factory=list)
    similar: SimilarCells | None = None

    @property
    def classifier_name(self) -> str:
        """The name of the model that visitors see: its repo id, or the name of its folder."""
        return public_name(self.classifier.repo.name)

    @cached_property
    def nuclear_diameter(self) -> float:
        """Diameter of a nucleus as a fraction of the crop's side, measured on held-out samples."""
        return typical_diameter(read_image(sample.image, CELL_SIDE) for sample in self.held_out[:40])

    @property
    def quiz_samples(self) -> list[Sample]:
        """The held-out samples whose class the model has."""
        return [s for s in self.held_out if s.label in self.classifier.label_names]


def front_matter() -> dict[str, Any]:
    """The YAML front matter of README.md, which is in this folder or, in a Space repo, in the one above."""
    here = Path(__file__).parent
    readme = next(path for path in (here / "README.md", here.parent / "README.md") if path.is_file())
    return yaml.safe_load(readme.read_text("utf-8").split("---\n")[1])


def chosen_repos(environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Model and dataset ids from the environment, else from the front matter."""
    declared = front_matter()
    model_id = environment.get("MODEL_ID") or next(iter(declared.get("models") or []), "")
    dataset_id = environment.get("DATASET_ID") or next(iter(declared.get("datasets") or []), "")
    return model_id, dataset_id


def public_name(repo: str) -> str:
    """A repo id as it is; of a local folder, only its name."""
    return Path(repo).name if Path(repo).exists() else repo


def is_readable(sample: Sample) -> bool:
    """Whether the image of a sample can be decoded."""
    try:
        read_image(sample.image, CELL_SIDE)
    except ImageError:
        return False
    return True


def load_resources(model_id: str, dataset_id: str, revision: str | None = None) -> Resources:
    """Load and warm up the model, open the dataset, and start filling the index of similar cells.

    Raises RepoError for a model repo that cannot be loaded or does not run.
    """
    try:
        classifier = Classifier.from_pretrained(model_id, revision)
        classifier.warmup()
    except RepoError:
        raise
    except Exception as error:  # the libraries raise all kinds of exceptions for malformed files
        raise RepoError(f"{model_id} breaks the contract ({error!r})") from error
    try:
        rows = classifier.repo.read_jsonl("history.jsonl")
    except RepoError:  # the page does without training curves
        rows = []
    resources = Resources(
        classifier=classifier,
        batcher=Batcher(classifier),
        metrics=classifier.repo.read_json("metrics.json"),
        history=[row for row in rows if "epoch" in row],
    )
    try:
        resources.dataset = dataset = open_dataset_repo(dataset_id)
    except RepoError as error:
        resources.dataset_error = str(error).replace(dataset_id, public_name(dataset_id))
        return resources
    split = next((s for s in ("test", "validation") if s in dataset.labels), "train")
    resources.held_out = list(filter(is_readable, dataset.samples(split, SHOWN_PER_CLASS)))
    random.Random(0).shuffle(resources.held_out)
    resources.similar = SimilarCells(resources.batcher)
    resources.similar.fill_in_background(dataset.samples("train", SIMILAR_PER_CLASS))
    return resources
