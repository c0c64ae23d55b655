"""What the page is made of: one model repo, one dataset repo, and what is read of them once at start-up.

In: MODEL_ID and DATASET_ID, else the first of `models:` and `datasets:` in the front matter of the README.md. Out:
`Resources`. A broken model repo raises RepoError; without a dataset the page does without.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import ImageError, RepoError
from hub_model.inference.images import CELL_SIDE, read_picture
from space.batching import Batcher
from space.dataset_repo import DatasetRepo, Sample, open_dataset_repo
from space.similar import SimilarCells

SIMILAR_PER_CLASS = 100
SHOWN_PER_CLASS = 24


@dataclass
class Resources:
    """`held_out` are labelled samples that the model did not learn from, a class-balanced few."""

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
        """The model as visitors may know it: its id, or the name of its folder."""
        return public_name(self.classifier.repo.name)

    @property
    def askable(self) -> list[Sample]:
        """The held-out samples of classes that the model has."""
        return [s for s in self.held_out if s.label in self.classifier.label_names]


def front_matter() -> dict[str, Any]:
    """The YAML block at the head of the README.md, which lies in this folder or, in a Space repo, above it."""
    here = Path(__file__).parent
    readme = next(path for path in (here / "README.md", here.parent / "README.md") if path.is_file())
    return yaml.safe_load(readme.read_text("utf-8").split("---\n")[1])


def chosen_repos(environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Model and dataset ids: of the environment, else of the front matter."""
    declared = front_matter()
    model_id = environment.get("MODEL_ID") or next(iter(declared.get("models") or []), "")
    dataset_id = environment.get("DATASET_ID") or next(iter(declared.get("datasets") or []), "")
    return model_id, dataset_id


def public_name(repo: str) -> str:
    """A repo without the path of this machine."""
    return Path(repo).name if Path(repo).exists() else repo


def is_readable(sample: Sample) -> bool:
    """Whether the dataset holds a picture there, and not something that a page would stumble over."""
    try:
        read_picture(sample.image, CELL_SIDE)
    except ImageError:
        return False
    return True


def open_classifier(model_id: str, revision: str | None) -> Classifier:
    """Load the model and let it answer for a white picture as it will for a visitor's: a repo that cannot is broken."""
    try:
        classifier = Classifier.from_pretrained(model_id, revision)
        classifier.warmup()
    except RepoError:
        raise
    except Exception as error:  # whatever the libraries raise for files that they cannot use
        raise RepoError(f"{model_id} breaks the contract ({error!r})") from error
    return classifier


def load_resources(model_id: str, dataset_id: str, revision: str | None = None) -> Resources:
    """Load the model and warm it up, open the dataset, and start filling the index of similar cells."""
    classifier = open_classifier(model_id, revision)
    try:
        rows = classifier.repo.read_jsonl("history.jsonl")
    except RepoError:  # the curves are left out
        rows = []
    resources = Resources(
        classifier=classifier,
        batcher=Batcher(classifier),
        metrics=classifier.repo.read_json("metrics.json"),
        history=[row for row in rows if "epoch" in row],
    )
    try:
        resources.dataset = open_dataset_repo(dataset_id)
    except RepoError as error:
        resources.dataset_error = str(error).replace(dataset_id or "\0", public_name(dataset_id))
        return resources
    split = next((s for s in ("test", "validation", "train") if s in resources.dataset.counts), "train")
    samples = resources.dataset.samples(split, SHOWN_PER_CLASS)
    resources.held_out = [sample for sample in samples if is_readable(sample)]
    random.Random(0).shuffle(resources.held_out)
    resources.similar = SimilarCells(resources.batcher)
    resources.similar.fill_in_background(resources.dataset.samples("train", SIMILAR_PER_CLASS))
    return resources
