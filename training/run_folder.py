"""The run folder: made, guarded against mixing two runs, and filled with history, logits and what it all ran on."""

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

from dataset_script.arguments import holds_other_things
from training import TrainingError
from training.checkpoint import Progress, write_atomically
from training.evaluation import Predictions
from training.options import FREE_ON_RESUME
from training.source import Source

PACKAGES = ("accelerate", "datasets", "huggingface_hub", "numpy", "pillow", "timm", "torch", "torchvision")
ACCUMULATION = "gradient_accumulation_steps"


def check_output(options: Namespace, accelerator: Accelerator) -> None:
    """Make the output folder where there is none, and change nothing where there is one; never mix two runs.

    Raises:
        TrainingError: the folder holds something else, or what is to be read.
    """
    folder = options.output_dir
    recorded = folder / "args.json"
    if accelerator.is_main_process:
        if folder.exists() and not folder.is_dir():
            raise TrainingError(f"{folder} is a file: name a folder")
        if options.overwrite:
            check_overwrite(options)
        elif options.resume and recorded.is_file():
            check_same_run(options, recorded, accelerator.num_processes)
        elif folder.exists() and any(folder.iterdir()):
            raise TrainingError(
                f"{folder} is not empty: --resume continues the run in it, --overwrite deletes it"
            )
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()


def check_overwrite(options: Namespace) -> None:
    """Refuse to delete what is no run, or what this run reads."""
    folder = options.output_dir
    if holds_other_things(folder, "args.json"):
        raise TrainingError(
            f"{folder} holds no run, and --overwrite deletes nothing else: use another folder"
        )
    for source in (options.dataset, options.init_from, *options.teacher):
        if source and Path(source).exists() and Path(source).resolve().is_relative_to(folder.resolve()):
            raise TrainingError(f"{source} lies in {folder}, which --overwrite deletes: use another folder")


def check_same_run(options: Namespace, recorded: Path, processes: int) -> None:
    """Refuse to resume a run with other options than those in its `args.json`.

    The number of processes may change, as long as processes times accumulation steps, the batches of an update, do not.

    Raises:
        TrainingError: names the options that differ.
    """
    before, now = read_recorded(recorded), as_json(options)
    before_processes = before.get("processes", processes)
    batches = before.get(ACCUMULATION, 1) * before_processes
    if before_processes != processes and now[ACCUMULATION] * processes != batches:
        fitting = [n for n in range(1, batches + 1) if batches % n == 0]
        hint = f"use one of {fitting}"
        if processes in fitting:
            hint = f"pass --{ACCUMULATION} {batches // processes}"
        raise TrainingError(
            f"{recorded.parent} was started on {before_processes} processes, {batches} batches an update; "
            f"with {processes} processes, {hint}"
        )
    free = FREE_ON_RESUME | ({ACCUMULATION} if before_processes != processes else set())
    if not before.get("reestimate_batch_norm"):  # it comes at the end, and cannot be taken back
        free |= {"reestimate_batch_norm"}
    changed = [k for k in now if k not in free and before.get(k) != now[k]]
    if changed:
        flags = ", ".join(f"--{k} (was {before.get(k)!r}, now {now[k]!r})" for k in changed)
        raise TrainingError(
            f"{recorded.parent} was started with other options: {flags}; repeat them or use a new folder"
        )


def check_same_data(options: Namespace, recorded: Path, revision: str) -> None:
    """Refuse to resume a run with other data than it had, as far as its `args.json` says."""
    before = read_recorded(recorded).get("data_revision", revision)
    if before != revision and all(re.fullmatch("[0-9a-f]{40,64}", known) for known in (before, revision)):
        raise TrainingError(
            f"{options.dataset} has changed since {recorded.parent} was started (revision {before[:12]}, now "
            f"{revision[:12]}): bring the old state back, of a repo with --dataset_revision {before}, or use a new folder"
        )


def read_recorded(path: Path) -> dict:
    """Return a run's recorded options; TrainingError where the file is damaged."""
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise TrainingError(
            f"{path} is damaged, so nothing says what run this is: start again with --overwrite"
        ) from error


def start_output(options: Namespace, accelerator: Accelerator, revision: str) -> None:
    """Delete the run that is to be overwritten, now that nothing can be wrong any more, and record the options.

    Args:
        revision: the dataset's, which a resumed run must find again.

    Raises:
        TrainingError: a resumed run would continue with other data.
    """
    folder = options.output_dir
    if accelerator.is_main_process:
        if options.overwrite:
            target = folder.resolve()  # of a link, what it points to
            shutil.rmtree(target)
            target.mkdir()
        recorded = folder / "args.json"
        if recorded.is_file():
            check_same_data(options, recorded, revision)
        clear_remains(folder)
        facts = as_json(options) | {"processes": accelerator.num_processes, "data_revision": revision}
        write_atomically(recorded, json.dumps(facts, indent=2) + "\n")
    if options.log_with:
        os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))
        plain = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in as_json(options).items()}
        accelerator.init_trackers("bone-marrow-cells", config=plain)
    accelerator.wait_for_everyone()


def clear_remains(folder: Path) -> None:
    """Delete what a process left half written when it was killed."""
    for remains in (*folder.glob(".*.unfinished"), *folder.glob(".model-*")):
        if remains.is_dir():
            shutil.rmtree(remains)
        else:
            remains.unlink()


def as_json(options: Namespace) -> dict:
    """Return the options as plain JSON values."""
    return json.loads(json.dumps(vars(options), default=str))


def write_history(progress: Progress, folder: Path) -> None:
    """Write `history.jsonl`, which a repeated run reproduces bit for bit, and `timing.jsonl`, which it does not."""
    for name, lines in (("history.jsonl", progress.history), ("timing.jsonl", progress.timing)):
        write_atomically(folder / name, "".join(json.dumps(line) + "\n" for line in lines))


def write_logits(path: Path, found: Predictions) -> None:
    """Write a table of file_name, label and logits, a row an image; source, where every image has one."""
    columns = {"file_name": pa.array(found.names, pa.string()), "label": pa.array(found.labels, pa.int64())}
    columns["logits"] = pa.array(list(found.logits), pa.list_(pa.float32()))
    if None not in found.sources:
        columns["source"] = pa.array(found.sources, pa.string())
    unfinished = path.with_name(f".{path.name}.unfinished")
    pq.write_table(pa.table(columns), unfinished)
    unfinished.replace(path)


def versions() -> dict[str, str]:
    """Return the versions of the packages that a run depends on, as far as they are installed."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def write_environment(
    options: Namespace,
    source: Source,
    accelerator: Accelerator,
    model: nn.Module,
    progress: Progress,
    teachers: list[dict],
) -> None:
    """Write `environment.json`: versions, dataset, hardware, and where the weights came from.

    teachers: `source` and `architecture` of each.
    """
    imagenet = options.pretrained and not options.init_from
    facts = {
        "versions": {"python": platform.python_version(), **versions()},
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
