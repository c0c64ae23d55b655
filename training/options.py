"""The options of `train_accelerate.py`: argv in, one checked namespace out. Every default trains well on a few thousand crops."""

from __future__ import annotations

import argparse
import importlib.util
from argparse import BooleanOptionalAction
from pathlib import Path

from dataset_script.arguments import not_negative, positive, real_number, seed, share, whole_number
from hub_model.inference.hub import is_repo_id

TRACKERS = ("trackio", "tensorboard", "wandb")
a_batch, a_number = whole_number(2, 2**16), whole_number(1, 2**16)
a_buffer, a_size = whole_number(1, 2**31 - 1), whole_number(32)
a_rate = real_number(lambda value: 0 < value <= 1e30, "a number above 0 and at most 1e30")
a_factor = real_number(lambda value: 0 < value <= 1, "a number above 0 and at most 1")
a_time = real_number(lambda value: 0 < value <= 1_000_000, "a number above 0 and at most 1,000,000")

# What may differ between a run and its resumption without changing the weights.
FREE_ON_RESUME = {
    "dataset_revision",  # what it stands for is compared
    "test_split",
    "output_dir",
    "resume",
    "overwrite",
    "workers",
    "log_with",
    "checkpoint_minutes",
    "keep_checkpoints",
    "process_group_timeout",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_strategy",
}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says the default of every option that has one, and nothing of those whose help says it in words."""

    def _get_help_string(self, action: argparse.Action) -> str:
        nothing = action.default is None or action.default is False or action.default == []
        worded = nothing or "default:" in action.help
        return action.help if worded else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser: one group for each question a user has."""
    parser = argparse.ArgumentParser(
        prog="train_accelerate.py",
        description="Train an image classifier on a dataset of cell crops; `accelerate launch` it for several processes.",
        formatter_class=HelpFormatter,
    )
    data = parser.add_argument_group("data: which images").add_argument
    data("--dataset", required=True, help="dataset repo OWNER/NAME, or a folder that dataset_script built")
    data("--dataset_revision", help="branch, tag or commit of the dataset repo (default: its main branch)")
    data("--dataset_config", help="configuration of the dataset (default: its only one)")
    data("--image_column", default="image", help="column that holds the images")
    data("--label_column", default="label", help="column that holds the classes")
    data("--train_split", default="train", help="split that is trained on")
    data("--validation_split", default="validation", help="split that chooses the best epoch")
    data("--test_split", default="test", help="evaluated once, at the end; may be missing from the dataset")
    data("--data", choices=("auto", "memory", "stream"), default="auto", help="where decoded images are kept")
    data("--workers", type=whole_number(0), default=2, help="threads that decode while streaming")
    data("--shuffle_buffer", type=a_buffer, default=2000, help="images shuffled together while streaming")

    model = parser.add_argument_group("model: what is trained, and from where").add_argument
    model("--model", help="timm architecture (default: that of --init_from, else rexnet_150)")
    model(
        "--pretrained", action=BooleanOptionalAction, default=True, help="start from ImageNet weights of timm"
    )
    model(
        "--init_from",
        help="start from hf-hub:OWNER/NAME, a run folder or a .safetensors file (default: none)",
    )
    model("--image_size", type=a_size, help="pixels a side (default: the start model's own, else 160)")
    model(
        "--size_schedule", type=size_schedule, default=[], metavar="0:96,0.7:128",
        help="smaller images first, as PROGRESS:PIXELS pairs; the last is the image size (default: one size)",
    )  # fmt: skip
    model("--drop_rate", type=share, default=0.2, help="dropout before the classifier")
    model("--drop_path_rate", type=share, default=0.1, help="stochastic depth")
    model("--freeze_backbone", action="store_true", help="train the classifier alone (default: everything)")

    schedule = parser.add_argument_group("schedule: how long, how fast").add_argument
    schedule("--epochs", type=whole_number(0), default=100, help="0 only evaluates the start weights")
    schedule("--max_minutes", type=a_time, help="end by then, schedule included (default: no limit)")
    schedule("--batch_size", type=a_batch, default=48, help="batch size per device")
    schedule("--gradient_accumulation_steps", type=a_number, default=1, help="batches per update")
    schedule("--optimizer", default="adamw", help="any of timm's")
    schedule("--learning_rate", type=a_rate, default=2e-3, help="the highest, after warm-up")
    schedule("--weight_decay", type=not_negative, default=0.05, help="not applied to norms and biases")
    schedule(
        "--layer_decay", type=a_factor, help="learning rate of a layer over that of the next (default: 1)"
    )
    schedule("--warmup", type=share, default=0.03, help="fraction of the run with a rising learning rate")
    schedule("--clip_grad", type=positive, default=2.0, help="largest gradient norm")
    schedule("--ema_decay", type=share, default=0.998, help="decay of the weight average; 0 switches it off")
    schedule(
        "--reestimate_batch_norm", action="store_true",
        help="recompute batch norm's statistics at the end, without mixup (default: keep those of training)",
    )  # fmt: skip
    schedule("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: as accelerate is configured")
    schedule("--seed", type=seed, default=0, help="of everything random")

    views = parser.add_argument_group("augmentation").add_argument
    views(
        "--scale", type=positive, nargs=2, default=(0.5, 1.25), metavar=("MIN", "MAX"), help="magnification"
    )
    views("--stain", type=share, default=0.2, help="relative change of each dye (standard deviation)")
    views("--light", type=share, default=0.1, help="change of each channel's optical density")
    views("--isolate", type=share, default=0.2, help="fraction of the images without their surroundings")
    views("--sharpness", type=share, default=0.65, help="fraction of the images blurred or sharpened")
    views(
        "--resample", type=share, default=0.3, help="fraction of the batches partly shown at lower resolution"
    )
    views("--grain", type=share, default=0.4, help="fraction of the images with a camera's noise")
    views("--gamma", type=share, default=0.25, help="largest change of the logarithm of gamma")
    views("--mixup", type=not_negative, default=0.2, help="alpha of mixup; 0 is off")
    views("--cutmix", type=not_negative, default=0.0, help="alpha of cutmix; 0 is off")

    loss = parser.add_argument_group("loss and distillation").add_argument
    loss("--label_smoothing", type=share, default=0.1, help="probability spread evenly over all classes")
    loss("--class_weights", choices=("none", "balanced"), default="none", help="weights of the classes")
    loss(
        "--teacher", nargs="+", default=[], help="hf-hub:OWNER/NAME or run folders, averaged (default: none)"
    )
    loss("--teacher_weight", type=share, default=0.7, help="fraction of the loss that follows the teacher")
    loss("--teacher_size", type=a_size, help="pixels a side that the teacher sees (default: its own)")
    loss("--teacher_temperature", type=positive, default=2.0, help="softens the teacher's probabilities")
    loss(
        "--teacher_cache", type=whole_number(0), default=0, metavar="K",
        help="views of K epochs are reused cyclically, their teacher logits computed once; 0 draws new views",
    )  # fmt: skip
    loss("--feature_weight", type=not_negative, default=0.0, help="weight of the teacher's pooled features")

    output = parser.add_argument_group("output").add_argument
    output("--output_dir", type=Path, required=True, help="the run folder")
    output("--resume", action="store_true", help="continue from the last checkpoint (default: refuse)")
    output("--overwrite", action="store_true", help="delete the run in the output folder (default: refuse)")
    output(
        "--save_dtype", choices=("float32", "float16"), default="float32",
        help="of the saved weights; what is evaluated in the end is those, whose answers are computed in float32",
    )  # fmt: skip
    output("--checkpoint_minutes", type=a_time, default=5.0, help="time between checkpoints within an epoch")
    output("--keep_checkpoints", type=whole_number(1), default=2, help="how many of the newest are kept")
    output(
        "--process_group_timeout", type=a_time, default=30.0, metavar="MINUTES",
        help="how long one process waits for another that does not answer",
    )  # fmt: skip
    output("--log_with", choices=TRACKERS, help="tracker, run by accelerate (default: none)")

    hub = parser.add_argument_group("Hub: publish what was trained").add_argument
    hub(
        "--push_to_hub",
        action="store_true",
        help="build the model repo at the end and push it (default: off)",
    )
    hub("--hub_model_id", metavar="OWNER/NAME", help="repo to push to (default: none)")
    hub("--hub_private_repo", action="store_true", help="create it private (default: public)")
    hub(
        "--hub_strategy", choices=("end", "checkpoint"), default="end",
        help="checkpoint also pushes checkpoints to a branch of that name, which --resume reads",
    )  # fmt: skip
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
    if options.teacher_cache and not options.teacher:
        parser.error("--teacher_cache needs a --teacher")
    if options.push_to_hub and not options.hub_model_id:
        parser.error("--push_to_hub needs --hub_model_id OWNER/NAME")
    if options.hub_model_id and not is_repo_id(options.hub_model_id):
        parser.error(f"--hub_model_id must be OWNER/NAME, not {options.hub_model_id!r}")
    if not options.push_to_hub and (options.hub_model_id or options.hub_strategy == "checkpoint"):
        parser.error("--hub_model_id and --hub_strategy need --push_to_hub")
    return options


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
