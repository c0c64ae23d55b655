"""RAW in, a dataset repo as a folder out: `data/*.parquet`, `README.md`, `figures/`, `splits.csv`, `quarantine.csv`.

Two passes over the files: the first decodes and fingerprints each one (in worker processes), the second writes the accepted
ones as they are. In between there are only small records, a few hundred bytes an image. The folder is built beside OUT and
put in its place at the end: a reader sees all of it or nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset_script.check import luminance
from dataset_script.layout import DOCUMENTS, Rejected, arrange, find_listed
from dataset_script.overlaps import PointStore, link, working_size
from dataset_script.overwrite import holds_other_things
from dataset_script.parquet import Row, shards, write_shard
from dataset_script.source import DatasetError, base_name, open_source, shown
from dataset_script.splits import SPLITS, assign_splits
from dataset_script.survey import Survey, survey
from dataset_script.tables import read_test_names, write_csv

OVERLAPS_TEST = "overlaps a listed test image"


@dataclass
class Options:
    """What a build can be told; see `python -m dataset_script build --help`."""

    classes: Sequence[str] = ()
    per_class: int | None = None
    seed: int = 0
    test_names: Path | None = None
    strict: bool = False
    overwrite: bool = False
    card: str = "auto"
    shard_mb: int = 250
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))


@dataclass
class Summary:
    """What a build did, for the screen and the card."""

    out: Path
    classes: list[str]
    seen: int
    rows: list[Row]
    rejected: list[Rejected]
    left_out: int
    spare: int
    pictures: int
    compared: int
    same: int
    kind: str  # matek, drawn or own
    drawings: int
    seed: int
    listed: int | None = None  # names on the published test list, None without one
    here: int = 0  # of them that are the name of a kept image

    @property
    def quarantined(self) -> Counter:
        return Counter(item.reason for item in self.rejected)

    @property
    def refused(self) -> int:
        """Rejections that matter to --strict: not the documents beside the class folders, not overlaps with the test list."""
        return sum(1 for item in self.rejected if not is_document(item) and item.reason != OVERLAPS_TEST)


def is_document(item: Rejected) -> bool:
    return item.reason == "outside the class folders" and base_name(item.path).lower() in DOCUMENTS


def name_rows(rows: Sequence[Row]) -> None:
    """Give each row its file name; where several kept files have one name, their paths instead."""
    names = Counter(base_name(row.path) for row in rows)
    for row in rows:
        name = base_name(row.path)
        row.file_name = shown(name if names[name] == 1 else row.path)


def group_rows(found: Survey, source, store: PointStore) -> tuple[int, int]:
    """Give each row its group: the smallest SHA-256 among the images that show the same place. Returns (compared, same)."""

    def gray(node: int) -> np.ndarray:
        with Image.open(io.BytesIO(source.read(found.paths[node]))) as image:
            return working_size(luminance(image))

    sets, compared, same = link(store, len(found.paths), gray)
    roots = [sets.find(node) for node in found.nodes]
    first: dict[int, bytes] = {}
    for root, row in zip(roots, found.rows, strict=True):
        first[root] = min(first.get(root, row.sha256), row.sha256)
    for root, row in zip(roots, found.rows, strict=True):
        row.group = first[root].hex()
    return compared, same


def split_rows(rows: Sequence[Row], classes: Sequence[str], names: int | None, seed: int) -> list[Rejected]:
    """Give each row its split; `names` is the number of names on the test list, None without one.

    Returns the images that must be left out: not listed, but overlapping a listed one.

    Raises:
        DatasetError: a class has too few images, or the list names none of the images.
    """
    test_groups = None
    if names is not None:
        test_groups = {row.group for row in rows if row.listed}
        if not test_groups:
            raise DatasetError(f"none of the {names} names of the test list is among the {len(rows)} images")
    places = assign_splits([row.group for row in rows], [row.label for row in rows], seed, test_groups)
    for row in rows:
        row.split = places[row.group]
    counts = Counter((row.split, row.label) for row in rows)
    needed = SPLITS if test_groups is None else SPLITS[:2]
    poor = [label for label in range(len(classes)) if any(not counts[split, label] for split in needed)]
    if poor:
        images = Counter(row.label for row in rows)
        named = ", ".join(f"{shown(classes[label])} ({images[label]} images)" for label in poor)
        raise DatasetError(
            f"too few good images for the splits {', '.join(needed)} in class {named}: add images that show "
            "different places, or leave the class out with --classes"
        )
    if names is None:
        return []
    named = {row.group: row.file_name for row in rows if row.listed}
    return [
        Rejected(row.path, OVERLAPS_TEST, f"shows a part of {named[row.group]}")
        for row in rows
        if row.split == "test" and not row.listed
    ]


def decide_kind(rows: Sequence[Row], wanted: str) -> str:
    """Return matek, drawn or own: what the card may say about the images' origin."""
    if wanted != "auto":
        return wanted
    drawn, published = (sum(getattr(row, flag) for row in rows) for flag in ("drawn", "published"))
    if drawn == len(rows):
        return "drawn"
    return "matek" if not drawn and published >= 0.9 * len(rows) else "own"


