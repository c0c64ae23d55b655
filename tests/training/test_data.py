"""Batches: every image once an epoch, for any number of processes, from memory and from a stream."""

from collections import Counter
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from training import TrainingError
from training.data import MemorySplit, StreamSplit, geometry, near_equal, to_rgb, updates_in
from training.source import open_source

CONFIG = {
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
}
IMAGES = 53  # a prime: no batch size divides it


def options(dataset, **given) -> SimpleNamespace:
    defaults = {
        "dataset_config": None,
        "dataset_revision": None,
        "image_column": "image",
        "label_column": "label",
    }
    splits = {"train_split": "train", "validation_split": "validation", "test_split": "test"}
    return SimpleNamespace(dataset=str(dataset), **{**defaults, **splits, **given})


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A dataset whose images carry their own number as their brightness."""
    folder = tmp_path_factory.mktemp("numbered")
    images = [Image.new("RGB", (8, 8), (i, i, i)) for i in range(IMAGES)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])}
    )
    table = datasets.Dataset.from_dict(
        {"image": images, "label": [i % 2 for i in range(IMAGES)]}, features=features
    )
    for split in ("train", "validation"):
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def make_split(folder, kind, process, processes, batch_size=8, accumulation=1):
    source = open_source(options(folder), streaming=kind is StreamSplit)
    given = (process, processes, geometry(CONFIG, 8))
    return kind(source, "train", batch_size, *given, seed=3, accumulation=accumulation)


def numbers(batches) -> list[int]:
    return [int(image[0, 0, 0]) for batch in batches for image in batch.images]


@pytest.mark.parametrize("kind", [MemorySplit, StreamSplit])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_an_epoch_shows_every_image_once(numbered, kind, processes):
    splits = [make_split(numbered, kind, i, processes) for i in range(processes)]
    for epoch in (0, 1):
        epochs = [list(split.training(epoch)) for split in splits]
        assert {len(batches) for batches in epochs} == {splits[0].steps}
        assert Counter(n for batches in epochs for n in numbers(batches)) == Counter(range(IMAGES))


@pytest.mark.parametrize("kind", [MemorySplit, StreamSplit])
def test_an_epoch_continued_in_the_middle_gives_the_same_batches(numbered, kind):
    split = make_split(numbered, kind, 0, 2)
    whole = list(split.training(epoch=4))
    rest = list(split.training(epoch=4, start=2))
    assert len(rest) == len(whole) - 2
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[2:], rest, strict=True))


@pytest.mark.parametrize("kind", [MemorySplit, StreamSplit])
def test_an_update_has_the_same_batches_however_they_are_divided(numbered, kind):
    """By one process in four accumulation steps, by two in two, by four in one; each batch at the same place."""
    found = []
    for processes, accumulation in ((1, 4), (2, 2), (4, 1)):
        batches = {}
        for process in range(processes):
            split = make_split(numbered, kind, process, processes, batch_size=4, accumulation=accumulation)
            given = list(split.training(epoch=2))
            assert len(given) == split.steps == accumulation * split.updates
            batches |= {split.place(step): numbers([batch]) for step, batch in enumerate(given)}
            late = list(split.training(epoch=2, start=accumulation + 1))  # in the middle of an update
            assert [numbers([b]) for b in late] == [numbers([b]) for b in given[accumulation + 1 :]]
        found.append(batches)
    assert found[0] == found[1] == found[2]
    assert Counter(n for batch in found[0].values() for n in batch) == Counter(range(IMAGES))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_processes_that_read_files_of_their_own_show_every_image_once(tmp_path, numbered, accumulation):
    """Four files of unequal length, two processes: as many steps each, and no file read by both."""
    table = datasets.load_dataset(str(numbered), split="train")
    for number, rows in enumerate((range(15), range(15, 28), range(28, 39), range(39, IMAGES))):
        table.select(rows).to_parquet(tmp_path / "data" / f"train-{number:05d}-of-00004.parquet")
    table.to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    splits = [
        make_split(tmp_path, StreamSplit, i, 2, batch_size=4, accumulation=accumulation) for i in (0, 1)
    ]
    source = splits[0].source
    assert source.files("train") == 4
    for split in splits:
        split.dealt = [source.count("train", (i, 2)) for i in (0, 1)]
    assert splits[0].dealt == [28, 25]
    for epoch in (0, 1):
        epochs = [list(split.training(epoch)) for split in splits]
        assert [len(batches) for batches in epochs] == [splits[0].steps] * 2
        assert [sorted(numbers(batches)) for batches in epochs] == [list(range(28)), list(range(28, IMAGES))]
        late = list(splits[1].training(epoch, start=2))
        assert [numbers([b]) for b in late] == [numbers([b]) for b in epochs[1][2:]]


@pytest.mark.parametrize("kind", [MemorySplit, StreamSplit])
def test_epochs_differ_in_order(numbered, kind):
    split = make_split(numbered, kind, 0, 1)
    assert numbers(split.training(0)) != numbers(split.training(1))


@pytest.mark.parametrize("kind", [MemorySplit, StreamSplit])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_covers_every_image_once_in_the_same_full_batches(numbered, kind, processes):
    found = {}
    for process in range(processes):
        for position, names, batch in make_split(numbered, kind, process, processes).evaluation():
            assert batch.images.shape[0] == 8
            found |= {position + i: int(batch.images[i, 0, 0, 0]) for i in range(len(names))}
            assert batch.labels.tolist() == [n % 2 for n in list(found.values())[-len(names) :]]
    assert found == {i: i for i in range(IMAGES)}


def test_near_equal_parts_differ_by_one_and_lose_nothing():
    for total in range(1, 60):
        for parts in range(1, total + 1):
            sizes = near_equal(total, parts)
            assert sum(sizes) == total and len(sizes) == parts and max(sizes) - min(sizes) <= 1


def test_no_batch_of_an_epoch_has_a_single_image():
    for parts in (1, 2, 3):
        for batch_size in (2, 3, 16):
            for images in range(2 * parts, 100):
                sizes = near_equal(images, parts * updates_in(images, batch_size, parts))
                assert min(sizes) >= 2 and max(sizes) <= max(batch_size, 4)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "I;16", "1"])
def test_every_mode_becomes_8_bit_rgb_of_the_same_brightness(mode):
    grey = Image.new("L", (4, 4), 200)
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 4), 200 * 257, np.uint16))
    else:
        image = grey.convert(mode) if mode != "CMYK" else grey.convert("RGB").convert("CMYK")
    rgb = np.asarray(to_rgb(image))
    assert rgb.shape == (4, 4, 3) and rgb.dtype == np.uint8
    assert abs(int(rgb.mean()) - 200) <= 2 or mode == "1"


def test_an_exif_rotated_image_is_put_upright():
    image = Image.new("RGB", (6, 3))
    image.getexif()[0x0112] = 6
    assert to_rgb(image).size == (3, 6)


def broken_image(folder, image):
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = {"image": [image] * 4, "label": [0, 1, 0, 1]}
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")


@pytest.mark.parametrize(
    "image",
    [{"bytes": b"no image", "path": None}, {"bytes": b"", "path": "empty.jpg"}],
    ids=["text", "empty"],
)
def test_an_unreadable_image_is_named(image, tmp_path):
    broken_image(tmp_path, image)
    with pytest.raises(TrainingError, match=r"train-000000 cannot be read: cannot identify image file$"):
        make_split(tmp_path, MemorySplit, 0, 1)
    with pytest.raises(TrainingError, match="cannot be read"):
        list(make_split(tmp_path, StreamSplit, 0, 1).training(0))
