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
from hub_model.inference.text import shown


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m dataset_script", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    drawn = "write synthetic cells of the seven classes as OUT/CLASS/CLASS_synthetic_NNNNN.jpg"
    add = commands.add_parser("synthetic", help=drawn, description=drawn).add_argument
    add("out", type=Path, metavar="OUT", help="the raw folder")
    add(
        "--per_class",
        type=whole_number(1),
        default=40,
        metavar="N",
        help="of each class (default: 40)",
    )
    add("--seed", type=seed, default=0, help="decides every image (default: 0)")

    add = commands.add_parser(
        "build",
        help="make a dataset folder of raw images",
        description="RAW is a folder (one folder a class, at any depth; the splits of train/, test/ and the like are kept), a "
        "zip, or kaggle:OWNER/DATASET. Of several, each needs its source's name: bone_marrow=FOLDER peripheral_blood=FOLDER.",
    ).add_argument
    add("raw", nargs="+", metavar="RAW", help="where the images are")
    add("out", type=Path, metavar="OUT", help="the dataset folder")
    add("--classes", type=class_list, default=(), metavar="A,B",
        help="folders that are the classes, wherever they are (default: all; a name with a comma in quotes)")  # fmt: skip
    add("--labels", type=Path, metavar="FILE",
        help="table of file names and labels, with a split and a group column if you like: CSV, TSV, JSON lines or "
        "Parquet (default: metadata.csv or labels.csv in RAW, where the folders are no classes)")  # fmt: skip
    add("--group_by", metavar="NAME",
        help="keep together, in one split, the images of a folder whose name begins with NAME, such as patient "
        "(default: near-duplicates only)")  # fmt: skip
    capped = "at most N images a class, sampled by seed (default: all)"
    add("--per_class", type=whole_number(1), metavar="N", help=capped)
    add("--seed", type=seed, default=0, help="of the splits and of --per_class (default: 0)")
    add("--test_names", type=Path, metavar="FILE",
        help="published test list: text or CSV of file names, with folders where names repeat (default: 15%% of each "
        "class)")  # fmt: skip
    links = "read links that lead out of RAW (default: list them as rejected)"
    add("--follow_links", action="store_true", help=links)
    code_page = "code page of names in zips, such as cp866 or gbk (default: UTF-8, else DOS)"
    add("--zip_encoding", metavar="NAME", help=code_page)
    add("--strict", action="store_true", help="exit 1 when any file was rejected (default: list it)")
    add("--overwrite", action="store_true", help="replace the dataset in OUT (default: refuse)")
    size = "images in one Parquet file, at most (default: 250)"
    add("--shard_mb", type=whole_number(1), default=250, help=size)
    cores = len(os.sched_getaffinity(0))
    add("--workers", type=whole_number(1), default=cores, help="processes that decode (default: one a core)")

    add = commands.add_parser(
        "push", help="publish a built folder as a dataset repo, in one commit"
    ).add_argument
    add("out", type=Path, metavar="OUT", help="the dataset folder")
    add("repo_id", metavar="OWNER/NAME", help="the dataset repo, made where it is missing")
    add("--private", action="store_true", help="make the repo private (default: public)")
    add("--revision", help="branch, made where it is missing (default: main)")
    add("--model", metavar="OWNER/NAME", help="model repo that the card links (default: none)")
    add("--space", metavar="OWNER/NAME", help="Space that the card links (default: none)")
    return top


def class_list(text: str) -> tuple[str, ...]:
    """Return the names of a comma-separated list; a name with a comma stands in double quotes."""
    return tuple(name.strip() for name in next(csv.reader([text], skipinitialspace=True), []) if name.strip())


def print_summary(summary: Summary) -> None:
    """Print what was seen, kept and rejected, and where it went."""
    print(f"{summary.seen:,} files seen, {len(summary.rows):,} kept, {len(summary.rejected):,} rejected"
          + (f", {summary.left_out:,} of other classes left out" if summary.left_out else "")
          + (f", {summary.spare:,} more than --per_class left out" if summary.spare else ""))  # fmt: skip
    for note in summary.notes:
        print(note)
    for reason, number in sorted(summary.reasons.items()):
        print(f"  {number:7,}  {reason}")
    width = max(len(name) for name in ("all", *summary.classes))
    print(" " * width + "".join(f"{split:>12}" for split in SPLITS))
    for label, name in [*enumerate(summary.classes), (None, "all")]:
        print(f"{name:<{width}}" + "".join(f"{summary.count(split, label):12,}" for split in SPLITS))
    shared = summary.shared_groups
    print(
        f"{len(shared):,} groups of near-duplicates ({sum(shared):,} images); {summary.compared:,} pairs compared"
    )
    if summary.listed is not None:
        print(f"test list: {summary.listed:,} names, {summary.here:,} of them here, {summary.listed - summary.here:,} absent; "
              f"{summary.near_held_out:,} near-duplicates of a listed one left out")  # fmt: skip
        bare = [name for label, name in enumerate(summary.classes) if not summary.count("test", label)]
        if bare:
            print(f"no test image of {', '.join(bare)}: the list names none")
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
        done = push(args.out, args.repo_id, **options)
        print(
            f"{done}: {'published in one commit' if done.changed else 'has exactly this already, nothing to do'}"
        )
        return 0
    summary = build(args.raw, args.out, args)
    print_summary(summary)
    unexpected = sum(not item.is_expected for item in summary.rejected)
    if args.strict and unexpected:
        print(
            f"--strict: {unexpected:,} files were rejected, see {args.out}/rejected.csv",
            file=sys.stderr,
        )
        return 1
    return 0


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    try:
        return run(args)
    except (DatasetError, RepoError) as error:
        message = str(error)
    except FileExistsError as error:
        message = f"{error.filename} is there already: choose another folder"
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        message = (
            "the disk is full: nothing was written"
            if full
            else f"{error.strerror or error}: {error.filename or ''}"
        )
    except KeyboardInterrupt:
        message = "stopped; nothing was written"
    print(f"dataset_script {args.command}: {shown(message)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