def check_free(out: Path, overwrite: bool) -> None:
    """Check that a dataset may be put at `out`.

    Raises:
        DatasetError: something is there that may not be replaced.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise DatasetError(
            f"{out} is there and not empty: choose another folder, or pass --overwrite to replace it"
        )
    if holds_other_things(out, "splits.csv"):
        raise DatasetError(
            f"{out} holds no dataset, and --overwrite deletes nothing else: choose another folder"
        )


@contextlib.contextmanager
def replaced_at_the_end(out: Path, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder beside `out` that takes its place when the block ends well, and goes when it does not.

    A link stays: the folder takes the place of what it points to.

    Raises:
        DatasetError: `out` is in the way, at the start or by the end.
    """
    out = out.resolve()
    check_free(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        yield building
        building.chmod(0o755)
        old = building.with_suffix(".old")
        check_free(out, overwrite)
        if overwrite and out.exists():
            out.rename(old)
        building.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_rows(folder: Path, rows: Sequence[Row], classes: Sequence[str], source, max_bytes: int) -> None:
    """Second pass: write the shards of every split."""
    from dataset_script.card import (
        features,
    )  # imports `datasets`: not needed before a build has succeeded so far

    (folder / "data").mkdir()
    schema = features(classes).arrow_schema

    with tqdm(total=len(rows), desc="writing", unit="image", disable=None) as bar:

        def read(row: Row) -> bytes:
            data = source.read(row.path)
            if hashlib.sha256(data).digest() != row.sha256:
                raise DatasetError(
                    f"{shown(row.path)} changed while the dataset was being built: build again"
                )
            bar.update()
            return data

        for split in SPLITS:
            parts = shards([row for row in rows if row.split == split], max_bytes)
            for number, part in enumerate(parts):
                name = f"{split}-{number:05d}-of-{len(parts):05d}.parquet"
                write_shard(folder / "data" / name, part, schema, read)


def build(raw: str, out: Path, options: Options) -> Summary:
    """Build the dataset folder `out` from RAW.

    Raises:
        DatasetError: the input does not make a dataset, or `out` is in the way.
        OSError: a file cannot be written (disk full).
    """
    out_place = out.resolve()
    if Path.cwd().is_relative_to(out_place):
        raise DatasetError(f"{out} is the current folder or one above it: name another for the dataset")
    source = open_source(raw)
    raw_place = source.place
    if out_place.is_relative_to(raw_place) or raw_place.is_relative_to(out_place):
        raise DatasetError(
            f"{out} and the raw data lie one inside the other: choose another place for the dataset"
        )
    names = None if options.test_names is None else read_test_names(options.test_names)
    on_list = None if names is None else len(names)
    with replaced_at_the_end(out, options.overwrite) as folder:
        layout = arrange(source.listing(), options.classes)
        classes = [shown(name) for name in layout.files]
        listed = find_listed(layout, names or ())
        store = PointStore(folder)
        found, spare = survey(
            source, layout, {path for paths in listed.values() for path in paths}, store,
            per_class=options.per_class, seed=options.seed, workers=options.workers,
        )  # fmt: skip
        if not found.rows:
            reasons = Counter(item.reason for item in found.rejected).most_common()
            raise DatasetError(
                "none of the files can be kept: " + ", ".join(f"{reason} ({n:,})" for reason, n in reasons)
            )
        compared, same = group_rows(found, source, store)
        store.close()
        pictures = len(found.paths)
        found.forget_pictures()
        name_rows(found.rows)
        overlapping = split_rows(found.rows, classes, on_list, options.seed)
        left = {item.path for item in overlapping}
        found.rejected += overlapping
        rows = sorted(
            (row for row in found.rows if row.path not in left),
            key=lambda row: hashlib.sha256(b"order:" + row.sha256).digest(),
        )
        kept = {row.path for row in rows}
        rejected = sorted(found.rejected, key=lambda item: item.path)
        summary = Summary(
            out, classes, layout.seen, rows, rejected, layout.left_out, spare, pictures, compared, same,
            decide_kind(rows, options.card), sum(row.drawn for row in rows), options.seed,
            on_list, sum(not kept.isdisjoint(paths) for paths in listed.values()),
        )  # fmt: skip
        write_rows(folder, rows, classes, source, options.shard_mb * 2**20)
        header = ("file_name", "label", "split", "group", "sha256", "on_test_list")
        write_csv(
            folder / "splits.csv",
            header,
            ((r.file_name, classes[r.label], r.split, r.group, r.sha256.hex(), int(r.listed)) for r in rows),
        )
        write_csv(
            folder / "quarantine.csv",
            ("path", "reason", "detail"),
            ((i.path, i.reason, i.detail) for i in rejected),
        )
        from dataset_script.card import write_card

        write_card(folder, summary)
    return summary
