"""Raw images in, a dataset repo as a folder out: `data/*.parquet`, `README.md`, `figures/`, `splits.csv`, `rejected.csv`.

Two passes over the files: the first decodes and fingerprints each one (in worker processes), the second writes the accepted
ones as they are. In between there are only small records, a few hundred bytes an image. The folder is built beside OUT and
put in its place at the end: a reader sees all of it or nothing.
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

from dataset_script.arguments import holds_other_things
from dataset_script.classes import arrange, find_listed
from dataset_script.folders import class_name
from dataset_script.labels import published_as
from dataset_script.near_duplicates import POINT, Spool, link
from dataset_script.records import NEAR, Rejected, Row, Summary
from dataset_script.source import DatasetError, Sources, base_name
from dataset_script.splits import FRACTION, FRACTION_BESIDE_LIST, SPLITS, assign_splits
from dataset_script.tables import read_option, read_test_names, write_csv
from dataset_script.validate import Validated, read_luminance, validate
from hub_model.inference.text import shown


def build(raws: Sequence[str], out: Path, options: argparse.Namespace) -> Summary:
    """Build the dataset folder `out` from raw folders or zips, each with its source's name before it (`NAME=RAW`) or a lone one.

    `options` are those of `python -m dataset_script build --help`.

    Raises:
        DatasetError: the input does not make a dataset, or `out` is in the way.
        OSError: a file cannot be written (disk full).
    """
    place = out.resolve()
    if Path.cwd().is_relative_to(place):
        raise DatasetError(f"{out} is the current folder or one above it: name another for the dataset")
    sources = Sources(raws, options.follow_links, options.zip_encoding)
    for source in sources.parts.values():
        if place.is_relative_to(source.place) or source.place.is_relative_to(place):
            raise DatasetError(
                f"{out} and the raw data lie one inside the other: choose another place for the dataset"
            )
    names = None if options.test_names is None else read_test_names(options.test_names)
    with replaced_at_the_end(out, options.overwrite) as folder:
        table = options.labels and (options.labels.name, read_option("--labels", options.labels))
        wanted = [class_name(name) for name in options.classes]
        folders = arrange(sources, wanted, options.group_by, table)
        listed = find_listed(folders, names or ())
        with contextlib.closing(Spool(POINT, "bits", folder)) as store:
            found = validate(
                sources, folders, set().union(*listed.values()), store,
                per_class=options.per_class, seed=options.seed, workers=options.workers,
            )  # fmt: skip
            if not found.rows:
                reasons = Counter(item.reason for item in found.rejected).most_common()
                listing = ", ".join(f"{reason} ({n:,})" for reason, n in reasons)
                raise DatasetError(f"none of the files can be kept: {listing}")
            for row in found.rows:
                row.source = sources.name_of(row.path)
                row.given_split = folders.split_of.get(row.path, "")
                row.given_group = folders.group_of.get(row.path, "")
            compared, confirmed = group_rows(found, sources, store)
        name_rows(found.rows)
        classes = list(folders.files)
        found.rejected += split_rows(found.rows, classes, None if names is None else len(names), options.seed)
        refused = {item.path for item in found.rejected}
        rows = [row for row in found.rows if row.path not in refused]
        rows.sort(key=lambda row: hashlib.sha256(b"order:" + row.sha256).digest())
        kept = {row.path for row in rows}
        summary = Summary(
            out, classes, folders.seen, rows, sorted(found.rejected, key=lambda item: item.path), folders.left_out,
            found.spare, len(found.paths), compared, confirmed, options.seed, decide_kinds(rows, classes),
            folders.notes, None if names is None else len(names),
            sum(not kept.isdisjoint(paths) for paths in listed.values()),
        )  # fmt: skip
        write_files(folder, summary, sources, options.shard_mb * 2**20)
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


def group_rows(found: Validated, source, store: Spool) -> tuple[int, int]:
    """Give each row its group: the smallest SHA-256 among its near-duplicates and those of its given group.

    Returns how many pairs of pictures were compared, and how many are near-duplicates.
    """
    sets, compared, confirmed = link(store, lambda node: read_luminance(source.read(found.paths[node])))
    first_of_group: dict[str, int] = {}
    for row in found.rows:
        sets.add(row.node)
        if row.given_group:
            sets.merge(row.node, first_of_group.setdefault(row.given_group, row.node))
    smallest: dict[int, bytes] = {}
    for row in found.rows:
        root = sets[row.node]
        smallest[root] = min(smallest.get(root, row.sha256), row.sha256)
    for row in found.rows:
        row.group = smallest[sets[row.node]].hex()
    return compared, confirmed


def name_rows(rows: Sequence[Row]) -> None:
    """Give each row its file name; where several kept files have one name, their paths instead."""
    names = Counter(base_name(row.path) for row in rows)
    for row in rows:
        name = base_name(row.path)
        row.file_name = shown(name if names[name] == 1 else row.path)


def split_rows(rows: Sequence[Row], classes: Sequence[str], names: int | None, seed: int) -> list[Rejected]:
    """Give each row its split; `names` is the number of names on the test list, None without one.

    Images that a list, a folder or a table names as held out keep their split, and take their group with them.

    Returns the images that must be left out: near-duplicates of a held-out one that are not held out themselves.

    Raises:
        DatasetError: a class has too few images, or the list names none of the images.
    """
    if names is not None and not any(row.listed for row in rows):
        raise DatasetError(f"none of the {names} names of the test list is among the {len(rows)} images")
    wanted = ["test" if row.listed else row.given_split for row in rows]
    given = set(wanted) - {""}
    fixed: dict[str, str] = {}
    for split in SPLITS:  # the later ones win
        if split != "train" or given == set(SPLITS):
            fixed.update({row.group: split for row, own in zip(rows, wanted, strict=True) if own == split})
    listed_sources = {row.source for row in rows if row.listed}

    def fractions(stratum: tuple[str, int]) -> tuple[float, float]:
        test = 0 if "test" in given else FRACTION
        if names is not None:
            test = 0 if stratum[0] in listed_sources else FRACTION_BESIDE_LIST
        return test, 0 if "validation" in given else FRACTION

    split_of = assign_splits(
        [row.group for row in rows], [(row.source, row.label) for row in rows], seed, fixed, fractions
    )
    for row in rows:
        row.split = split_of[row.group]
    counts = Counter((row.split, row.label) for row in rows)
    needed = [split for split in SPLITS if split == "train" or split not in given]
    poor = [label for label in range(len(classes)) if any(not counts[split, label] for split in needed)]
    if poor:
        images = Counter(row.label for row in rows)
        named = ", ".join(f"{classes[label]} ({images[label]} images)" for label in poor)
        raise DatasetError(
            f"too few good images for the splits {', '.join(needed)} in class {named}: add images (near-duplicates and a "
            "group's images stay together), or leave the class out with --classes"
        )
    first = {}
    for row, own in zip(rows, wanted, strict=True):
        if own == row.split:
            first.setdefault(row.group, row.file_name)
    return [
        Rejected(
            row.path, NEAR.format(row.split), f"shows a part of {first[row.group]}, or is of the same group"
        )
        for row, own in zip(rows, wanted, strict=True)
        if row.split != "train" and row.group in fixed and own != row.split
    ]


def decide_kinds(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, str]:
    """Return, for each source, matek, acevedo, synthetic or own: what the card may say about its images' origin."""
    looks: dict[str, Counter] = defaultdict(Counter)
    for row in rows:
        looks[row.source][
            "synthetic" if row.synthetic else published_as(row, classes[row.label]) or "own"
        ] += 1
    kinds = {}
    for source, found in sorted(looks.items()):
        kind, number = found.most_common(1)[0]
        sure = number == found.total() or (number >= 0.9 * found.total() and not found["synthetic"])
        kinds[source] = kind if sure else "own"
    return kinds


