"""Shared by the studies of images: loading the model and the dataset, logits of altered crops, and writing the result.

Images stay encoded on disk (Arrow, memory-mapped) until they are used, so memory does not grow with the dataset.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import datasets
import numpy as np

from hub_model.contract import MEASUREMENTS, weights_digest
from hub_model.evaluation import SEED
from hub_model.inference.classifier import BATCH_SIZE, Backend, Classifier
from hub_model.inference.errors import ImageError, RepoError, first_line
from hub_model.inference.images import to_rgb
from hub_model.inference.preprocessing import Preprocessing
from hub_model.studies.calibration import write_json
from hub_model.studies.perturbations import Perturbation

COLUMNS = ("image", "label", "file_name")


@dataclass(frozen=True)
class Crops:
    """A split of a dataset. `images` has the columns `COLUMNS`, the images undecoded, and optionally `source`."""

    images: datasets.Dataset
    label_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Each crop as uint8 RGB [H, W, 3]. Raises RepoError with the file name if it cannot be decoded."""
        for row in self.images:
            try:
                yield np.asarray(to_rgb(row["image"]["bytes"] or row["image"]["path"]))
            except (OSError, TypeError, ImageError) as error:
                raise RepoError(f"{row['file_name']} cannot be decoded: {error}") from None

    @property
    def labels(self) -> np.ndarray:
        """True classes, int64 [N]."""
        return np.asarray(self.images["label"], dtype=np.int64)

    @property
    def sources(self) -> np.ndarray:
        """The laboratory of each crop, [N]; "training" for all if the dataset has no column `source`."""
        known = "source" in self.images.column_names
        return np.array(self.images["source"] if known else ["training"] * len(self))

    def take(self, indices: Sequence[int] | np.ndarray) -> Crops:
        """The crops with these indices."""
        return Crops(self.images.select(indices), self.label_names)

    def sample(self, images: int | None, seed: int = 0) -> Crops:
        """At most `images` random crops (None: all), evenly over the classes, in their original order."""
        if images is None or images >= len(self):
            return self
        order = np.random.default_rng(seed).permutation(len(self))
        members = self.labels[order, None] == np.unique(self.labels)
        rank = members.cumsum(axis=0)[members]  # of each crop within its class
        return self.take(np.sort(order[np.argsort(rank, kind="stable")[:images]]))


def read_crops(dataset: str, split: str, revision: str | None = None) -> Crops:
    """Read a split of a dataset repo, by id or folder. Raises RepoError if it or a column is missing, or labels have no names."""
    try:
        images = datasets.load_dataset(dataset, split=split, revision=revision)
    except (OSError, ValueError) as error:  # huggingface_hub's and datasets' errors are among them
        raise RepoError(f"cannot read split {split!r} of dataset {dataset}: {first_line(error)}") from None
    columns = images.column_names
    if missing := [name for name in COLUMNS if name not in columns]:
        raise RepoError(f"dataset {dataset} has no column {', '.join(missing)} (found: {', '.join(columns)})")
    label = images.features["label"]
    if not isinstance(label, datasets.ClassLabel):
        raise RepoError(
            f"column 'label' of dataset {dataset} must be a ClassLabel with the names of the classes"
        )
    images = images.select_columns([*COLUMNS, *({"source"} & set(columns))])
    return Crops(images.cast_column("image", datasets.Image(decode=False)), tuple(label.names))


def open_classifier(folder: Path, backend: Backend = "auto") -> Classifier:
    """Load the model of a run folder or model repo folder.

    The checkpoints of a run folder are hidden from the loader: they are pickles, which it refuses.
    """
    if not (folder / "checkpoints").is_dir():
        return Classifier.from_pretrained(folder, backend=backend)
    with tempfile.TemporaryDirectory() as clean:
        for path in [*folder.glob("*.json"), *folder.glob("*.safetensors")]:
            (Path(clean) / path.name).symlink_to(path.resolve())
        classifier = Classifier.from_pretrained(clean, backend=backend)
        _ = classifier.model  # load the weights before the links are deleted
        return classifier


def open_study(
    arguments: argparse.Namespace, *splits: str, backend: Backend = "auto"
) -> tuple[Classifier, list[Crops]]:
    """Load the classifier and the splits of a study's arguments. Raises RepoError if their classes differ."""
    classifier = open_classifier(arguments.folder, backend)
    crops = [read_crops(arguments.dataset, split, arguments.revision) for split in splits]
    if tuple(classifier.label_names) != (names := crops[0].label_names):
        raise RepoError(
            f"the model's classes ({', '.join(classifier.label_names)}) differ from the dataset's ({', '.join(names)})"
        )
    return classifier, crops


def add_study(
    commands: argparse._SubParsersAction,
    name: str,
    key: str,
    measure: Callable[[argparse.Namespace], dict | list],
    section: Callable[[dict | list], str],
    help: str,
) -> argparse.ArgumentParser:
    """Add a study's command: measure a model on a dataset, print the card's section and write `measurements/KEY.json`."""
    command = commands.add_parser(name, help=help)
    command.add_argument("folder", type=Path, help="run folder or model repo folder")
    command.add_argument("dataset", help="dataset repo OWNER/NAME or folder")
    command.add_argument("--revision", help="revision of the dataset repo (default: latest)")

    def run(arguments: argparse.Namespace) -> int:
        result = measure(arguments)
        print(section(result))
        print(f"wrote {write_measurement(arguments.folder, key, result)}")
        return 0

    command.set_defaults(run=run)
    return command


def perturbed(crops: Crops, perturbation: Perturbation) -> Iterator[np.ndarray]:
    """Each crop after the perturbation, which is seeded by (`SEED`, index): it is the same in every run."""
    for index, image in enumerate(crops):
        yield perturbation(image, np.random.default_rng((SEED, index)))


def logits_of(
    classifier: Classifier, images: Iterable[np.ndarray], preprocess: Preprocessing | None = None
) -> np.ndarray:
    """Uncalibrated logits [N, C] of images; `preprocess` replaces the classifier's own preprocessing."""
    preprocess, images = preprocess or classifier.preprocess, iter(images)
    batches = iter(lambda: list(islice(images, BATCH_SIZE)), [])
    return np.concatenate([classifier.network(preprocess(batch))[0] for batch in batches])


def write_measurement(folder: Path, key: str, value: dict | list) -> Path:
    """Write `folder/measurements/KEY.json`, which `build` reads, with the digest of the measured weights."""
    path = folder / MEASUREMENTS / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"weights_sha256": weights_digest(folder), "result": value})
    return path
