"""Score many images: `accelerate launch -m hub_model score DATASET_OR_FOLDER --model MODEL --out predictions.parquet`.

In: a dataset repo (id or folder) or a folder of images at any depth, and a model repo (id or folder). Out: one Parquet file, a
row an image, in the order of the input: `file_name`; `split` and `label` of a dataset; `predicted_label`; `probability_CLASS`
(calibrated); `conformal_set_LEVEL`, the classes of each conformal set; `ood_score` and `verdict` as in the Space; `error`, the
reason why an image could not be read (then the rest is null). The file's metadata says what it was made with.

Any number of processes on any number of machines share the work (OUT must then lie where all of them see it). Rerun to resume.
The same input gives the same bytes, however many processes there are.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import signal
import sys
import time
from collections import Counter
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

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
from hub_model.inference.preprocessing import ahead, cores
from hub_model.score_output import Parts, answer, schema_of
from hub_model.score_sources import Listing, Table, batches, is_dataset, open_dataset, open_folder, told

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
PROCESS_GROUP_TIMEOUT = timedelta(days=30)  # for a process that waits for a slower one
T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command, and what carries it out."""
    parser.add_argument(
        "source",
        metavar="DATASET_OR_FOLDER",
        help="dataset repo OWNER/NAME or its folder, or a folder of images",
    )
    add = parser.add_argument
    add("--model", required=True, help="model repo OWNER/NAME or its folder")
    add("--out", type=Path, required=True, help="Parquet file of predictions; rerun to resume")
    add(
        "--overwrite",
        action="store_true",
        help="replace OUT, and what an unfinished run with other settings left",
    )
    add(
        "--follow_links", action="store_true", help="also read what links out of the folder of images lead to"
    )
    add("--split", nargs="+", default=[], help="splits of a dataset (default: all)")
    add("--config", help="configuration of a dataset that has several")
    add("--model_revision", help="branch, tag or commit of the model repo (default: main)")
    add("--dataset_revision", help="branch, tag or commit of the dataset repo (default: main)")
    add("--image_column", default="image", help="column of the images (default: image)")
    add("--label_column", default="label", help="column of the labels, where there is one (default: label)")
    add(
        "--backend", choices=("auto", "onnx", "timm"), default="auto",
        help="default: auto, which is timm on a GPU, else ONNX Runtime if the repo has a model for it",
    )  # fmt: skip
    add(
        "--threads", type=whole_number(1), help="of one process (default: the cores, shared by the processes)"
    )
    parser.set_defaults(run=run)


def open_source(arguments: argparse.Namespace, listing: Path, passed_over: Counter) -> Listing | Table:
    """The images that the command line names. Raises RepoError in one sentence when there are none."""
    folder = Path(arguments.source)
    if folder.is_file():
        raise RepoError(f"{folder} is a file: name a folder of images or a dataset")
    if not folder.is_dir() or is_dataset(folder):
        return open_dataset(arguments, listing)
    if arguments.split or arguments.config:
        raise RepoError(f"{folder} is a folder of images and has no splits: leave --split and --config out")
    if arguments.out.resolve().is_relative_to(folder.resolve()):
        raise RepoError(f"--out {arguments.out} lies in the folder of images: name a place outside of it")
    return open_folder(folder, listing, arguments.follow_links, passed_over)


def open_model(arguments: argparse.Namespace, device: torch.device, revision: str | None) -> Classifier:
    """The classifier, on `device`. Raises RepoError in one sentence when it is missing or broken."""
    if (Path(arguments.model) / "checkpoints").is_dir():
        raise RepoError(
            f"{arguments.model} is a run folder: make a model repo of it with `python -m hub_model build {arguments.model} OUT`"
        )
    on_gpu = device.type != "cpu"
    backend = "timm" if on_gpu and arguments.backend == "auto" else arguments.backend
    classifier = Classifier.from_pretrained(arguments.model, revision, backend, threads=1)
    if classifier.backend == "timm":
        classifier.model.to(device)
    classifier.warmup()
    return classifier