def write_files(folder: Path, summary: Summary, source, max_bytes: int) -> None:
    """Second pass: write the shards of every split, the two tables and the card."""
    # these import `datasets`, in seconds: a build may have failed before
    from dataset_script.card import write_card
    from dataset_script.figures import draw_figures
    from dataset_script.parquet import chunks, features, write_shard

    (folder / "data").mkdir()
    sources = list(summary.kinds) != [""]
    schema = features(summary.classes, sources).arrow_schema

    def read(row: Row) -> bytes:
        data = source.read(row.path)
        if hashlib.sha256(data).digest() != row.sha256:
            raise DatasetError(f"{shown(row.path)} changed while the dataset was being built: build again")
        return data

    with tqdm(total=len(summary.rows), desc="writing", unit="image", disable=None) as bar:
        for split in SPLITS:
            parts = list(chunks([row for row in summary.rows if row.split == split], max_bytes)) or [[]]
            for number, part in enumerate(parts):
                name = f"{split}-{number:05d}-of-{len(parts):05d}.parquet"
                write_shard(folder / "data" / name, part, schema, read, bar.update)
    columns = ("file_name", "label", "split", "group", "sha256", "on_test_list", "source")
    header = columns if sources else columns[:-1]
    cells = (
        (r.file_name, summary.classes[r.label], r.split, r.group, r.sha256.hex(), int(r.listed), r.source)
        for r in summary.rows
    )
    write_csv(folder / "splits.csv", header, (row[: len(header)] for row in cells))
    rejected = ((item.path, item.reason, item.detail) for item in summary.rejected)
    write_csv(folder / "rejected.csv", ("path", "reason", "detail"), rejected)
    draw_figures(folder, summary, read)
    write_card(folder, summary)
