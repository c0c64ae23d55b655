"""`python -m dataset_script synthetic|build|push`: see `python -m dataset_script COMMAND --help`."""

from __future__ import annotations

import argparse
import csv
import errno
import os
import signal
import sys
from pathlib import Path

from dataset_script.arguments import seed, whole_number
from dataset_script.build import build
from dataset_script.records import Summary
from dataset_script.source import DatasetError
from dataset_script.splits import SPLITS
from dataset_script.synthetic_cells import draw_folder
from hub_model.inference.errors import RepoError
from hub_model.inference.text import printable


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m dataset_script", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    synthetic = "write synthetic cells of the seven classes as OUT/CLASS/CLASS_synthetic_NNNNN.jpg"
    add = commands.add_parser("synthetic", help=synthetic, description=synthetic).add_argument
    add("out", type=Path, metavar="OUT", help="raw folder to write")
    add("--per_class", type=whole_number(1), default=40, metavar="N", help="images per class (default: 40)")
    add("--seed", type=seed, default=0, help="random seed of the images (default: 0)")

    add = commands.add_parser(
        "build",
        help="build a dataset folder from raw images",
        description="RAW is a folder (one subfolder per class, at any depth; splits such as train/ and test/ are kept), a zip, "
        "or kaggle:OWNER/DATASET. Several need a source name each: bone_marrow=FOLDER peripheral_blood=FOLDER.",
    ).add_argument
    add("raw", nargs="+", metavar="RAW", help="where the images are")
    add("out", type=Path, metavar="OUT", help="dataset folder to write")
    add("--classes", type=class_list, default=(), metavar="A,B",
        help="names of the class folders, wherever they are (default: all; quote a name that contains a comma)")  # fmt: skip
    add("--labels", type=Path, metavar="FILE",
        help="table of file names and labels, optionally with a split and a group column: CSV, TSV, JSON lines or "
        "Parquet (default: metadata.csv or labels.csv in RAW, if its folders are not classes)")  # fmt: skip
    add("--group_by", metavar="NAME",
        help="keep the images of a folder whose name begins with NAME, such as patient, in one split (default: "
        "near-duplicates only)")  # fmt: skip
    per_class = "at most N images per class, sampled by --seed (default: all)"
    add("--per_class", type=whole_number(1), metavar="N", help=per_class)
    add("--seed", type=seed, default=0, help="random seed of the splits and of --per_class (default: 0)")
    add("--test_names", type=Path, metavar="FILE",
        help="published test list: text or CSV of file names, with folders where names repeat (default: 15%% of each "
        "class)")  # fmt: skip
    links = "read symlinks that point outside RAW (default: list them as rejected)"
    add("--follow_links", action="store_true", help=links)
    code_page = "code page of file names in zips, such as cp866 or gbk (default: UTF-8, else DOS)"
    add("--zip_encoding", metavar="NAME", help=code_page)
    add("--strict", action="store_true", help="exit 1 if any file was rejected (default: list it)")
    add("--overwrite", action="store_true", help="replace the dataset in OUT (default: refuse)")
    shard_mb = "maximum MB of images per Parquet file (default: 250)"
    add("--shard_mb", type=whole_number(1), default=250, help=shard_mb)
    cores = len(os.sched_getaffinity(0))
    add("--workers", type=whole_number(1), default=cores, help="worker processes (default: one per core)")

    description = "publish a built folder as a dataset repo, in one commit"
    add = commands.add_parser("push", help=description).add_argument
    add("out", type=Path, metavar="OUT", help="dataset folder")
    add("repo_id", metavar="OWNER/NAME", help="dataset repo, created if missing")
    add("--private", action="store_true", help="make the repo private (default: public)")
    add("--revision", help="branch, created if missing (default: main)")
    add("--model", metavar="OWNER/NAME", help="model repo that the card links to (default: none)")
    add("--space", metavar="OWNER/NAME", help="Space that the card links to (default: none)")
    return top


def class_list(text: str) -> tuple[str, ...]:
    """Return the names in a comma-separated list; a name that contains a comma is double-quoted."""
    # `printable` escapes newlines, which csv.reader refuses outside quotes
    names = next(csv.reader([printable(text.strip())], skipinitialspace=True))
    return tuple(filter(None, map(str.strip, names)))


def print_summary(summary: Summary) -> None:
    """Print how many files were kept and rejected, the splits, and where the dataset is."""
    print(f"{summary.seen:,} files seen, {len(summary.rows):,} kept, {len(summary.rejected):,} rejected"
          + (f", {summary.left_out:,} of other classes left out" if summary.left_out else "")
          + (f", {summary.spare:,} more than --per_class left out" if summary.spare else ""))  # fmt: skip
    for note in summary.notes:
        print(note)
    for reason, n in sorted(summary.reasons.items()):
        print(f"  {n:7,}  {reason}")
    width = max(len(name) for name in ("all", *summary.classes))
    print(" " * width + "".join(f"{split:>12}" for split in SPLITS))
    for label, name in [*enumerate(summary.classes), (None, "all")]:
        print(f"{name:<{width}}" + "".join(f"{summary.count(split, label):12,}" for split in SPLITS))
    sizes = summary.shared_groups
    print(
        f"groups with several images: {len(sizes):,} ({sum(sizes):,} images); pairs compared: {summary.compared:,}"
    )
    if summary.listed is not None:
        missing = summary.listed - summary.listed_kept
        print(f"test list: {summary.listed:,} names, {summary.listed_kept:,} in the dataset, {missing:,} not; "
              f"{summary.near_held_out:,} near-duplicates of held-out images left out")  # fmt: skip
        untested = [name for label, name in enumerate(summary.classes) if not summary.count("test", label)]
        if untested:
            print(f"no test images of {', '.join(untested)}: the list names none")
    print(
        f"card: {', '.join(sorted(set(summary.kinds.values())))}; {summary.out} is ready, publish it with: "
        f"python -m dataset_script push {summary.out} OWNER/NAME"
    )


def run(args: argparse.Namespace) -> int:
    if args.command == "synthetic":
        draw_folder(args.out, args.per_class, args.seed)
        return 0
    if args.command == "push":
        from dataset_script.push import push

        options = {name: getattr(args, name) for name in ("private", "revision", "model", "space")}
        pushed = push(args.out, args.repo_id, **options)
        print(f"{pushed}: {'published in one commit' if pushed.changed else 'already up to date'}")
        return 0
    summary = build(args.raw, args.out, args)
    print_summary(summary)
    unexpected = sum(not item.is_expected for item in summary.rejected)
    if args.strict and unexpected:
        print(f"--strict: {unexpected:,} files were rejected, see {args.out}/rejected.csv", file=sys.stderr)
        return 1
    return 0


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # exits like Ctrl-C
    try:
        return run(args)
    except (DatasetError, RepoError) as error:
        message = str(error)
    except FileExistsError as error:
        message = f"{error.filename} already exists: choose another folder"
    except OSError as error:
        message = f"{error.strerror or error}: {error.filename or ''}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = "the disk is full: nothing was written"
    except KeyboardInterrupt:
        message = "stopped; nothing was written"
    print(f"dataset_script {args.command}: {printable(message)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
