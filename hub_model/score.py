"""Score many images: `accelerate launch -m hub_model score DATASET_OR_FOLDER --model MODEL --out predictions.parquet`.

The input is a dataset repo (id or folder) or a folder of images, read recursively, and a model repo (id or folder). The output
is a Parquet file with one row per image, in input order: `file_name`; `split` and `label` of a dataset; `predicted_label`;
`probability_CLASS` (calibrated); `conformal_set_LEVEL`, the classes in each conformal set; `ood_score` and `verdict` as in the
Space; `error`, why an image could not be read (the other columns are then null). Its metadata records model and settings.

The work is sharded over any number of processes and machines, which must all see the folder of OUT. Rerun to resume. The same
input gives the same bytes for any number of processes.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import signal
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, gather_object
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from dataset_script.arguments import whole_number
from hub_model.contract import CALIBRATION, weights_digest
from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import RepoError
from hub_model.inference.preprocessing import cores, map_ahead
from hub_model.score_output import Shards, predict, schema_of
from hub_model.score_sources import Listing, StreamedDataset, batches, is_dataset, open_dataset, open_folder

PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>
PROCESS_GROUP_TIMEOUT = timedelta(days=30)  # how long a process waits for slower ones


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, and `run`, which executes it."""
    add = parser.add_argument
    source = "dataset repo OWNER/NAME or its folder, or a folder of images"
    add("source", metavar="DATASET_OR_FOLDER", help=source)
    add("--model", required=True, help="model repo OWNER/NAME or its folder")
    add("--out", type=Path, required=True, help="Parquet file of predictions; rerun to resume")
    overwrite = "replace OUT, and the shards of an unfinished run with other settings"
    add("--overwrite", action="store_true", help=overwrite)
    add("--follow_links", action="store_true", help="follow symlinks that lead out of the folder of images")
    add("--split", nargs="+", default=[], help="splits of a dataset (default: all)")
    add("--config", help="configuration of a dataset that has several")
    add("--model_revision", help="branch, tag or commit of the model repo (default: main)")
    add("--dataset_revision", help="branch, tag or commit of the dataset repo (default: main)")
    add("--image_column", default="image", help="column of the images (default: image)")
    add("--label_column", default="label", help="column of the labels, if there is one (default: label)")
    backend = "default: auto, which is timm on a GPU, else ONNX Runtime if the repo has an ONNX model"
    add("--backend", choices=("auto", "onnx", "timm"), default="auto", help=backend)
    threads = "threads per process (default: the cores, divided among the processes)"
    add("--threads", type=whole_number(1), help=threads)
    parser.set_defaults(run=run)


def open_source(arguments: argparse.Namespace, listing: Path) -> Listing | StreamedDataset:
    """Open the input, a dataset or a folder of images. Raises RepoError if it has no images."""
    folder = Path(arguments.source)
    if folder.is_file():
        raise RepoError(f"{folder} is a file: pass a folder of images or a dataset")
    if not folder.is_dir() or is_dataset(folder):
        return open_dataset(arguments, listing)
    if arguments.split or arguments.config:
        raise RepoError(f"{folder} is a folder of images and has no splits: omit --split and --config")
    if arguments.out.resolve().is_relative_to(folder.resolve()):
        raise RepoError(f"--out {arguments.out} is inside the folder of images: choose a path outside it")
    return open_folder(folder, listing, arguments.follow_links)


def open_model(arguments: argparse.Namespace, device: torch.device, revision: str | None) -> Classifier:
    """Load the classifier on `device`. Raises RepoError if it is missing or broken."""
    model = arguments.model
    if (Path(model) / "checkpoints").is_dir():
        raise RepoError(
            f"{model} is a run folder: create a model repo from it with `python -m hub_model build {model} OUT`"
        )
    on_gpu = device.type != "cpu"
    backend = "timm" if on_gpu and arguments.backend == "auto" else arguments.backend
    classifier = Classifier.from_pretrained(model, revision, backend, threads=1)
    if classifier.backend == "timm":
        classifier.model.to(device)
    classifier.warmup()
    return classifier


