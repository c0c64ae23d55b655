"""What the studies of images share: the model and the dataset that one runs on, logits of altered crops, where a result goes.

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
    """Images of a split. `images` has the columns of `COLUMNS`, the images undecoded, and perhaps `source`."""

    images: datasets.Dataset
    label_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Each crop as uint8 RGB [H, W, 3]. Raises RepoError naming the file when it cannot be decoded."""
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
        """The laboratory of each crop, [N]; one for all where the dataset does not say."""
        known = "source" in self.images.column_names
        return np.array(self.images["source"] if known else ["training"] * len(self))

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


def read_crops(dataset: str, split: str, revision: str | None = None) -> Crops:
    """Read a split of a dataset repo, by id or folder.

    Raises RepoError: it is not there, or lacks a column or label names.
    """
    try:
        images = datasets.load_dataset(dataset, split=split, revision=revision)
    except (OSError, ValueError) as error:  # huggingface_hub's and datasets' errors are among them
        raise RepoError(f"the dataset {dataset} has no readable {split}: {first_line(error)}") from None
    found = images.column_names
    if missing := [name for name in COLUMNS if name not in found]:
        raise RepoError(
            f"the dataset {dataset} has no column {', '.join(missing)} (it has: {', '.join(found)})"
        )
    label = images.features["label"]
    if not isinstance(label, datasets.ClassLabel):
        raise RepoError(f"the column 'label' of {dataset} is not a ClassLabel, so its classes have no names")
    images = images.select_columns([*COLUMNS, *({"source"} & set(found))])
    return Crops(images.cast_column("image", datasets.Image(decode=False)), tuple(label.names))


def open_classifier(folder: Path, backend: Backend = "auto") -> Classifier:
    """The model of a run folder or model repo folder.

    Of a run folder its checkpoints are left out: they are pickles, which a model repo must not hold.
    """
    if not (folder / "checkpoints").is_dir():
        return Classifier.from_pretrained(folder, backend=backend)
    with tempfile.TemporaryDirectory() as clean:
        for path in [*folder.glob("*.json"), *folder.glob("*.safetensors")]:
            (Path(clean) / path.name).symlink_to(path.resolve())
        classifier = Classifier.from_pretrained(clean)
        _ = classifier.model  # loads the weights while they are there
        return classifier


def open_study(
    arguments: argparse.Namespace, *splits: str, backend: Backend = "auto"
) -> tuple[Classifier, list[Crops]]:
    """The classifier and the splits that a study's command names. Raises RepoError where they have other classes."""
    classifier = open_classifier(arguments.folder, backend)
    crops = [read_crops(arguments.dataset, split, arguments.revision) for split in splits]
    if tuple(classifier.label_names) != (names := crops[0].label_names):
        raise RepoError(
            f"the model's classes ({', '.join(classifier.label_names)}) are not those of the dataset ({', '.join(names)})"
        )
    return classifier, crops


def add_study(
    commands: argparse._SubParsersAction,
    name: str,
    key: str,
    measure: Callable[[argparse.Namespace], dict | list],
    section: Callable[[dict | list], str],
    purpose: str,
) -> argparse.ArgumentParser:
    """Add the command of a study: it measures a folder's model on a dataset, prints the card's section and writes `key`."""
    command = commands.add_parser(name, help=purpose)
    command.add_argument("folder", type=Path, help="run folder or model repo folder")
    command.add_argument("dataset", help="dataset repo OWNER/NAME or folder")
    command.add_argument("--revision", help="revision of the dataset repo (default: its newest)")

    def run(arguments: argparse.Namespace) -> int:
        result = measure(arguments)
        print(section(result))
        print(f"wrote {write_measurement(arguments.folder, key, result)}")
        return 0

    command.set_defaults(run=run)
    return command


def altered(
    crops: Crops, change: Callable[[np.ndarray, np.random.Generator], np.ndarray], seed: int = 0
) -> Iterator[np.ndarray]:
    """Each crop after `change`, with a generator of its own from (seed, index): the same crop, the same change."""
    for index, image in enumerate(crops):
        yield change(image, np.random.default_rng((seed, index)))


def logits_of(
    classifier: Classifier, images: Iterable[np.ndarray], preprocess: Preprocessing | None = None
) -> np.ndarray:
    """Logits [N, C] of images, without calibration; `preprocess` in place of the classifier's own."""
    prepare, images = preprocess or classifier.preprocess, iter(images)
    batches = iter(lambda: list(islice(images, BATCH_SIZE)), [])
    return np.concatenate([classifier.network(prepare(batch))[0] for batch in batches])


def write_measurement(folder: Path, key: str, value: dict | list) -> Path:
    """Write `folder/measurements/KEY.json`, where `build` finds it, with the weights that it was measured on."""
    path = folder / MEASUREMENTS / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"weights_sha256": weights_digest(folder), "result": value})
    return path
