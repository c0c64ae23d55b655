"""Builds a dataset repo as a folder from raw images: `data/*.parquet`, `README.md`, `figures/`, `splits.csv`, `rejected.csv`.

Two passes over the files: the first decodes and fingerprints each one (in worker processes), the second writes the accepted
ones unchanged. In between, memory holds only a record of a few hundred bytes per image. The folder is built next to OUT and
renamed at the end: a reader sees all of it or nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from dataset_script.arguments import is_foreign_output
from dataset_script.classes import arrange, find_listed
from dataset_script.folders import class_name
from dataset_script.labels import published_as
from dataset_script.near_duplicates import POINT, Spool, link
from dataset_script.records import NEAR, Rejected, Row, Summary
from dataset_script.source import DatasetError, Sources, base_name
from dataset_script.splits import FRACTION, FRACTION_BESIDE_LIST, SPLITS, assign_splits
from dataset_script.tables import read_option, read_test_names, write_csv
from dataset_script.validate import Validated, luminance, validate
from hub_model.inference.images import read_image
from hub_model.inference.text import printable


def build(raws: Sequence[str], out: Path, options: argparse.Namespace) -> Summary:
    """Build the dataset folder `out` from raw folders or zips, given as `NAME=RAW`, or as RAW if there is only one.

    `options` are those of `python -m dataset_script build --help`.

    Raises:
        DatasetError: the input cannot be made into a dataset, or `out` cannot be used.
        OSError: a file cannot be written (disk full).
    """
    target = out.resolve()
    if Path.cwd().is_relative_to(target):
        raise DatasetError(f"{out} is the current folder or one above it: choose another folder")
    sources = Sources(raws, options.follow_links, options.zip_encoding)
    for source in sources.parts.values():
        if target.is_relative_to(source.place) or source.place.is_relative_to(target):
            raise DatasetError(f"{out} is inside the raw data or contains it: choose another folder")
    names = None if options.test_names is None else read_test_names(options.test_names)
    with replace_on_success(out, options.overwrite) as folder:
        table = options.labels and (options.labels.name, read_option("--labels", options.labels))
        folders = arrange(sources, [class_name(name) for name in options.classes], options.group_by, table)
        listed = find_listed(folders, names or ())
        with contextlib.closing(Spool(POINT, "bits", folder)) as points:
            validated = validate(
                sources, folders, set().union(*listed.values()), points,
                per_class=options.per_class, seed=options.seed, workers=options.workers,
            )  # fmt: skip
            if not validated.rows:
                reasons = Counter(item.reason for item in validated.rejected).most_common()
                listing = ", ".join(f"{reason} ({n:,})" for reason, n in reasons)
                raise DatasetError(f"no file can be used: {listing}")
            for row in validated.rows:
                row.source = sources.name_of(row.path)
                row.given_split = folders.split_of.get(row.path, "")
                row.given_group = folders.group_of.get(row.path, "")
            compared, confirmed = group_rows(validated, sources, points)
        name_rows(validated.rows)
        classes, n_listed = list(folders.files), None if names is None else len(names)
        rejected = validated.rejected + split_rows(validated.rows, classes, n_listed, options.seed)
        rejected_paths = {item.path for item in rejected}
        rows = [row for row in validated.rows if row.path not in rejected_paths]
        rows.sort(key=lambda row: hashlib.sha256(b"order:" + row.sha256).digest())
        kept = {row.path for row in rows}
        summary = Summary(
            out, classes, folders.seen, rows, sorted(rejected, key=lambda item: item.path), folders.left_out,
            validated.spare, len(validated.paths), compared, confirmed, options.seed, decide_kinds(rows, classes),
            folders.notes, n_listed, sum(not kept.isdisjoint(paths) for paths in listed.values()),
        )  # fmt: skip
        write_files(folder, summary, sources, options.shard_mb * 2**20)
    return summary


def check_free(out: Path, overwrite: bool) -> None:
    """Check that a dataset may be written to `out`.

    Raises:
        DatasetError: `out` holds something that may not be replaced.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise DatasetError(f"{out} already exists: choose another folder, or pass --overwrite to replace it")
    if is_foreign_output(out, "splits.csv"):
        raise DatasetError(f"{out} is not a dataset, so --overwrite keeps it: choose another folder")