def score(arguments: argparse.Namespace) -> None:
    """Score the missing shards and merge them into OUT, in each process of a run. Raises RepoError for invalid input."""
    shards, classifier, plan = Shards(arguments.out), None, None
    timeout = InitProcessGroupKwargs(timeout=PROCESS_GROUP_TIMEOUT)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[timeout])
    if accelerator.is_main_process:
        try:
            classifier, *plan = prepare(arguments, shards, accelerator.device)
        except RepoError as error:
            shards.remove_if_unused()
            plan = str(error)
    [plan] = broadcast_object_list([plan])
    if isinstance(plan, str):
        raise RepoError(plan) if accelerator.is_main_process else SystemExit(1)
    source, manifest, missing = plan
    if missing is None:
        accelerator.print(f"{shards.out} is complete: nothing to do")
        return
    if classifier is None:
        if not shards.folder.is_dir():
            raise RepoError(f"--out must be on a disk that all processes share: {shards.folder} is missing")
        classifier = open_model(arguments, accelerator.device, manifest["model_revision"])
    started = time.perf_counter()
    images = score_shards(classifier, source, missing, shards, accelerator, arguments.threads)
    speed = sum(gather_object([images])) / (time.perf_counter() - started)  # waits for all processes
    if accelerator.is_main_process:
        counts, unreadable = shards.merge(len(source.shards), manifest)
        classes = ", ".join(f"{label} {count:,}" for label, count in sorted(counts.items()))
        print(
            f"{shards.out}: {counts.total() + unreadable:,} images: {classes or 'none of any class'}; "
            f"{unreadable:,} unreadable; {speed:.0f} images/s{source.skipped}",
            flush=True,
        )
    accelerator.end_training()


def prepare(
    arguments: argparse.Namespace, shards: Shards, device: torch.device
) -> tuple[Classifier, Listing | StreamedDataset, dict[str, Any], list[int] | None]:
    """Return the classifier, the source, the manifest and the missing shards (None: OUT is complete)."""
    shards.claim()
    source = open_source(arguments, shards.folder / "listing.parquet")
    classifier = open_model(arguments, device, arguments.model_revision)
    manifest = source.settings | {
        "model": classifier.repo.name,
        "model_revision": classifier.repo.commit,
        "weights_sha256": weights_digest(classifier.repo.folder),
        "calibration": classifier.repo.read_json(CALIBRATION),
        "backend": classifier.backend,
        "device": device.type,
    }
    if shards.is_complete(manifest, arguments.overwrite):
        shards.remove()
        return classifier, source, manifest, None
    missing = shards.missing(len(source.shards))
    if written := len(source.shards) - len(missing):
        print(f"resuming: {written:,} of {len(source.shards):,} shards are written", flush=True)
    return classifier, source, manifest, missing


def score_shards(
    classifier: Classifier,
    source: Listing | StreamedDataset,
    missing: list[int],
    shards: Shards,
    accelerator: Accelerator,
    threads: int | None,
) -> int:
    """Write the missing shards of this process and return their number of images.

    Each batch is computed by one thread on one core, so that results are bit-identical for any number of threads.
    """
    processes, index = min(accelerator.num_processes, len(missing)), accelerator.process_index
    if index >= processes:
        return 0
    todo = [(number, source.shards[number]) for number in missing]
    rows = IterableDataset.from_generator(batches, gen_kwargs={"source": source, "shards": todo})
    rows = split_dataset_by_node(rows, index, processes, strategy="shards")
    schema = schema_of(classifier, source.columns)

    def predict_batch(batch: dict[str, Any]) -> tuple[int, pa.Table]:
        return batch["number"], predict(classifier, batch["rows"], schema)

    tables, images = [], 0
    threads = threads or max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    one_core = partial(torch.set_num_threads, 1)
    disable = None if accelerator.is_main_process else True  # None: shown on a terminal
    with tqdm(desc="scoring", total=len(missing) // processes, unit="shard", disable=disable) as progress:
        for number, table in map_ahead(predict_batch, rows, threads, initializer=one_core):
            tables.append(table)
            images += table.num_rows
            if table.num_rows == 0:  # the end of a shard
                shards.write(number, pa.concat_tables(tables))
                tables = []
                progress.update()
    return images


def end_with_launcher() -> None:
    """Ask Linux to kill this process when the launcher that started it is killed, so that no orphan keeps writing OUT."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run(arguments: argparse.Namespace) -> int:
    """Score, and return 0.

    Raises:
        RepoError: invalid input, a full disk or another OSError, or an interrupt.
    """
    end_with_launcher()
    try:
        with threadpool_limits(1):
            score(arguments)
        return 0
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else f"{error.strerror or error}: {error.filename or ''}"
    except KeyboardInterrupt:
        reason = "stopped"
    raise RepoError(f"{reason}; finished shards are kept: rerun to resume")
