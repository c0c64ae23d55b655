"""Read and validate the run folder that `train_accelerate.py` writes."""

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
    """A validated run folder.

    `measurements` holds the results of studies of this run's weights: `measurements/NAME.json` becomes the key NAME of
    `metrics.json`.
    """

    folder: Path
    contents: Contents
    args: dict
    environment: dict
    measurements: dict[str, dict | list]

    @property
    def dataset(self) -> dict:
        """`id`, `revision`, `licence` and `splits` of the dataset; the id is None for a local folder."""
        dataset = self.environment["dataset"]
        return {
            "id": public_id(dataset["id"]),
            "revision": dataset.get("revision"),
            "licence": dataset.get("licence"),
            "splits": dataset["splits"],
        }

    @property
    def training(self) -> dict:
        """How the model was trained, without local paths."""
        model = self.environment.get("model", {})
        return {
            "epochs_trained": len(self.contents.history),
            "minutes": model.get("minutes"),
            "pretrained": model.get("pretrained"),
            "init_from": without_path(model.get("init_from") or self.args.get("init_from")),
            "teachers": [
                {"name": without_path(teacher["source"]), "architecture": teacher["architecture"]}
                for teacher in model.get("teachers", [])
            ],
            "averaged_with": read_averaged(self.folder),
            "recipe": {key: self.args[key] for key in RECIPE if self.args.get(key) not in (None, [], False)},
            "versions": self.environment.get("versions", {}),
            "hardware": self.environment.get("hardware", {}),
        }


def public_id(name: str) -> str | None:
    """Return `OWNER/NAME` of a Hub id, without `hf-hub:` and `@revision`; None for a folder or anything else."""
    on_hub, repo_id = str(name).startswith("hf-hub:"), str(name).removeprefix("hf-hub:").partition("@")[0]
    return repo_id if is_repo_id(repo_id) and (on_hub or not Path(name).exists()) else None


def without_path(name: str | None) -> str | None:
    """Return a Hub id unchanged, and only the last component of a path, so that no card shows local folders."""
    return None if name is None else public_id(name) or os.path.basename(str(name).rstrip("/"))


def read_averaged(folder: Path) -> list[dict]:
    """Return `name` and `weight` of each run that `python -m hub_model average` averaged into this one."""
    path = folder / AVERAGED
    return read_json(path).get("averaged_with", []) if path.exists() else []


def read_run(folder: Path) -> Run:
    """Read and validate a run folder; `RepoError` describes the first problem."""
    if not folder.is_dir():
        raise RepoError(f"there is no run folder {folder}: pass the --output_dir of train_accelerate.py")
    if not (folder / CONFIG).exists() and (folder / "checkpoints").is_dir():
        raise RepoError(f"the run in {folder} is not finished: continue it with train_accelerate.py --resume")
    # only the top level: nothing in checkpoints/ is loaded
    refuse_unsafe_files(str(folder), (path.name for path in folder.iterdir()))
    contents = read_contents(folder)
    path = folder / ENVIRONMENT
    environment = read_json(path)
    with malformed_as_error(path):
        dataset = environment.get("dataset", {})
        if not {"id", "splits"} <= set(dataset):
            raise RepoError(f"{path} must have dataset.id and dataset.splits")
        for split, table in contents.logits.items():
            rows, images = len(table.labels), dataset["splits"].get(split)
            if rows != images:
                raise RepoError(
                    f"{folder}: logits_{split}.parquet has {rows} rows, but {ENVIRONMENT} counts {images} images in {split}"
                )
    paths = sorted((folder / MEASUREMENTS).glob("*.json"))
    measurements = {path.stem: read_measurement(path, contents.digest) for path in paths}
    return Run(folder, contents, read_json(folder / "args.json"), environment, measurements)


def read_measurement(path: Path, digest: str) -> dict | list:
    """Read the result of a study; `RepoError` if it is unknown, malformed or of other weights than `digest`."""
    if path.stem not in SECTIONS:
        raise RepoError(f"{path} is not a known measurement (known: {', '.join(SECTIONS)}): delete it")
    measurement = read_json(path)
    if measurement.get("weights_sha256") != digest or "result" not in measurement:
        raise RepoError(f"{path} belongs to other weights: measure again, or delete it")
    with malformed_as_error(path):
        if measurement["result"]:
            SECTIONS[path.stem](measurement["result"])  # render its section of the card
    return measurement["result"]
