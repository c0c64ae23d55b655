"""Command-line options of `train_accelerate.py`, with defaults that work well for a few thousand images of cells."""

from __future__ import annotations

import argparse
import importlib.util
from argparse import BooleanOptionalAction
from pathlib import Path

from dataset_script.arguments import not_negative, positive, real_number, seed, share, whole_number
from hub_model.inference.hub import is_repo_id

TRACKERS = ("trackio", "tensorboard", "wandb")
# types of arguments
batch_size, steps = whole_number(2, 2**16), whole_number(1, 2**16)
buffer_size, image_size = whole_number(1, 2**31 - 1), whole_number(32)
learning_rate = real_number(lambda value: 0 < value <= 1e30, "a number above 0 and at most 1e30")
decay_factor = real_number(lambda value: 0 < value <= 1, "a number above 0 and at most 1")
minutes = real_number(lambda value: 0 < value <= 1_000_000, "a number above 0 and at most 1,000,000")

# Options that may change when a run is resumed, as they do not affect the weights.
FREE_ON_RESUME = {
    "dataset_revision",  # the commit it resolves to is compared instead
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
    """Appends the default value to the help of an option, unless there is none or the help describes it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        no_default = action.default is None or action.default is False or action.default == []
        if no_default or "default:" in action.help:
            return action.help
        return super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser, with its options in groups."""
    parser = argparse.ArgumentParser(
        prog="train_accelerate.py",
        description="Train an image classifier on a dataset of cell images; use `accelerate launch` for several processes.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument_group("data").add_argument
    add("--dataset", required=True, help="dataset repo OWNER/NAME, or a folder built by dataset_script")
    add("--dataset_revision", help="branch, tag or commit of the dataset repo (default: its main branch)")
    add("--dataset_config", help="configuration of the dataset (default: its only one)")
    add("--image_column", default="image", help="column with the images")
    add("--label_column", default="label", help="column with the labels")
    add("--train_split", default="train", help="split to train on")
    add("--validation_split", default="validation", help="split that selects the best epoch")
    add("--test_split", default="test", help="split evaluated once at the end, if the dataset has it")
    add("--data", choices=("auto", "memory", "stream"), default="auto", help="decode into memory, or stream")
    add("--workers", type=whole_number(0), default=2, help="decoding threads when streaming")
    add("--shuffle_buffer", type=buffer_size, default=2000, help="shuffle buffer for streaming, in images")

    add = parser.add_argument_group("model").add_argument
    add("--model", help="timm architecture (default: that of --init_from, else rexnet_150)")
    add("--pretrained", action=BooleanOptionalAction, default=True, help="start from timm's ImageNet weights")
    add("--init_from", help="start from hf-hub:OWNER/NAME, run folder or .safetensors (default: none)")
    add("--image_size", type=image_size, help="pixels (default: that of --init_from or of a ViT, else 160)")
    add(
        "--size_schedule", type=size_schedule, default=[], metavar="0:96,0.7:128",
        help="progressive resizing as PROGRESS:PIXELS pairs, the last being the image size (default: one size)",
    )  # fmt: skip
    add("--drop_rate", type=share, default=0.2, help="dropout rate of the classifier")
    add("--drop_path_rate", type=share, default=0.1, help="stochastic depth rate")
    add("--freeze_backbone", action="store_true", help="train the classifier only (default: all layers)")

    add = parser.add_argument_group("schedule and optimization").add_argument
    add("--epochs", type=whole_number(0), default=100, help="0 only evaluates the initial weights")
    add("--max_minutes", type=minutes, help="time limit that the schedule is fitted to (default: none)")
    add("--batch_size", type=batch_size, default=48, help="batch size per device")
    add("--gradient_accumulation_steps", type=steps, default=1, help="batches per update and device")
    add("--optimizer", default="adamw", help="name of a timm optimizer")
    add("--learning_rate", type=learning_rate, default=2e-3, help="peak learning rate, after warm-up")
    add("--weight_decay", type=not_negative, default=0.05, help="not applied to norms and biases")
    add("--layer_decay", type=decay_factor, help="layer-wise learning rate decay factor (default: 1)")
    add("--warmup", type=share, default=0.03, help="fraction of the run for linear warm-up")
    add("--clip_grad", type=positive, default=2.0, help="maximum gradient norm")
    add("--ema_decay", type=share, default=0.998, help="decay of the averaged weights; 0 disables them")
    add(
        "--reestimate_batch_norm", action="store_true",
        help="recompute batch norm statistics without mixup at the end (default: keep those of training)",
    )  # fmt: skip
    add("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: as set by `accelerate config`")
    add("--seed", type=seed, default=0, help="random seed")

    add = parser.add_argument_group("augmentation").add_argument
    add("--scale", type=positive, nargs=2, default=(0.5, 1.25), metavar=("MIN", "MAX"), help="magnification")
    add("--stain", type=share, default=0.2, help="standard deviation of the relative change of each stain")
    add("--light", type=share, default=0.1, help="standard deviation of channel-wise optical density shifts")
    add("--isolate", type=share, default=0.2, help="fraction of images whose surroundings are removed")
    add("--sharpness", type=share, default=0.65, help="fraction of images that are blurred or sharpened")
    add("--resample", type=share, default=0.3, help="fraction of batches with every other image downsampled")
    add("--grain", type=share, default=0.4, help="fraction of images with camera noise")
    add("--gamma", type=share, default=0.25, help="maximum absolute value of the logarithm of gamma")
    add("--mixup", type=not_negative, default=0.2, help="alpha of MixUp; 0 disables it")
    add("--cutmix", type=not_negative, default=0.0, help="alpha of CutMix; 0 disables it")

    add = parser.add_argument_group("loss and distillation").add_argument
    add("--label_smoothing", type=share, default=0.1, help="probability mass spread over all classes")
    add("--class_weights", choices=("none", "balanced"), default="none", help="class weights in the loss")
    add("--teacher", nargs="+", default=[], help="hf-hub:OWNER/NAME or run folders, averaged (default: none)")
    add("--teacher_weight", type=share, default=0.7, help="fraction of the loss due to distillation")
    add("--teacher_size", type=image_size, help="input size of the teachers in pixels (default: their own)")
    add("--teacher_temperature", type=positive, default=2.0, help="softmax temperature for distillation")
    add(
        "--teacher_cache", type=whole_number(0), default=0, metavar="K",
        help="reuse the views and teacher logits of K epochs cyclically; 0 samples new views every epoch",
    )  # fmt: skip
    add("--feature_weight", type=not_negative, default=0.0, help="weight of the feature distillation loss")

    add = parser.add_argument_group("output").add_argument
    add("--output_dir", type=Path, required=True, help="run folder")
    add("--resume", action="store_true", help="continue from the last checkpoint (default: refuse)")
    add("--overwrite", action="store_true", help="delete the run in the output folder (default: refuse)")
    add(
        "--save_dtype", choices=("float32", "float16"), default="float32",
        help="dtype of the saved weights, which are evaluated at the end with float32 arithmetic",
    )  # fmt: skip
    add("--checkpoint_minutes", type=minutes, default=5.0, help="minutes between checkpoints within an epoch")
    add("--keep_checkpoints", type=whole_number(1), default=2, help="number of checkpoints to keep")
    add(
        "--process_group_timeout", type=minutes, default=30.0, metavar="MINUTES",
        help="time after which a process that does not respond is considered lost",
    )  # fmt: skip
    add("--log_with", choices=TRACKERS, help="experiment tracker (default: none)")

    add = parser.add_argument_group("Hub").add_argument
    add("--push_to_hub", action="store_true", help="build and push the model repo at the end (default: off)")
    add("--hub_model_id", metavar="OWNER/NAME", help="repo to push to (default: none)")
    add("--hub_private_repo", action="store_true", help="create a private repo (default: public)")
    add(
        "--hub_strategy", choices=("end", "checkpoint"), default="end",
        help="'checkpoint' also pushes checkpoints to a branch of that name, from which --resume continues",
    )  # fmt: skip
    return parser


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the checked options.

    Raises:
        SystemExit: an option is invalid; argparse has printed why.
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
            parser.error(f"--size_schedule ends at {final} pixels, but --image_size is {options.image_size}")
        options.image_size = final
    if options.log_with and not importlib.util.find_spec(options.log_with):
        parser.error(f"--log_with {options.log_with} needs a package: pip install {options.log_with}")
    for name in ("feature_weight", "teacher_cache"):
        if getattr(options, name) and not options.teacher:
            parser.error(f"--{name} needs a --teacher")
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
        pairs = [pair.split(":") for pair in text.split(",")]
        pairs = sorted((share(start), int(size)) for start, size in pairs)
    except ValueError:
        raise argparse.ArgumentTypeError("must look like 0:96,0.5:128") from None
    if pairs[0][0] != 0 or any(size < 32 for _, size in pairs):
        raise argparse.ArgumentTypeError("must start at progress 0 and name sizes of at least 32 pixels")
    return pairs
