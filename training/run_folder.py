"""The run folder: created, protected against mixing two runs, and filled with history, logits and the environment of the run."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
from argparse import Namespace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from torch import nn

from dataset_script.arguments import is_foreign_output
from training import TrainingError
from training.checkpoint import Progress, write_atomically
from training.evaluation import Predictions
from training.options import FREE_ON_RESUME
from training.source import Source

PACKAGES = ("accelerate", "datasets", "huggingface_hub", "numpy", "pillow", "timm", "torch", "torchvision")
ACCUMULATION = "gradient_accumulation_steps"


def check_output_dir(options: Namespace, accelerator: Accelerator) -> None:
    """Create the output folder, or check without changing it that an existing one can be used.

    Raises:
        TrainingError: it contains another run, something other than a run, or an input of this run.
    """
    folder = options.output_dir
    recorded = folder / "args.json"
    if accelerator.is_main_process:
        if folder.exists() and not folder.is_dir():
            raise TrainingError(f"{folder} is a file: pass a folder")
        if options.overwrite:
            check_overwrite(options)
        elif options.resume and recorded.is_file():
            check_same_options(options, recorded, accelerator.num_processes)
        elif folder.exists() and any(folder.iterdir()):
            raise TrainingError(
                f"{folder} is not empty: --resume continues the run in it, --overwrite deletes it"
            )
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()


def check_overwrite(options: Namespace) -> None:
    """Refuse to delete anything but a run, or an input of this run."""
    folder = options.output_dir
    if is_foreign_output(folder, "args.json"):
        raise TrainingError(
            f"{folder} does not contain a run, and --overwrite deletes nothing else: use another folder"
        )
    for source in (options.dataset, options.init_from, *options.teacher):
        if source and Path(source).exists() and Path(source).resolve().is_relative_to(folder.resolve()):
            raise TrainingError(f"{source} is inside {folder}, which --overwrite deletes: use another folder")


def check_same_options(options: Namespace, recorded: Path, processes: int) -> None:
    """Refuse to resume a run with options that differ from those in its `args.json`.

    The number of processes may change if the number of batches per update (processes times accumulation steps) does not.

    Raises:
        TrainingError: names the options that differ.
    """
    before, now = read_args(recorded), as_json(options)
    before_processes = before.get("processes", processes)
    batches = before.get(ACCUMULATION, 1) * before_processes
    if before_processes != processes and now[ACCUMULATION] * processes != batches:
        hint = f"use one of {[n for n in range(1, batches + 1) if batches % n == 0]}"
        if batches % processes == 0:
            hint = f"pass --{ACCUMULATION} {batches // processes}"
        raise TrainingError(
            f"{recorded.parent} was started with {before_processes} processes and {batches} batches per update; "
            f"with {processes} processes, {hint}"
        )
    free = FREE_ON_RESUME | ({ACCUMULATION} if before_processes != processes else set())
    if not before.get("reestimate_batch_norm"):  # applied at the end, and cannot be undone
        free |= {"reestimate_batch_norm"}
    changed = [k for k in now if k not in free and before.get(k) != now[k]]
    if changed:
        flags = ", ".join(f"--{k} (was {before.get(k)!r}, now {now[k]!r})" for k in changed)
        raise TrainingError(
            f"{recorded.parent} was started with other options: {flags}; repeat them or use a new folder"
        )


def check_same_data(options: Namespace, recorded: Path, revision: str) -> None:
    """Refuse to resume a run whose `args.json` records another revision of the dataset."""
    before = read_args(recorded).get("data_revision", revision)
    if before != revision and all(re.fullmatch("[0-9a-f]{40,64}", r) for r in (before, revision)):
        raise TrainingError(
            f"{options.dataset} has changed since {recorded.parent} was started (revision {before[:12]}, now "
            f"{revision[:12]}): restore the previous version (of a repo: --dataset_revision {before}) or use a new folder"
        )


def read_args(path: Path) -> dict:
    """Return the options in the `args.json` of a run; TrainingError if the file is damaged."""
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise TrainingError(
            f"{path} is damaged, so the options of the run are unknown: start again with --overwrite"
        ) from error


def start_run(options: Namespace, accelerator: Accelerator, revision: str) -> None:
    """With `--overwrite`, delete the old run, after all other checks; write `args.json` and start the trackers.

    Args:
        revision: of the dataset, which must not change when the run is resumed.

    Raises:
        TrainingError: the dataset has changed since the run was started.
    """
    folder = options.output_dir
    if accelerator.is_main_process:
        if options.overwrite:
            target = folder.resolve()  # the target of a symbolic link
            shutil.rmtree(target)
            target.mkdir()
        recorded = folder / "args.json"
        if recorded.is_file():
            check_same_data(options, recorded, revision)
        remove_unfinished(folder)
        args = as_json(options) | {"processes": accelerator.num_processes, "data_revision": revision}
        write_atomically(recorded, json.dumps(args, indent=2) + "\n")
    if options.log_with:
        os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))
        config = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in as_json(options).items()}
        accelerator.init_trackers("bone-marrow-cells", config=config)
    accelerator.wait_for_everyone()


def remove_unfinished(folder: Path) -> None:
    """Delete partially written files of a killed process."""
    for path in (*folder.glob(".*.unfinished"), *folder.glob(".model-*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def as_json(options: Namespace) -> dict:
    """Return the options as JSON values."""
    return json.loads(json.dumps(vars(options), default=str))


def write_history(progress: Progress, folder: Path) -> None:
    """Write `history.jsonl`, which is bit-identical for identical runs, and `timing.jsonl`, which is not."""
    for name, lines in (("history.jsonl", progress.history), ("timing.jsonl", progress.timing)):
        write_atomically(folder / name, "".join(json.dumps(line) + "\n" for line in lines))


def write_logits(path: Path, predictions: Predictions) -> None:
    """Write a Parquet file with file_name, label and logits of each image, and source if every image has one."""
    columns = {
        "file_name": pa.array(predictions.names, pa.string()),
        "label": pa.array(predictions.labels, pa.int64()),
        "logits": pa.array(list(predictions.logits), pa.list_(pa.float32())),
    }
    if None not in predictions.sources:
        columns["source"] = pa.array(predictions.sources, pa.string())
    unfinished = path.with_name(f".{path.name}.unfinished")
    pq.write_table(pa.table(columns), unfinished)
    unfinished.replace(path)


def package_versions() -> dict[str, str]:
    """Return the versions of the installed packages among `PACKAGES`."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def write_environment(
    options: Namespace,
    source: Source,
    accelerator: Accelerator,
    model: nn.Module,
    progress: Progress,
    teachers: list[dict],
) -> None:
    """Write `environment.json`: package versions, dataset, hardware, and the origin of the weights.

    Args:
        teachers: `source` and `architecture` of each teacher.
    """
    imagenet = options.pretrained and not options.init_from
    facts = {
        "versions": {"python": platform.python_version(), **package_versions()},
        "dataset": {
            "id": source.id,
            "revision": source.revision,
            "licence": source.licence,
            "splits": source.sizes,
        },
        "model": {
            "architecture": model.pretrained_cfg["architecture"],
            "parameters": sum(p.numel() for p in model.parameters()),
            "best_epoch": progress.best_epoch,
            "minutes": progress.seconds / 60,
            "pretrained": model.pretrained_cfg.get("hf_hub_id") if imagenet else None,
            "init_from": options.init_from,
            "teachers": teachers,
        },
        "hardware": {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "processes": accelerator.num_processes,
            "mixed_precision": accelerator.mixed_precision,
        },
    }
    write_atomically(options.output_dir / "environment.json", json.dumps(facts, indent=2) + "\n")
