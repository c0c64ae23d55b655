"""Batches: every image once an epoch, for any number of processes, from memory and from a stream."""

from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from dataset_script.validate import check, digest
from hub_model.inference.images import read_image
from hub_model.inference.preprocessing import Preprocessing
from tests.pictures import deep, encoded, packed_tiff, planar_tiff, png16, tiff
from tests.training.small import CONFIG, data_options
from training import TrainingError
from training.data import (
    MemorySplit,
    StreamSplit,
    decode,
    evaluation_transform,
    split_evenly,
    updates_per_epoch,
)
from training.source import Row, open_source

IMAGES = 53  # a prime: no batch size divides it


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A dataset whose images carry their own number as their brightness."""
    folder = tmp_path_factory.mktemp("numbered")
    images = [Image.new("RGB", (16, 16), (i, i, i)) for i in range(IMAGES)]
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
    source = open_source(data_options(folder), streaming=kind is StreamSplit)
    transform = evaluation_transform(CONFIG, 16)
    return kind(source, "train", batch_size, process, processes, transform, 3, accumulation)


def numbers(batches) -> list[int]:
    return [int(image[0, 0, 0]) for batch in batches for image in batch.images]


@pytest.mark.parametrize("kind", [MemorySplit, StreamSplit])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_an_epoch_uses_every_image_once(numbered, kind, processes):
    splits = [make_split(numbered, kind, i, processes) for i in range(processes)]
    for epoch in (0, 1):
        epochs = [list(split.training(epoch)) for split in splits]
        assert {len(batches) for batches in epochs} == {splits[0].steps}
        assert Counter(n for batches in epochs for n in numbers(batches)) == Counter(range(IMAGES))


@pytest.mark.parametrize("kind", [MemorySplit, StreamSplit])
def test_an_epoch_resumed_in_the_middle_has_the_same_batches(numbered, kind):
    split = make_split(numbered, kind, 0, 2)
    uninterrupted = list(split.training(epoch=4))
    rest = list(split.training(epoch=4, start=2))
    assert len(rest) == len(uninterrupted) - 2
    assert all(torch.equal(a.images, b.images) for a, b in zip(uninterrupted[2:], rest, strict=True))


@pytest.mark.parametrize("kind", [MemorySplit, StreamSplit])
def test_the_batches_of_an_update_do_not_depend_on_the_number_of_processes(numbered, kind):
    """One process with four accumulation steps, two with two, four with one; each batch has the same index."""
    layouts = []
    for processes, accumulation in ((1, 4), (2, 2), (4, 1)):
        batches = {}
        for process in range(processes):
            split = make_split(numbered, kind, process, processes, batch_size=4, accumulation=accumulation)
            own = list(split.training(epoch=2))
            assert len(own) == split.steps == accumulation * split.updates
            batches |= {split.index(step): numbers([batch]) for step, batch in enumerate(own)}
            late = list(split.training(epoch=2, start=accumulation + 1))  # in the middle of an update
            assert [numbers([b]) for b in late] == [numbers([b]) for b in own[accumulation + 1 :]]
        layouts.append(batches)
    assert layouts[0] == layouts[1] == layouts[2]
    assert Counter(n for batch in layouts[0].values() for n in batch) == Counter(range(IMAGES))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_processes_with_their_own_shards_use_every_image_once(tmp_path, numbered, accumulation):
    """Four shards of unequal length, two processes: the same number of steps, and no shard is read by both."""
    table = datasets.load_dataset(str(numbered), split="train")
    for number, rows in enumerate((range(15), range(15, 28), range(28, 39), range(39, IMAGES))):
        table.select(rows).to_parquet(tmp_path / "data" / f"train-{number:05d}-of-00004.parquet")
    table.to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    splits = [
        make_split(tmp_path, StreamSplit, i, 2, batch_size=4, accumulation=accumulation) for i in (0, 1)
    ]
    source = splits[0].source
    assert source.num_shards("train") == 4
    for split in splits:
        split.shard_sizes = [source.shard_size("train", i, 2) for i in (0, 1)]
    assert splits[0].shard_sizes == [28, 25]
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
    seen = {}
    for process in range(processes):
        for start, batch in make_split(numbered, kind, process, processes).evaluation():
            assert batch.images.shape[0] == 8
            own = numbers([batch])[: len(batch.names)]
            seen |= {start + i: number for i, number in enumerate(own)}
            assert batch.labels.tolist() == [number % 2 for number in own]
    assert seen == {i: i for i in range(IMAGES)}


def test_even_chunks_differ_by_at_most_one_and_add_up():
    for total in range(1, 60):
        for chunks in range(1, total + 1):
            sizes = split_evenly(total, chunks)
            assert sum(sizes) == total and len(sizes) == chunks and max(sizes) - min(sizes) <= 1


def test_no_batch_of_an_epoch_has_a_single_image():
    for batches in (1, 2, 3):
        for batch_size in (2, 3, 16):
            for images in range(2 * batches, 100):
                sizes = split_evenly(images, batches * updates_per_epoch(images, batch_size, batches))
                assert min(sizes) >= 2 and max(sizes) <= max(batch_size, 4)


def kinds_of_files() -> dict[str, bytes]:
    """One picture, a dark disc on a bright field, as files of each mode, transparency and depth; test_images.py has more."""
    y, x = np.mgrid[-1:1:48j, -1:1:64j]
    grey = np.where(x**2 + y**2 < 0.3, 60, 220).astype(np.uint8)
    photo = Image.fromarray(np.dstack([grey, grey // 2, 255 - grey]))
    hole = np.full(grey.shape, 255, np.uint8)
    hole[:12] = 0  # a cell cut out by a segmentation, with black below what is transparent
    cut_out = Image.fromarray(
        np.dstack([np.where(hole[..., None], np.asarray(photo), 0), hole]).astype(np.uint8)
    )
    palette = photo.quantize(64)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    return {
        "RGB JPEG": encoded(photo, "JPEG"),
        "RGB PNG": encoded(photo, "PNG"),
        "JPEG with an EXIF rotation": encoded(photo, "JPEG", exif=rotated),
        "CMYK JPEG": encoded(photo.convert("CMYK"), "JPEG"),
        "grey PNG": encoded(Image.fromarray(grey), "PNG"),
        "black and white PNG": encoded(Image.fromarray(grey).convert("1"), "PNG"),
        "RGBA PNG": encoded(cut_out, "PNG"),
        "LA PNG": encoded(Image.fromarray(grey).convert("LA"), "PNG"),
        "palette PNG": encoded(palette, "PNG"),
        "palette PNG with transparency": encoded(palette, "PNG", transparency=0),
        "RGB PNG with a transparent colour": encoded(photo, "PNG", transparency=photo.getpixel((0, 0))),
        "RGBA WebP": encoded(cut_out, "WEBP", lossless=True, exact=True),
        "16-bit TIFF": encoded(Image.fromarray(grey.astype(np.uint16) * 257), "TIFF"),
        "16-bit TIFF that holds 0..255": encoded(Image.fromarray(grey.astype(np.uint16)), "TIFF"),
        "32-bit TIFF that holds 0..255": encoded(Image.fromarray(grey.astype(np.int32)), "TIFF"),
        "float TIFF, 0..1": encoded(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"),
        "float TIFF, 0..255": encoded(Image.fromarray(grey.astype(np.float32)), "TIFF"),
        "float TIFF, 0..65535": encoded(Image.fromarray(grey.astype(np.float32) * 257), "TIFF"),
        "float RGB TIFF": tiff(np.asarray(photo, dtype=np.float32) / 255),
        "32-bit RGB TIFF": tiff(np.asarray(photo, dtype=np.uint32)),
        "16-bit RGB PNG of 12 bits": png16(deep(np.asarray(photo), 4095)),
        "16-bit RGB TIFF in planes": planar_tiff(deep(np.asarray(photo), 4095)),
        "packed 12-bit TIFF": packed_tiff(deep(grey, 4095), 12),
    }


@pytest.mark.parametrize(
    ("kind", "data"), [pytest.param(*item, id=item[0]) for item in kinds_of_files().items()]
)
def test_build_training_scoring_space_and_classifier_decode_the_same_pixels(kind, data):
    size = 32
    seen = Preprocessing({**CONFIG, "input_size": (3, size, size)}).resize_and_crop
    trained = decode(Row(kind, data, 0), evaluation_transform(CONFIG, size)).permute(1, 2, 0).numpy()
    assert trained.std() > 10, "the disc is visible"
    assert np.array_equal(trained, np.asarray(seen(data))), "Classifier"
    assert np.array_equal(trained, np.asarray(seen(read_image(data)))), "Space and scoring"
    assert check("x", data).pixels == digest(read_image(data)), "build"


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
def test_the_error_for_an_unreadable_image_names_it(image, tmp_path):
    broken_image(tmp_path, image)
    with pytest.raises(TrainingError, match=r"image train-000000 cannot be read: (This|The) "):
        make_split(tmp_path, MemorySplit, 0, 1)
    with pytest.raises(TrainingError, match="cannot be read"):
        list(make_split(tmp_path, StreamSplit, 0, 1).training(0))
