"""`python -m hub_model`: build, check, push and verify a model repo, and measure its calibration and robustness."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
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
    """Return the command's arguments; `run(arguments)` executes it and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m hub_model", description=__doc__.partition(": ")[2])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add_command(name: str, run: Callable[[argparse.Namespace], int], description: str) -> Callable:
        command = commands.add_parser(name, help=description)
        command.set_defaults(run=run)
        return command.add_argument

    model_repo = {"type": Path, "metavar": "FOLDER", "help": "model repo folder, as created by build"}
    add = add_command("build", run_build, "create a model repo folder from a run folder")
    add("run_folder", type=Path, metavar="RUN", help="--output_dir of train_accelerate.py")
    add("out", type=Path, metavar="OUT", help="folder to create")
    add("--overwrite", action="store_true", help="replace the model repo in OUT (default: refuse)")
    add = add_command("average", run_average, "average the weights of finished runs of one architecture")
    add("out", type=Path, metavar="OUT", help="run folder to create; rerun the first run's command with --output_dir OUT "
        "--resume --reestimate_batch_norm to evaluate it")  # fmt: skip
    add("runs", nargs="+", metavar="RUN[=WEIGHT]", help="run folder that OUT resumes from, then other run folders or model "
        "repos, each with its weight (default: 1)")  # fmt: skip
    add = add_command("check", run_check, "recompute what follows from weights, logits and history")
    add("folder", **model_repo)
    add = add_command("push", run_push, "publish a model repo folder in one commit")
    add("folder", **model_repo)
    add("repo", metavar="OWNER/NAME", help="model repo to create or update")
    add("--private", action="store_true", help="create it private (default: public)")
    add("--dataset", metavar="OWNER/NAME", help="dataset repo that the card links and takes example images from "
        "(default: the training dataset, if it is on a Hub)")  # fmt: skip
    add("--space", metavar="OWNER/NAME", help="Space that the card links (default: none)")
    purpose = "load a published repo in a fresh process, compare its logits and run its card's snippets"
    add = add_command("verify", run_verify, purpose)
    add("repo", metavar="OWNER/NAME", help="published model repo")
    add("--against", type=Path, help="folder to compare with (default: the repo's own files)")
    add_commands(commands)
    score.add_arguments(commands.add_parser("score", help="score the images of a folder or dataset"))
    return parser.parse_args(argv)


def run_build(arguments: argparse.Namespace) -> int:
    metrics = build(arguments.run_folder, arguments.out, arguments.overwrite)
    for split, figures in metrics["splits"].items():
        accuracy, macro_f1, images = figures["accuracy"], figures["macro_f1"], figures["images"]
        print(f"{split}: accuracy {accuracy:.4f}, macro-F1 {macro_f1:.4f}, images {images}")
    print(f"{arguments.out} is ready, publish it with: python -m hub_model push {arguments.out} OWNER/NAME")
    return 0


def run_average(arguments: argparse.Namespace) -> int:
    average(arguments.out, arguments.runs)
    print(f"{arguments.out} has the averaged weights; evaluate them with the first run's command and "
          f"--output_dir {arguments.out} --resume --reestimate_batch_norm")  # fmt: skip
    return 0


def run_check(arguments: argparse.Namespace) -> int:
    problems = check(arguments.folder)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print(
            f"{arguments.folder}: everything that follows from its weights, logits and history agrees; figures measured on "
            "images (OOD inputs, robustness, input sizes) and the normalization are not rechecked"
        )
    return 1 if problems else 0


def run_push(arguments: argparse.Namespace) -> int:
    published = push(arguments.folder, arguments.repo, arguments.private, arguments.dataset, arguments.space)
    print(
        f"{published}: {'published in one commit' if published.changed else 'unchanged, nothing to commit'}"
    )
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    result = verify(arguments.repo, arguments.against)
    print(
        f"{arguments.repo} loads in timm and transformers with the classes {', '.join(result['label_names'])}; its logits are "
        f"bit-identical to the folder's, and the {result['snippets']} snippets of its card run"
    )
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run a command; an expected error is printed as one sentence, with exit status 1."""
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
