"""Images in, logits and features out: the dataset repo and the model that a study runs on, and where its result goes.

Images stay encoded on disk (Arrow, memory-mapped) until they are looked at, so memory does not grow with the dataset.
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
from hub_model.inference.classifier import BATCH_SIZE, Backend, Classifier
from hub_model.inference.errors import ImageError, RepoError, first_line
from hub_model.inference.images import to_rgb
from hub_model.inference.preprocessing import Preprocessing
from hub_model.studies.calibration import write_json

COLUMNS = ("image", "label", "file_name")


@dataclass(frozen=True)
class Crops:
    """Images of one or several splits. `images` has the columns of `COLUMNS`, the images undecoded."""

    images: datasets.Dataset
    label_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> np.ndarray:
        """True classes, int64 [N]."""
        return np.asarray(self.images["label"], dtype=np.int64)

    @property
    def sources(self) -> list[str]:
        """The laboratory of each crop; one for all where the dataset does not say."""
        known = "source" in self.images.column_names
        return list(self.images["source"]) if known else ["training"] * len(self)

    @property
    def file_names(self) -> list[str]:
        return list(self.images["file_name"])

    def pixels(self, index: int) -> np.ndarray:
        """One crop as uint8 RGB [H, W, 3]. Raises RepoError naming the file when it cannot be decoded."""
        row = self.images[int(index)]
        stored = row["image"]
        try:
            return np.asarray(to_rgb(stored["bytes"] or stored["path"]))
        except (OSError, TypeError, ImageError) as error:
            raise RepoError(f"{row['file_name']} cannot be decoded: {error}") from None

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.pixels(index) for index in range(len(self)))

    def take(self, indices: Sequence[int] | np.ndarray) -> Crops:
        """The crops with these indices."""
        return Crops(self.images.select([int(i) for i in indices]), self.label_names)

    def sample(self, images: int | None, seed: int = 0) -> Crops:
        """At most so many crops, drawn evenly over the classes by seed, in their old order; all for None."""
        if images is None or images >= len(self):
            return self
        order = np.random.default_rng(seed).permutation(len(self))
        labels = self.labels[order]
        rank = np.empty(len(self), dtype=np.int64)  # of each crop within its class
        for label in np.unique(labels):
            rank[labels == label] = np.arange((labels == label).sum())
        return self.take(np.sort(order[np.argsort(rank, kind="stable")[:images]]))


def read_crops(dataset: str, *splits: str, revision: str | None = None) -> Crops:
    """Read splits of a dataset repo, by id or folder.

    Raises RepoError: it is not there, or lacks a split, a column or label names.
    """
    try:
        parts = [datasets.load_dataset(dataset, split=split, revision=revision) for split in splits]
    except (OSError, ValueError) as error:  # huggingface_hub's and datasets' errors are among them
        wanted = " and ".join(splits)
        raise RepoError(f"the dataset {dataset} has no readable {wanted}: {first_line(error)}") from None
    found = parts[0].column_names
    if missing := [name for name in COLUMNS if name not in found]:
        raise RepoError(
            f"the dataset {dataset} has no column {', '.join(missing)} (it has: {', '.join(found)})"
        )
    label = parts[0].features["label"]
    if not isinstance(label, datasets.ClassLabel):
        raise RepoError(f"the column 'label' of {dataset} is not a ClassLabel, so its classes have no names")
    parts = [
        part.select_columns([*COLUMNS, *({"source"} & set(found))]).cast_column(
            "image", datasets.Image(decode=False)
        )
        for part in parts
    ]
    return Crops(datasets.concatenate_datasets(parts), tuple(label.names))


def open_classifier(model: str | Path, backend: Backend = "auto") -> Classifier:
    """The model of a run folder, a model repo folder or a Hub id.

    Only `config.json` and `model.safetensors` of a run folder are looked at: its checkpoints are pickles, which a model
    repo must not hold.
    """
    folder = Path(model)
    if not (folder / "checkpoints").is_dir():
        return Classifier.from_pretrained(model, backend=backend)
    with tempfile.TemporaryDirectory() as clean:
        for name in ("config.json", "model.safetensors"):
            (Path(clean) / name).symlink_to((folder / name).resolve())
        classifier = Classifier.from_pretrained(clean)
        _ = classifier.model  # loads the weights while they are there
        return classifier


def check_classes(classifier: Classifier, crops: Crops) -> None:
    """Raise RepoError when model and dataset do not mean the same by a label."""
    if tuple(classifier.label_names) != crops.label_names:
        raise RepoError(
            f"the model's classes ({', '.join(classifier.label_names)}) are not those of the dataset "
            f"({', '.join(crops.label_names)})"
        )


def altered(
    crops: Crops, change: Callable[[np.ndarray, np.random.Generator], np.ndarray], seed: int = 0
) -> Iterator[np.ndarray]:
    """Each crop after `change`, with a generator of its own from (seed, index): the same crop, the same change."""
    for index, image in enumerate(crops):
        yield change(image, np.random.default_rng((seed, index)))


def batched(images: Iterable[np.ndarray], size: int = BATCH_SIZE) -> Iterator[list[np.ndarray]]:
    """Lists of at most `size` (itertools.batched of Python 3.12)."""
    images = iter(images)
    while batch := list(islice(images, size)):
        yield batch


def logits_of(
    classifier: Classifier, images: Iterable[np.ndarray], preprocess: Preprocessing | None = None
) -> np.ndarray:
    """Logits [N, C] of images, without calibration; `preprocess` in place of the classifier's own."""
    prepare = preprocess or classifier.preprocess
    return np.concatenate([classifier.network(prepare(batch))[0] for batch in batched(images)])


def add_model_and_data(parser: argparse.ArgumentParser) -> None:
    """Add the arguments `folder`, `dataset` and `--revision` of a study that runs a model."""
    parser.add_argument("folder", type=Path, help="run folder or model repo folder")
    add_data(parser)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the arguments `dataset` and `--revision`."""
    parser.add_argument("dataset", help="dataset repo OWNER/NAME or folder")
    parser.add_argument("--revision", help="revision of the dataset repo (default: its newest)")


def write_measurement(folder: Path, key: str, value: dict | list) -> Path:
    """Write `folder/measurements/KEY.json`, where `build` finds it, with the weights that it was measured on."""
    path = folder / MEASUREMENTS / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"weights_sha256": weights_digest(folder), "result": value})
    return path
