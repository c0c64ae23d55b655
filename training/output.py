"""The run folder: made, guarded against mixing two runs, and filled with history, logits, curves and what it all ran on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch import nn

from dataset_script.arguments import holds_other_things
from training import TrainingError
from training.checkpoint import Progress, write_atomically
from training.options import as_json, check_same_data, check_same_run
from training.source import Source

PACKAGES = (
    "accelerate",
    "datasets",
    "evaluate",
    "huggingface_hub",
    "numpy",
    "pillow",
    "timm",
    "torch",
    "torchvision",
)


def check_output(options, accelerator: Accelerator) -> None:
    """Make the output folder where there is none, and change nothing where there is one; never mix two runs.

    Raises:
        TrainingError: the folder holds something else, or what is to be read.
    """
    folder = options.output_dir
    if not accelerator.is_main_process:
        return
    recorded = folder / "args.json"
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"{folder} is a file: name a folder")
    if options.overwrite:
        if holds_other_things(folder, recorded.name):
            raise TrainingError(
                f"{folder} holds no run, and --overwrite deletes nothing else: use another folder"
            )
        for source in (options.dataset, options.init_from, *options.teacher):
            if source and Path(source).exists() and Path(source).resolve().is_relative_to(folder.resolve()):
                raise TrainingError(
                    f"{source} lies in {folder}, which --overwrite deletes: use another folder"
                )
    elif options.resume and recorded.is_file():
        check_same_run(options, recorded, accelerator.num_processes)
    elif folder.exists() and any(folder.iterdir()):
        raise TrainingError(
            f"{folder} is not empty: --resume goes on with the run in it, --overwrite deletes it"
        )
    folder.mkdir(parents=True, exist_ok=True)


def start_output(options, accelerator: Accelerator, revision: str) -> None:
    """Delete the run that is to be overwritten, now that nothing can be wrong any more, and record the options.

    Args:
        revision: the dataset's, which a resumed run must find again.

    Raises:
        TrainingError: a resumed run would go on with other data.
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
    if options.log_with:
        accelerator.init_trackers("bone-marrow-cells", config=flat(as_json(options)))
    accelerator.wait_for_everyone()


def clear_remains(folder: Path) -> None:
    """Delete what a process left half written when it was killed."""
    for remains in (*folder.glob(".*.unfinished"), *folder.glob(".model-*")):
        if remains.is_dir():
            shutil.rmtree(remains)
        else:
            remains.unlink()


def flat(options: dict) -> dict:
    """Return the options as trackers take them: lists become texts."""
    return {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in options.items()}


def note_signal(number: signal.Signals, told: list) -> None:
    """Append to `told` when that signal arrives; a second Ctrl-C interrupts at once."""

    def note(*_: object) -> None:
        told.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    with contextlib.suppress(ValueError):  # not in the main thread: whoever runs us there handles signals
        signal.signal(number, note)


def write_history(progress: Progress, folder: Path) -> None:
    """Write `history.jsonl`, which a repeated run reproduces bit for bit, and `timing.jsonl`, which it does not."""
    for name, lines in (("history.jsonl", progress.history), ("timing.jsonl", progress.timing)):
        write_atomically(folder / name, "".join(json.dumps(line) + "\n" for line in lines))


def write_logits(path: Path, names: list[str], labels: np.ndarray, logits: np.ndarray) -> None:
    """Write a table of file_name, label and logits, a row an image."""
    table = pa.table(
        {
            "file_name": pa.array(names, pa.string()),
            "label": pa.array(labels, pa.int64()),
            "logits": pa.array(list(logits), pa.list_(pa.float32())),
        }
    )
    unfinished = path.with_name(f".{path.name}.unfinished")
    pq.write_table(table, unfinished)
    unfinished.replace(path)


def write_report(
    options,
    source: Source,
    accelerator: Accelerator,
    network: nn.Module,
    progress: Progress,
    teachers: list[dict],
) -> None:
    """Draw the curves, and write `environment.json`: versions, dataset, hardware, and where the weights came from.

    teachers: `source` and `architecture` of each.
    """
    if progress.history:
        plot_history(progress.history, options.output_dir / "curves.png")
    imagenet = options.pretrained and not options.init_from
    hub_id = network.pretrained_cfg.get("hf_hub_id")
    facts = {
        "versions": {"python": platform.python_version()}
        | {p: importlib.metadata.version(p) for p in PACKAGES},
        "dataset": {
            "id": source.id,
            "revision": source.revision,
            "licence": source.licence,
            "splits": source.sizes,
        },
        "model": {
            "architecture": network.pretrained_cfg["architecture"],
            "parameters": sum(p.numel() for p in network.parameters()),
            "best_epoch": progress.best_epoch,
            "minutes": progress.seconds / 60,
            "pretrained": hub_id if imagenet else None,
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


def plot_history(history: list[dict], path: Path) -> None:
    """Draw loss, accuracy and macro-F1 of both splits over the epochs."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, (key, title) in zip(
        axes, (("loss", "Loss"), ("accuracy", "Accuracy"), ("macro_f1", "Macro-F1")), strict=True
    ):
        for split, colour in (("train", "#0072B2"), ("validation", "#D55E00")):
            axis.plot(
                [e["epoch"] for e in history],
                [e[f"{split}_{key}"] for e in history],
                color=colour,
                label=split,
            )
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=120)
