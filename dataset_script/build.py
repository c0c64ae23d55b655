"""Raw images in, a dataset repo as a folder out: `data/*.parquet`, `README.md`, `figures/`, `splits.csv`, `rejected.csv`.

Two passes over the files: the first decodes and fingerprints each one (in worker processes), the second writes the accepted
ones as they are. In between there are only small records, a few hundred bytes an image. The folder is built beside OUT and
put in its place at the end: a reader sees all of it or nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from dataset_script.arguments import holds_other_things
from dataset_script.classes import arrange, find_listed
from dataset_script.near_duplicates import PointStore, link
from dataset_script.records import NEAR_TEST, Rejected, Row, Summary
from dataset_script.source import DatasetError, base_name, open_source, shown
from dataset_script.splits import SPLITS, assign_splits
from dataset_script.tables import read_test_names, write_csv
from dataset_script.validate import Validated, read_luminance, validate


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


def build(raw: str, out: Path, options: Options) -> Summary:
    """Build the dataset folder `out` from RAW.

    Raises:
        DatasetError: the input does not make a dataset, or `out` is in the way.
        OSError: a file cannot be written (disk full).
    """
    place = out.resolve()
    if Path.cwd().is_relative_to(place):
        raise DatasetError(f"{out} is the current folder or one above it: name another for the dataset")
    source = open_source(raw)
    if place.is_relative_to(source.place) or source.place.is_relative_to(place):
        raise DatasetError(
            f"{out} and the raw data lie one inside the other: choose another place for the dataset"
        )
    names = None if options.test_names is None else read_test_names(options.test_names)
    with replaced_at_the_end(out, options.overwrite) as folder:
        folders = arrange(source.listing(), options.classes)
        listed = find_listed(folders, names or ())
        with contextlib.closing(PointStore(folder)) as store:
            found = validate(
                source, folders, {path for paths in listed.values() for path in paths}, store,
                per_class=options.per_class, seed=options.seed, workers=options.workers,
            )  # fmt: skip
            if not found.rows:
                reasons = Counter(item.reason for item in found.rejected).most_common()
                listing = ", ".join(f"{reason} ({n:,})" for reason, n in reasons)
                raise DatasetError(f"none of the files can be kept: {listing}")
            compared, confirmed = group_rows(found, source, store)
        pictures = len(found.paths)
        found.forget_pictures()
        name_rows(found.rows)
        classes = [shown(name) for name in folders.files]
        found.rejected += split_rows(found.rows, classes, None if names is None else len(names), options.seed)
        refused = {item.path for item in found.rejected}
        rows = sorted(
            (row for row in found.rows if row.path not in refused),
            key=lambda row: hashlib.sha256(b"order:" + row.sha256).digest(),
        )
        kept = {row.path for row in rows}
        summary = Summary(
            out, classes, folders.seen, rows, sorted(found.rejected, key=lambda item: item.path), folders.left_out,
            found.spare, pictures, compared, confirmed, decide_kind(rows, options.card), options.seed,
            None if names is None else len(names), sum(not kept.isdisjoint(paths) for paths in listed.values()),
        )  # fmt: skip
        write_files(folder, summary, source, options.shard_mb * 2**20)
    return summary


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


def group_rows(found: Validated, source, store: PointStore) -> tuple[int, int]:
    """Give each row its group: the smallest SHA-256 among its near-duplicates. Returns (compared, confirmed)."""
    sets, compared, confirmed = link(
        store, len(found.paths), lambda node: read_luminance(source.read(found.paths[node]))
    )
    roots = [sets.find(node) for node in found.nodes]
    first: dict[int, bytes] = {}
    for root, row in zip(roots, found.rows, strict=True):
        first[root] = min(first.get(root, row.sha256), row.sha256)
    for root, row in zip(roots, found.rows, strict=True):
        row.group = first[root].hex()
    return compared, confirmed


def name_rows(rows: Sequence[Row]) -> None:
    """Give each row its file name; where several kept files have one name, their paths instead."""
    names = Counter(base_name(row.path) for row in rows)
    for row in rows:
        name = base_name(row.path)
        row.file_name = shown(name if names[name] == 1 else row.path)


def split_rows(rows: Sequence[Row], classes: Sequence[str], names: int | None, seed: int) -> list[Rejected]:
    """Give each row its split; `names` is the number of names on the test list, None without one.

    Returns the images that must be left out: not listed, but near-duplicates of a listed one.

    Raises:
        DatasetError: a class has too few images, or the list names none of the images.
    """
    test_groups = None
    if names is not None:
        test_groups = {row.group for row in rows if row.listed}
        if not test_groups:
            raise DatasetError(f"none of the {names} names of the test list is among the {len(rows)} images")
    split_of = assign_splits([row.group for row in rows], [row.label for row in rows], seed, test_groups)
    for row in rows:
        row.split = split_of[row.group]
    counts = Counter((row.split, row.label) for row in rows)
    needed = SPLITS if test_groups is None else SPLITS[:2]
    poor = [label for label in range(len(classes)) if any(not counts[split, label] for split in needed)]
    if poor:
        images = Counter(row.label for row in rows)
        named = ", ".join(f"{shown(classes[label])} ({images[label]} images)" for label in poor)
        raise DatasetError(
            f"too few good images for the splits {', '.join(needed)} in class {named}: add images that are not "
            "near-duplicates, or leave the class out with --classes"
        )
    if names is None:
        return []
    named = {row.group: row.file_name for row in rows if row.listed}
    return [
        Rejected(row.path, NEAR_TEST, f"shows a part of {named[row.group]}")
        for row in rows
        if row.split == "test" and not row.listed
    ]


def decide_kind(rows: Sequence[Row], wanted: str) -> str:
    """Return matek, synthetic or own: what the card may say about the images' origin."""
    if wanted != "auto":
        return wanted
    synthetic, published = (sum(getattr(row, flag) for row in rows) for flag in ("synthetic", "published"))
    if synthetic == len(rows):
        return "synthetic"
    return "matek" if not synthetic and published >= 0.9 * len(rows) else "own"


def write_files(folder: Path, summary: Summary, source, max_bytes: int) -> None:
    """Second pass: write the shards of every split, the two tables and the card."""
    from dataset_script.card import (
        write_card,  # they import `datasets`, in seconds: a build may have failed before
    )
    from dataset_script.parquet import features, shards, write_shard

    (folder / "data").mkdir()
    schema = features(summary.classes).arrow_schema
    with tqdm(total=len(summary.rows), desc="writing", unit="image", disable=None) as bar:

        def read(row: Row) -> bytes:
            data = source.read(row.path)
            if hashlib.sha256(data).digest() != row.sha256:
                raise DatasetError(
                    f"{shown(row.path)} changed while the dataset was being built: build again"
                )
            bar.update()
            return data

        for split in SPLITS:
            parts = shards([row for row in summary.rows if row.split == split], max_bytes)
            for number, part in enumerate(parts):
                name = f"{split}-{number:05d}-of-{len(parts):05d}.parquet"
                write_shard(folder / "data" / name, part, schema, read)
    write_csv(
        folder / "splits.csv",
        ("file_name", "label", "split", "group", "sha256", "on_test_list"),
        (
            (r.file_name, summary.classes[r.label], r.split, r.group, r.sha256.hex(), int(r.listed))
            for r in summary.rows
        ),
    )
    rejected = ((item.path, item.reason, item.detail) for item in summary.rejected)
    write_csv(folder / "rejected.csv", ("path", "reason", "detail"), rejected)
    write_card(folder, summary)
