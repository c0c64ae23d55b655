"""Shared by the tests of the trainer: options, class names, and runs of a tiny network."""

import shlex
from pathlib import Path
from types import SimpleNamespace

NAMES = ["BLA", "EOS", "LYT", "MON", "NGS", "NIF", "PMO"]
SOURCE = SimpleNamespace(label_names=NAMES, label_descriptions={name: f"cell {name}" for name in NAMES})
CONFIG = {
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
}
RESULTS = ("history.jsonl", "model.safetensors", "logits_validation.parquet", "logits_test.parquet")
LAUNCH_TWO = [
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
]
LAUNCH_TWO += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
# a network of 100,000 weights on tiny images: a run takes seconds
TINY = ["--no-pretrained", "--model", "test_efficientnet", "--image_size", "32", "--batch_size", "16"]


def arguments(dataset, output, *more: object, epochs=2) -> list[str]:
    """The command line of a short run; each of `more` may hold several options, separated by blanks."""
    given = f"--dataset {dataset} --output_dir {output} --epochs {epochs} {' '.join(map(str, more))}"
    return [*TINY, *shlex.split(given)]


def train(dataset, output, *more: object, epochs=2) -> int:
    """The exit code of a short run."""
    from train_accelerate import main  # slow to import

    return main(arguments(dataset, output, *more, epochs=epochs))


def results(run: Path) -> list[bytes]:
    """The contents of the files that are bit-identical for identical runs."""
    return [(run / name).read_bytes() for name in RESULTS]


def refusal(capsys, *given, **options) -> str:
    """What a run that fails prints: one error message without a traceback."""
    assert train(*given, **options) == 1
    text = capsys.readouterr().err
    assert text.count("error: ") == 1 and "Traceback" not in text
    return text


def data_options(dataset, **given) -> SimpleNamespace:
    """The options that open a dataset."""
    repo = {"dataset": str(dataset), "dataset_config": None, "dataset_revision": None}
    columns = {"image_column": "image", "label_column": "label"}
    splits = {"train_split": "train", "validation_split": "validation", "test_split": "test"}
    return SimpleNamespace(**repo | columns | splits | given)


def model_options(**given) -> SimpleNamespace:
    """The options that build a model."""
    model = {"model": "rexnet_100", "pretrained": False, "init_from": None, "freeze_backbone": False}
    sizes = {"image_size": 64, "size_schedule": [], "drop_rate": 0.0, "drop_path_rate": 0.0}
    return SimpleNamespace(**model | sizes | given)
