"""The options of `train_accelerate.py`: argv in, one checked namespace out. Every default trains well on a few thousand crops."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
from pathlib import Path

from dataset_script.arguments import not_negative, positive, real_number, seed, share, whole_number
from training import TrainingError

LARGEST_BATCH, LARGEST_BUFFER = 2**16, 2**31 - 1
a_rate = real_number(lambda value: 0 < value <= 1e30, "a number above 0 and at most 1e30")
a_factor = real_number(lambda value: 0 < value <= 1, "a number above 0 and at most 1")
a_time = real_number(lambda value: 0 < value <= 1_000_000, "a number above 0 and at most 1,000,000")

# What may differ between a run and its resumption without changing the result.
FREE_ON_RESUME = {
    "dataset_revision",  # what it stands for is compared
    "output_dir",
    "resume",
    "overwrite",
    "workers",
    "log_with",
    "checkpoint_minutes",
    "keep_checkpoints",
    "peer_timeout",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser: one group for each question a user has."""
    parser = argparse.ArgumentParser(
        prog="train_accelerate.py",
        description="Train an image classifier on a dataset of cell crops; `accelerate launch` it for several processes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    data = parser.add_argument_group("data: which images")
    data.add_argument(
        "--dataset", required=True, help="dataset repo OWNER/NAME, or a folder that dataset_script built"
    )
    data.add_argument("--dataset_revision", help="branch, tag or commit of the dataset repo")
    data.add_argument("--dataset_config", help="configuration of the dataset, where it has several")
    data.add_argument("--image_column", default="image")
    data.add_argument("--label_column", default="label")
    data.add_argument("--train_split", default="train")
    data.add_argument("--validation_split", default="validation")
    data.add_argument(
        "--test_split", default="test", help="scored once, at the end; may be missing from the dataset"
    )
    data.add_argument(
        "--data", choices=("auto", "memory", "stream"), default="auto", help="where decoded images are kept"
    )
    data.add_argument(
        "--workers", type=whole_number(0), default=2, help="threads that decode while streaming"
    )
    data.add_argument(
        "--shuffle_buffer",
        type=whole_number(1, LARGEST_BUFFER),
        default=2000,
        help="images shuffled together while streaming",
    )

    model = parser.add_argument_group("model: what is trained, and from where")
    model.add_argument("--model", help="timm architecture (default: that of --init_from, else rexnet_150)")
    model.add_argument(
        "--pretrained", action=argparse.BooleanOptionalAction, default=True, help="ImageNet weights via timm"
    )
    model.add_argument(
        "--init_from", help="hf-hub:OWNER/NAME, a run folder, or a .safetensors file: fine-tune that"
    )
    model.add_argument(
        "--image_size", type=whole_number(32), help="pixels a side (default: the start model's own, else 160)"
    )
    model.add_argument(
        "--size_schedule",
        type=size_schedule,
        default=[],
        metavar="0:96,0.7:128",
        help="smaller images first, as PROGRESS:PIXELS pairs; the last one is the image size",
    )
    model.add_argument("--drop_rate", type=share, default=0.2, help="dropout before the classifier")
    model.add_argument("--drop_path_rate", type=share, default=0.1, help="stochastic depth")
    model.add_argument("--freeze_backbone", action="store_true", help="train the classifier alone")

    schedule = parser.add_argument_group("schedule: how long, how fast")
    schedule.add_argument(
        "--epochs", type=whole_number(0), default=100, help="0 only scores the start weights"
    )
    schedule.add_argument(
        "--max_minutes", type=a_time, help="end by then, with the whole schedule gone through"
    )
    schedule.add_argument(
        "--batch_size", type=whole_number(2, LARGEST_BATCH), default=48, help="images a step and process"
    )
    schedule.add_argument("--gradient_accumulation_steps", type=whole_number(1, LARGEST_BATCH), default=1)
    schedule.add_argument("--optimizer", default="adamw", help="any of timm's")
    schedule.add_argument("--learning_rate", type=a_rate, default=2e-3)
    schedule.add_argument(
        "--weight_decay", type=not_negative, default=0.05, help="not applied to norms and biases"
    )
    schedule.add_argument(
        "--layer_decay", type=a_factor, help="learning rate factor from each layer to the one below it"
    )
    schedule.add_argument(
        "--warmup", type=share, default=0.03, help="share of the run in which the learning rate rises"
    )
    schedule.add_argument("--clip_grad", type=positive, default=2.0, help="largest gradient norm")
    schedule.add_argument("--ema_decay", type=share, default=0.998, help="0 switches the weight average off")
    schedule.add_argument(
        "--reestimate_batch_norm",
        action="store_true",
        help="at the end take batch norm's statistics anew, from views without mixup",
    )
    schedule.add_argument(
        "--mixed_precision", choices=("no", "fp16", "bf16"), help="default: as accelerate is configured"
    )
    schedule.add_argument("--seed", type=seed, default=0)

    regular = parser.add_argument_group("augmentation and loss")
    regular.add_argument(
        "--scale", type=positive, nargs=2, default=(0.5, 1.25), metavar=("MIN", "MAX"), help="magnification"
    )
    regular.add_argument(
        "--stain", type=share, default=0.2, help="relative change of each dye (standard deviation)"
    )
    regular.add_argument("--light", type=share, default=0.1, help="change of each channel's optical density")
    regular.add_argument(
        "--isolate", type=share, default=0.2, help="share of the images shown without their surroundings"
    )
    regular.add_argument(
        "--blur", type=share, default=0.2, help="share of the batches that are partly blurred"
    )
    regular.add_argument("--mixup", type=not_negative, default=0.2, help="alpha of mixup; 0 is off")
    regular.add_argument("--cutmix", type=not_negative, default=0.0, help="alpha of cutmix; 0 is off")
    regular.add_argument("--label_smoothing", type=share, default=0.1)
    regular.add_argument("--class_weights", choices=("none", "balanced"), default="none")

    teacher = parser.add_argument_group("distillation")
    teacher.add_argument(
        "--teacher", nargs="+", default=[], help="hf-hub:OWNER/NAME or run folders; several are averaged"
    )
    teacher.add_argument(
        "--teacher_weight", type=share, default=0.7, help="share of the loss that follows the teacher"
    )
    teacher.add_argument(
        "--teacher_size", type=whole_number(32), help="pixels a side that it sees (default: its own)"
    )
    teacher.add_argument("--teacher_temperature", type=positive, default=2.0)
    teacher.add_argument(
        "--feature_weight",
        type=not_negative,
        default=0.0,
        help="weight of following the teacher's pooled features",
    )

    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", type=Path, required=True, help="the run folder")
    output.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint, if there is one"
    )
    output.add_argument("--overwrite", action="store_true", help="delete the run in the output folder first")
    output.add_argument(
        "--checkpoint_minutes", type=a_time, default=5.0, help="besides one after every epoch"
    )
    output.add_argument("--keep_checkpoints", type=whole_number(1), default=2)
    output.add_argument(
        "--peer_timeout",
        type=a_time,
        default=30.0,
        metavar="MINUTES",
        help="with several processes: how long one waits for another that does not answer",
    )
    output.add_argument(
        "--log_with", choices=("trackio", "tensorboard", "wandb"), help="tracker, through accelerate"
    )
    return parser


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the checked options.

    Raises:
        SystemExit: a flag is wrong; argparse has printed why.
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.resume and options.overwrite:
        parser.error("--resume and --overwrite exclude each other")
    if options.scale[0] > options.scale[1]:
        parser.error("--scale MIN is larger than MAX")
    if options.size_schedule:
        final = options.size_schedule[-1][1]
        if options.image_size not in (None, final):
            parser.error(f"--size_schedule ends at {final} pixels, --image_size says {options.image_size}")
        options.image_size = final
    if options.log_with and not importlib.util.find_spec(options.log_with):
        parser.error(f"--log_with {options.log_with} needs that package: pip install {options.log_with}")
    if options.feature_weight and not options.teacher:
        parser.error("--feature_weight needs a --teacher")
    return options


