"""What several tests of the trainer start from: options, names, a tiny network's flags."""

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
# a network of a hundred thousand weights on tiny images: a run takes seconds
TINY = ["--no-pretrained", "--model", "test_efficientnet", "--image_size", "32", "--batch_size", "16"]


def data_options(dataset, **given) -> SimpleNamespace:
    """The options that open a dataset."""
    where = {"dataset": str(dataset), "dataset_config": None, "dataset_revision": None}
    columns = {"image_column": "image", "label_column": "label"}
    splits = {"train_split": "train", "validation_split": "validation", "test_split": "test"}
    return SimpleNamespace(**{**where, **columns, **splits, **given})


def model_options(**given) -> SimpleNamespace:
    """The options that build a model."""
    model = {
        "model": "rexnet_100",
        "pretrained": False,
        "init_from": None,
        "image_size": 64,
        "size_schedule": [],
    }
    rates = {"drop_rate": 0.0, "drop_path_rate": 0.0, "freeze_backbone": False}
    return SimpleNamespace(**{**model, **rates, **given})