@contextlib.contextmanager
def replace_on_success(out: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder next to `out` that replaces it if the block succeeds, and is deleted if it fails.

    If `out` is a symlink, its target is replaced.

    Raises:
        DatasetError: at the start or at the end, `out` holds something that may not be replaced.
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


def group_rows(validated: Validated, sources: Sources, points: Spool) -> tuple[int, int]:
    """Set each row's group: the smallest SHA-256 among its near-duplicates and the rows of its given group.

    Returns the number of image pairs compared, and of near-duplicates among them.
    """
    paths = validated.paths
    sets, compared, confirmed = link(points, lambda node: luminance(read_image(sources.read(paths[node]))))
    first_of_group: dict[str, int] = {}
    for row in validated.rows:
        sets.add(row.node)
        if row.given_group:
            sets.merge(row.node, first_of_group.setdefault(row.given_group, row.node))
    smallest: dict[int, bytes] = {}
    for row in validated.rows:
        root = sets[row.node]
        smallest[root] = min(smallest.get(root, row.sha256), row.sha256)
    for row in validated.rows:
        row.group = smallest[sets[row.node]].hex()
    return compared, confirmed


def name_rows(rows: Sequence[Row]) -> None:
    """Set each row's file name: the base name of its path, or the path where several rows have that base name."""
    counts = Counter(base_name(row.path) for row in rows)
    for row in rows:
        name = base_name(row.path)
        row.file_name = printable(name if counts[name] == 1 else row.path)


def split_rows(rows: Sequence[Row], classes: Sequence[str], listed: int | None, seed: int) -> list[Rejected]:
    """Set each row's split; `listed` is the number of names on the test list, None without one.

    Images that a list, a folder or a table holds out keep their split, and so does the rest of their group.

    Returns the images to leave out: near-duplicates of a held-out image that are not held out themselves.

    Raises:
        DatasetError: a class has too few images, or the list names none of the images.
    """
    if listed is not None and not any(row.listed for row in rows):
        raise DatasetError(f"none of the {listed} names of the test list is among the {len(rows)} images")
    given = {row.own_split for row in rows} - {""}
    fixed: dict[str, str] = {}
    for split in SPLITS:  # a later split overrides an earlier one
        if split != "train" or given == set(SPLITS):
            fixed.update({row.group: split for row in rows if row.own_split == split})
    listed_sources = {row.source for row in rows if row.listed}

    def fractions(stratum: tuple[str, int]) -> tuple[float, float]:
        test = 0 if "test" in given else FRACTION
        if listed is not None:
            test = 0 if stratum[0] in listed_sources else FRACTION_BESIDE_LIST
        return test, 0 if "validation" in given else FRACTION

    split_of = assign_splits(
        [row.group for row in rows], [(row.source, row.label) for row in rows], seed, fixed, fractions
    )
    for row in rows:
        row.split = split_of[row.group]
    counts = Counter((row.split, row.label) for row in rows)
    needed = [split for split in SPLITS if split == "train" or split not in given]
    if small := [i for i in range(len(classes)) if not all(counts[split, i] for split in needed)]:
        images = Counter(row.label for row in rows)
        listing = ", ".join(f"{classes[label]} ({images[label]} images)" for label in small)
        raise DatasetError(
            f"too few good images for the splits {', '.join(needed)} in class {listing}: add images (near-duplicates and a "
            "group's images stay together), or leave the class out with --classes"
        )
    held_out: dict[str, str] = {}  # group -> its first image that is held out itself
    left_out = []
    for row in rows:
        if row.own_split == row.split:
            held_out.setdefault(row.group, row.file_name)
        elif row.split != "train" and row.group in fixed:
            left_out.append(row)
    detail = "shows a part of {}, or is of the same group"
    return [Rejected(r.path, NEAR.format(r.split), detail.format(held_out[r.group])) for r in left_out]


def decide_kinds(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, str]:
    """Return the origin of each source's images for the card: matek, acevedo, synthetic or own."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for row in rows:
        kind = "synthetic" if row.synthetic else published_as(row, classes[row.label]) or "own"
        counts[row.source][kind] += 1
    kinds = {}
    for source, counter in sorted(counts.items()):
        kind, n = counter.most_common(1)[0]
        certain = n == counter.total() or (n >= 0.9 * counter.total() and not counter["synthetic"])
        kinds[source] = kind if certain else "own"
    return kinds


def write_files(folder: Path, summary: Summary, sources: Sources, max_bytes: int) -> None:
    """Second pass: write the shards of every split, the two tables, the figures and the card."""
    # these import `datasets`, which takes seconds: not before the first pass has succeeded
    from dataset_script.card import card_text
    from dataset_script.figures import draw_figures
    from dataset_script.parquet import chunks, features, write_shard

    (folder / "data").mkdir()
    has_sources = list(summary.kinds) != [""]
    schema = features(summary.classes, has_sources).arrow_schema

    def read(row: Row) -> bytes:
        data = sources.read(row.path)
        if hashlib.sha256(data).digest() != row.sha256:
            raise DatasetError(f"{printable(row.path)} changed during the build: build again")
        return data

    with tqdm(total=len(summary.rows), desc="writing", unit="image", disable=None) as bar:
        for split in SPLITS:
            shards = list(chunks([row for row in summary.rows if row.split == split], max_bytes)) or [[]]
            for index, rows in enumerate(shards):
                name = f"{split}-{index:05d}-of-{len(shards):05d}.parquet"
                write_shard(folder / "data" / name, rows, schema, read, bar.update)
    columns = ("file_name", "label", "split", "group", "sha256", "on_test_list", "source")
    header = columns if has_sources else columns[:-1]
    cells = (
        (r.file_name, summary.classes[r.label], r.split, r.group, r.sha256.hex(), int(r.listed), r.source)
        for r in summary.rows
    )
    write_csv(folder / "splits.csv", header, (row[: len(header)] for row in cells))
    rejected = ((item.path, item.reason, item.detail) for item in summary.rejected)
    write_csv(folder / "rejected.csv", ("path", "reason", "detail"), rejected)
    draw_figures(folder, summary, read)
    (folder / "README.md").write_text(card_text(folder, summary), encoding="utf-8")