def check_same_run(options: argparse.Namespace, recorded: Path, processes: int) -> None:
    """Refuse to resume a run with other options than those in its `args.json`.

    The number of processes may change, as long as processes times accumulation steps, the batches of an update, do not.

    Raises:
        TrainingError: names the options that differ.
    """
    before, now = read_recorded(recorded), as_json(options)
    accumulation = "gradient_accumulation_steps"
    before_processes = before.get("processes", processes)
    batches = before.get(accumulation, 1) * before_processes
    if before_processes != processes and now[accumulation] * processes != batches:
        fitting = [n for n in range(1, batches + 1) if batches % n == 0]
        hint = (
            f"pass --{accumulation} {batches // processes}"
            if processes in fitting
            else f"use one of {fitting}"
        )
        raise TrainingError(
            f"{recorded.parent} was started on {before_processes} processes, {batches} batches an update; "
            f"with {processes} processes, {hint}"
        )
    free = FREE_ON_RESUME | ({accumulation} if before_processes != processes else set())
    if not before.get("reestimate_batch_norm"):  # it comes at the end, and cannot be taken back
        free |= {"reestimate_batch_norm"}
    changed = [k for k in now if k not in free and before.get(k) != now[k]]
    if changed:
        flags = ", ".join(f"--{k} (was {before.get(k)!r}, now {now[k]!r})" for k in changed)
        raise TrainingError(
            f"{recorded.parent} was started with other options: {flags}; repeat them or use a new folder"
        )


def check_same_data(options: argparse.Namespace, recorded: Path, revision: str) -> None:
    """Refuse to resume a run with other data than it had, as far as its `args.json` says.

    Raises:
        TrainingError: says what changed.
    """
    before = read_recorded(recorded).get("data_revision", revision)
    if before != revision and all(re.fullmatch("[0-9a-f]{40,64}", known) for known in (before, revision)):
        raise TrainingError(
            f"{options.dataset} has changed since {recorded.parent} was started (revision {before[:12]}, now "
            f"{revision[:12]}): bring the old state back, of a repo with --dataset_revision {before}, or use a new folder"
        )


def read_recorded(path: Path) -> dict:
    """Return a run's recorded options.

    Raises:
        TrainingError: the file is damaged.
    """
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise TrainingError(
            f"{path} is damaged, so nothing says what run this is: start again with --overwrite"
        ) from error


def as_json(options: argparse.Namespace) -> dict:
    """Return the options as plain JSON values."""
    return json.loads(json.dumps(vars(options), default=str))


def size_schedule(text: str) -> list[tuple[float, int]]:
    """Parse `0:96,0.5:128` into [(0.0, 96), (0.5, 128)]."""
    try:
        pairs = sorted(
            (share(start), int(size)) for start, size in (pair.split(":") for pair in text.split(","))
        )
    except ValueError:
        raise argparse.ArgumentTypeError("must look like 0:96,0.5:128") from None
    if pairs[0][0] != 0 or any(size < 32 for _, size in pairs):
        raise argparse.ArgumentTypeError("must start at progress 0 and name sizes of at least 32 pixels")
    return pairs