class Scoring:
    """One run, in each of its processes."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.parts = arguments, Parts(arguments.out)
        waiting = InitProcessGroupKwargs(timeout=PROCESS_GROUP_TIMEOUT)
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[waiting])
        self.is_main = self.accelerator.is_main_process

    def __call__(self) -> None:
        """Score what is missing, and make OUT of the parts."""
        found: list[Any] = [None]
        if self.is_main:
            try:
                found = [self.prepare()]
            except RepoError as error:
                self.parts.remove_if_unused()
                found = [str(error)]
        broadcast_object_list(found)
        if isinstance(found[0], str):
            raise RepoError(found[0]) if self.is_main else SystemExit(1)
        source, manifest, missing = found[0]
        if missing is None:
            self.accelerator.print(f"{self.parts.out} is complete: nothing to do")
            return
        if not self.is_main:
            if not self.parts.folder.is_dir():
                raise RepoError(
                    f"--out must lie on a disk that all processes share: {self.parts.folder} is missing"
                )
            self.classifier = open_model(self.arguments, self.accelerator.device, manifest["model_revision"])
        started = time.perf_counter()
        scored = sum(gather_object([self.score(source, missing)]))  # waits for all of them
        speed = scored / (time.perf_counter() - started)
        if self.is_main:
            counts, unread = self.parts.merge(len(source.shards), manifest)
            classes = ", ".join(f"{label} {count:,}" for label, count in sorted(counts.items()))
            said = (
                f"{counts.total() + unread:,} images: {classes or 'none of any class'}; {unread:,} unreadable"
            )
            print(f"{self.parts.out}: {said}; {speed:.0f} images/s{told(self.passed_over)}", flush=True)
        self.accelerator.end_training()

    def prepare(self) -> tuple[Listing | Table, dict[str, Any], list[int] | None]:
        """Main process: the source, the manifest, and the shards still to do (None: OUT is complete)."""
        arguments, parts = self.arguments, self.parts
        parts.claim()
        self.passed_over: Counter = Counter()
        source = open_source(arguments, parts.folder / "listing.parquet", self.passed_over)
        self.classifier = open_model(arguments, self.accelerator.device, arguments.model_revision)
        repo = self.classifier.repo
        manifest = source.settings | {
            "model": repo.name,
            "model_revision": repo.commit,
            "weights_sha256": weights_digest(repo.folder),
            "calibration": repo.read_json(CALIBRATION),
            "backend": self.classifier.backend,
            "device": self.accelerator.device.type,
        }
        if parts.settle(manifest, arguments.overwrite):
            parts.remove()
            return source, manifest, None
        missing = parts.missing(len(source.shards))
        if done := len(source.shards) - len(missing):
            print(f"resuming: {done:,} of {len(source.shards):,} parts are there", flush=True)
        return source, manifest, missing

    def score(self, source: Listing | Table, missing: list[int]) -> int:
        """Write the parts of this process's shards; return how many images that were.

        A thread computes whole batches on one core, so that the bits of an answer do not depend on how many there are.
        """
        processes, index = min(self.accelerator.num_processes, len(missing)), self.accelerator.process_index
        if index >= processes:
            return 0
        shards = [(number, source.shards[number]) for number in missing]
        work = IterableDataset.from_generator(batches, gen_kwargs={"source": source, "shards": shards})
        work = split_dataset_by_node(work, index, processes, strategy="shards")
        schema = schema_of(self.classifier, source.columns)

        def of_batch(batch: dict[str, Any]) -> tuple[int, pa.Table]:
            return batch["number"], answer(self.classifier, batch["images"], schema)

        tables, images = [], 0
        threads = self.arguments.threads or max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        hidden = None if self.is_main else True  # None: shown on a terminal
        with tqdm(desc="scoring", total=len(missing) // processes, unit="part", disable=hidden) as bar:
            for number, table in ahead(
                of_batch, work, threads, initializer=partial(torch.set_num_threads, 1)
            ):
                tables.append(table)
                images += table.num_rows
                if table.num_rows == 0:  # the end of a shard
                    self.parts.write(number, pa.concat_tables(tables))
                    tables = []
                    bar.update()
        return images


def end_with_launcher() -> None:
    """Have Linux end this process when the launcher that started it is killed, lest an orphan go on writing OUT."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run(arguments: argparse.Namespace) -> int:
    """Score; expected failures end with one sentence and exit code 1."""
    end_with_launcher()
    try:
        with threadpool_limits(1):
            Scoring(arguments)()
        return 0
    except RepoError as error:
        message = str(error)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else f"{error.strerror or error}: {error.filename or ''}"
        message = f"{reason}; finished parts are kept: rerun to resume"
    except KeyboardInterrupt:
        message = "stopped; finished parts are kept: rerun to resume"
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 1
