"""The run folder that `train_accelerate.py` leaves behind: a path in, its checked content out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from hub_model.contract import CONFIG, MEASUREMENTS, Contents, malformed_as_error, read_contents
from hub_model.inference.errors import RepoError
from hub_model.inference.hub import is_repo_id
from hub_model.inference.model_repo import read_json, refuse_unsafe_files
from hub_model.studies import SECTIONS

ENVIRONMENT, AVERAGED = "environment.json", "averaged_with.json"
RECIPE = (
    "epochs", "batch_size", "gradient_accumulation_steps", "optimizer", "learning_rate", "weight_decay", "warmup",
    "layer_decay", "freeze_backbone", "ema_decay", "label_smoothing", "mixup", "cutmix", "drop_rate",
    "drop_path_rate", "class_weights", "scale", "stain", "light", "isolate", "sharpness",
    "resample", "grain", "gamma", "size_schedule", "mixed_precision", "teacher_cache",
    "teacher_weight", "teacher_temperature", "feature_weight", "reestimate_batch_norm", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A checked run folder.

    `measurements` by name hold what else was measured on this run's weights (`measurements/NAME.json`, each becomes the key
    NAME of `metrics.json`).
    """

    folder: Path
    contents: Contents
    args: dict
    environment: dict
    measurements: dict[str, dict | list]

    @property
    def dataset(self) -> dict:
        """`id`, `revision`, `licence` and `splits` of the dataset, the id None when it was a folder of someone's machine."""
        found = self.environment["dataset"]
        return {
            "id": public_id(found["id"]),
            "revision": found.get("revision"),
            "licence": found.get("licence"),
            "splits": found["splits"],
        }

    @property
    def training(self) -> dict:
        """The recipe, without paths of the machine that it ran on."""
        origin = self.environment.get("model", {})
        recipe = {key: self.args[key] for key in RECIPE if self.args.get(key) not in (None, [], False)}
        return {
            "epochs_trained": len(self.contents.history),
            "minutes": origin.get("minutes"),
            "pretrained": origin.get("pretrained"),
            "init_from": without_path(origin.get("init_from") or self.args.get("init_from")),
            "teachers": [
                {"name": without_path(teacher["source"]), "architecture": teacher["architecture"]}
                for teacher in origin.get("teachers", [])
            ],
            "averaged_with": read_averaged(self.folder),
            "recipe": recipe,
            "versions": self.environment.get("versions", {}),
            "hardware": self.environment.get("hardware", {}),
        }


def public_id(name: str) -> str | None:
    """`OWNER/NAME` when `name` is a Hub id (`hf-hub:` and `@revision` aside), None for a folder or anything else."""
    plain = str(name).removeprefix("hf-hub:").partition("@")[0]
    return (
        plain if is_repo_id(plain) and (str(name).startswith("hf-hub:") or not Path(name).exists()) else None
    )


def without_path(name: str | None) -> str | None:
    """A Hub id as it is; of a path only its last part, so that no card tells where someone keeps things."""
    return None if name is None else public_id(name) or os.path.basename(str(name).rstrip("/"))


def read_averaged(folder: Path) -> list[dict]:
    """`name` and `weight` of each run whose weights `python -m hub_model average` mixed into this one's."""
    path = folder / AVERAGED
    return read_json(path).get("averaged_with", []) if path.exists() else []


def read_run(folder: Path) -> Run:
    """Read and check a run folder; `RepoError` is one sentence about the first thing that is wrong."""
    if not folder.is_dir():
        raise RepoError(f"there is no run folder {folder}: name the --output_dir of train_accelerate.py")
    if not (folder / CONFIG).exists() and (folder / "checkpoints").is_dir():
        raise RepoError(f"the run in {folder} is not finished: go on with train_accelerate.py --resume")
    # checkpoints/ are not read here
    refuse_unsafe_files(str(folder), (path.name for path in folder.iterdir()))
    contents = read_contents(folder)
    environment = read_json(folder / ENVIRONMENT)
    with malformed_as_error(folder / ENVIRONMENT):
        dataset = environment.get("dataset", {})
        if not {"id", "splits"} <= set(dataset):
            raise RepoError(f"{folder / ENVIRONMENT} must name the dataset: dataset.id and dataset.splits")
        for split, table in contents.logits.items():
            if (images := dataset["splits"].get(split)) != len(table.labels):
                raise RepoError(
                    f"{folder}: logits_{split}.parquet has {len(table.labels)} rows, but environment.json counts "
                    f"{images} images in {split}"
                )
    paths = sorted((folder / MEASUREMENTS).glob("*.json"))
    measurements = {path.stem: read_measurement(path, contents.digest) for path in paths}
    return Run(folder, contents, read_json(folder / "args.json"), environment, measurements)


def read_measurement(path: Path, digest: str) -> dict | list:
    """What `python -m hub_model` measured on these weights; `RepoError` when it was on others, or something else."""
    if path.stem not in SECTIONS:
        raise RepoError(f"{path} is not a known measurement (known: {', '.join(SECTIONS)}): delete it")
    found = read_json(path)
    if found.get("weights_sha256") != digest or "result" not in found:
        raise RepoError(f"{path} belongs to other weights: measure again, or delete it")
    with malformed_as_error(path):
        if found["result"]:
            SECTIONS[path.stem](found["result"])  # its section of the card
    return found["result"]
