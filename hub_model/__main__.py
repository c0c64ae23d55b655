"""`python -m hub_model`: build, check, push and verify a model repo, and measure its calibration and robustness."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hub_model import score
from hub_model.average import average
from hub_model.build import build
from hub_model.check import check
from hub_model.inference.errors import RepoError
from hub_model.push import push
from hub_model.studies import add_commands
from hub_model.verify import verify


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command's arguments; `run(arguments)` carries it out and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m hub_model", description=__doc__.partition(": ")[2])
    model_repo = {"type": Path, "metavar": "FOLDER", "help": "model repo folder, as build makes it"}
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    made = commands.add_parser("build", help="make a model repo folder of a run folder")
    made.add_argument("run_folder", type=Path, metavar="RUN", help="--output_dir of train_accelerate.py")
    made.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    made.add_argument(
        "--overwrite", action="store_true", help="replace the model repo in OUT (default: refuse)"
    )
    made.set_defaults(run=run_build)
    averaged = commands.add_parser("average", help="average the weights of finished runs of one architecture")
    averaged.add_argument("out", type=Path, metavar="OUT", help="run folder to make; rerun the first run's command "
                          "with --output_dir OUT --resume --reestimate_batch_norm to measure it")  # fmt: skip
    averaged.add_argument("runs", nargs="+", metavar="RUN[=WEIGHT]", help="run folder, which OUT continues, then other "
                          "run folders or model repos, each with its weight (default: 1)")  # fmt: skip
    averaged.set_defaults(run=run_average)
    checked = commands.add_parser("check", help="recompute what follows from weights, logits and history")
    checked.add_argument("folder", **model_repo)
    checked.set_defaults(run=run_check)
    pushed = commands.add_parser("push", help="publish a model repo folder, in one commit")
    pushed.add_argument("folder", **model_repo)
    pushed.add_argument("repo", metavar="OWNER/NAME", help="model repo to create or update")
    pushed.add_argument("--private", action="store_true", help="create it private (default: public)")
    pushed.add_argument("--dataset", metavar="OWNER/NAME", help="dataset repo that the card links and takes example "
                        "images from (default: the one trained on, where it is on a Hub)")  # fmt: skip
    pushed.add_argument("--space", metavar="OWNER/NAME", help="Space that the card links (default: none)")
    pushed.set_defaults(run=run_push)
    verified = commands.add_parser(
        "verify",
        help="load a published repo in a fresh process, compare its logits and run its card's snippets",
    )
    verified.add_argument("repo", metavar="OWNER/NAME", help="published model repo")
    verified.add_argument(
        "--against", type=Path, help="folder to compare with (default: the repo's own files)"
    )
    verified.set_defaults(run=run_verify)
    add_commands(commands)
    score.add_arguments(commands.add_parser("score", help="score the images of a folder or dataset"))
    return parser.parse_args(argv)


def run_build(arguments: argparse.Namespace) -> int:
    metrics = build(arguments.run_folder, arguments.out, arguments.overwrite)
    for split, part in metrics["splits"].items():
        print(
            f"{split}: accuracy {part['accuracy']:.4f}, macro-F1 {part['macro_f1']:.4f}, images {part['images']}"
        )
    print(f"{arguments.out} is ready, publish it with: python -m hub_model push {arguments.out} OWNER/NAME")
    return 0


def run_average(arguments: argparse.Namespace) -> int:
    average(arguments.out, arguments.runs)
    print(f"{arguments.out} has the averaged weights; measure it with the first run's command and "
          f"--output_dir {arguments.out} --resume --reestimate_batch_norm")  # fmt: skip
    return 0


def run_check(arguments: argparse.Namespace) -> int:
    problems = check(arguments.folder)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print(
            f"{arguments.folder}: all that follows from its weights, logits and history agrees; figures measured on images "
            "(OOD inputs, robustness, input sizes) and the normalization are not rechecked"
        )
    return 1 if problems else 0


def run_push(arguments: argparse.Namespace) -> int:
    done = push(arguments.folder, arguments.repo, arguments.private, arguments.dataset, arguments.space)
    print(
        f"{done}: {'published in one commit' if done.changed else 'has exactly this already, nothing to do'}"
    )
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    found = verify(arguments.repo, arguments.against)
    print(
        f"{arguments.repo} loads in timm and transformers with the classes {', '.join(found['label_names'])}; its logits are "
        f"bit-identical to the folder's, and the {found['snippets']} snippets of its card run"
    )
    return 0


def main(argv: list[str] | None = None) -> int:
    """Carry a command out; expected failures end with one sentence and exit code 1."""
    arguments = parse(argv)
    try:
        return arguments.run(arguments)
    except RepoError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename or 'a file'}: {error.strerror or error}"
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
