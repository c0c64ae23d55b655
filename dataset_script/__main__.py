"""`python -m dataset_script synthetic|build|push`: see `python -m dataset_script COMMAND --help`."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from pathlib import Path

from dataset_script.arguments import seed, whole_number
from dataset_script.build import Options, build
from dataset_script.records import NEAR_TEST, Summary
from dataset_script.source import DatasetError, shown
from dataset_script.splits import SPLITS
from dataset_script.synthetic_cells import draw_folder
from hub_model.inference.errors import RepoError


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m dataset_script", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    draw = commands.add_parser(
        "synthetic",
        help="write synthetic cells of the seven classes as OUT/CLASS/CLASS_synthetic_NNNNN.jpg",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    draw.add_argument("out", type=Path, metavar="OUT")
    draw.add_argument(
        "--per_class", type=whole_number(1), default=40, metavar="N", help="images of each class"
    )
    draw.add_argument("--seed", type=seed, default=0, help="decides every image")

    make = commands.add_parser("build", help="make a dataset folder of raw images")
    make.add_argument(
        "raw", help="folder (one folder a class, files at any depth), zip, or kaggle:OWNER/DATASET"
    )
    make.add_argument("out", type=Path)
    make.add_argument(
        "--classes", type=lambda text: tuple(filter(None, text.split(","))), default=(), metavar="A,B"
    )
    make.add_argument(
        "--per_class", type=whole_number(1), metavar="N", help="at most N images a class, drawn by seed"
    )
    make.add_argument("--seed", type=seed, default=0, help="of the splits and of --per_class")
    make.add_argument(
        "--test_names",
        type=Path,
        metavar="FILE",
        help="published test list: text or CSV of file names, with folders where names repeat",
    )
    make.add_argument("--strict", action="store_true", help="exit 1 when any file was rejected")
    make.add_argument("--overwrite", action="store_true", help="replace the dataset in OUT")
    make.add_argument(
        "--card", choices=("auto", "matek", "synthetic", "own"), default="auto",
        help="what the card says about origin; auto: synthetic if every image says so in its JPEG comment, matek if the files "
        "have the names and form of the published set, own otherwise",
    )  # fmt: skip
    make.add_argument(
        "--shard_mb", type=whole_number(1), default=250, help="images in one Parquet file, at most"
    )
    make.add_argument("--workers", type=whole_number(1), help="processes that decode (default: one a core)")

    send = commands.add_parser("push", help="publish a built folder as a dataset repo, in one commit")
    send.add_argument("out", type=Path)
    send.add_argument("repo_id", metavar="OWNER/NAME")
    send.add_argument("--private", action="store_true")
    send.add_argument("--revision", help="branch (made where it is missing)")
    return top


def print_summary(summary: Summary) -> None:
    """Print what was seen, kept and rejected, and where it went."""
    counts = summary.counts
    print(f"{summary.seen:,} files seen, {len(summary.rows):,} kept, {len(summary.rejected):,} rejected"
          + (f", {summary.left_out:,} of other classes left out" if summary.left_out else "")
          + (f", {summary.spare:,} more than --per_class left out" if summary.spare else ""))  # fmt: skip
    for reason, number in sorted(summary.reasons.items()):
        print(f"  {number:7,}  {reason}")
    width = max(len(name) for name in ("all", *summary.classes))
    print(" " * width + "".join(f"{split:>12}" for split in SPLITS))
    for label, name in enumerate(summary.classes):
        print(f"{name:<{width}}" + "".join(f"{counts[split, label]:12,}" for split in SPLITS))
    print(
        f"{'all':<{width}}"
        + "".join(f"{sum(r.split == split for r in summary.rows):12,}" for split in SPLITS)
    )
    shared = summary.shared_groups
    print(
        f"{len(shared):,} groups of near-duplicates ({sum(shared):,} images); {summary.compared:,} pairs compared"
    )
    if summary.listed is not None:
        print(f"test list: {summary.listed:,} names, {summary.here:,} of them here, {summary.listed - summary.here:,} absent; "
              f"{summary.reasons[NEAR_TEST]:,} near-duplicates of a listed one left out")  # fmt: skip
        bare = [name for label, name in enumerate(summary.classes) if not counts["test", label]]
        if bare:
            print(f"no test image of {', '.join(bare)}: the list names none")
    print(
        f"card: {summary.kind}; {summary.out} is ready, publish it with: python -m dataset_script push {summary.out} OWNER/NAME"
    )


def run(args: argparse.Namespace) -> int:
    if args.command == "synthetic":
        draw_folder(args.out, args.per_class, args.seed)
        return 0
    if args.command == "push":
        from dataset_script.push import push

        done = push(args.out, args.repo_id, private=args.private, revision=args.revision)
        print(
            f"{done}: {'published in one commit' if done.changed else 'has exactly this already, nothing to do'}"
        )
        return 0
    options = {name: value for name, value in vars(args).items() if name not in ("command", "raw", "out")}
    options["workers"] = args.workers or len(os.sched_getaffinity(0))
    summary = build(args.raw, args.out, Options(**options))
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
