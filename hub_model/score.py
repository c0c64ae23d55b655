"""Score many images: `accelerate launch -m hub_model.score DATASET_OR_FOLDER --model MODEL --out predictions.parquet`.

In: a dataset repo (id or folder) or a folder of images at any depth, and a model repo (id or folder). Out: one Parquet file, a
row an image, in the order of the input: `file_name`; `split` and `label` of a dataset; `predicted_label`; `probability_CLASS`
(calibrated); `set_LEVEL`, the classes of each conformal set; `ood_score` and `verdict` as in the Space; `error`, the reason
why an image could not be read (then the rest is null). The file's metadata says what it was made with.

Any number of processes on any number of machines share the work (OUT must then lie where all of them see it). A run that was
killed goes on when the same command is given again. The same input gives the same bytes, however many processes there are.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import itertools
import json
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, gather_object
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from dataset_script.arguments import whole_number
from hub_model.contract import CALIBRATION, weights_digest
from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import RepoError
from hub_model.score_datasets import UNREACHABLE, first_line, is_dataset_folder, open_dataset
from hub_model.score_parts import Parts, is_disk_full
from hub_model.score_rows import answer, schema_of
from hub_model.score_sources import FolderImages, Picture, Source

BATCH_SIZE = 32
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
PATIENCE = timedelta(days=30)  # that a process waits for a slower one
T = TypeVar("T")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options; argparse ends the program with 2 when one is wrong."""
    parser = argparse.ArgumentParser(prog="python -m hub_model.score", description=__doc__.partition(":")[0])
    parser.add_argument(
        "source",
        metavar="DATASET_OR_FOLDER",
        help="dataset repo OWNER/NAME or its folder, or a folder of images",
    )
    parser.add_argument("--model", required=True, help="model repo OWNER/NAME or its folder")
    parser.add_argument("--out", type=Path, required=True, help="the Parquet file of predictions")
    parser.add_argument(
        "--resume", action="store_true", help="a finished OUT is fine: an unfinished one goes on in any case"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace OUT, and what an unfinished run with other settings left",
    )
    parser.add_argument("--split", nargs="+", default=[], help="splits of a dataset (default: all)")
    parser.add_argument("--model_revision", help="branch, tag or commit of the model repo")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of the dataset repo")
    parser.add_argument("--dataset_config", help="configuration of the dataset, where it has several")
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--label_column", default="label")
    parser.add_argument(
        "--backend",
        choices=("auto", "onnx", "timm"),
        default="auto",
        help="auto: timm on a GPU, else ONNX if there",
    )
    parser.add_argument(
        "--threads",
        type=whole_number(1),
        help="of one process (default: the machine's cores, shared by its processes)",
    )
    arguments = parser.parse_args(argv)
    if arguments.resume and arguments.overwrite:
        parser.error("--resume and --overwrite exclude each other")
    return arguments


def open_source(arguments: argparse.Namespace, scratch: Path) -> Source:
    """The images that the command line names. Raises RepoError in one sentence when there are none."""
    folder = Path(arguments.source)
    if not folder.is_dir() or is_dataset_folder(folder):
        if folder.is_file():
            raise RepoError(f"{folder} is a file: name a folder of images or a dataset")
        return open_dataset(
            arguments.source, arguments.dataset_config, arguments.dataset_revision, arguments.split,
            arguments.image_column, arguments.label_column,
        )  # fmt: skip
    if arguments.split:
        raise RepoError(f"{folder} is a folder of images and has no splits: leave --split out")
    if arguments.out.resolve().is_relative_to(folder.resolve()):
        raise RepoError(f"--out {arguments.out} lies in the folder of images: name a place outside of it")
    return FolderImages.open(folder, scratch)


def open_model(arguments: argparse.Namespace, device: torch.device, revision: str | None) -> Classifier:
    """The classifier, on `device`. Raises RepoError in one sentence when it is missing or broken."""
    if (Path(arguments.model) / "checkpoints").is_dir():
        raise RepoError(
            f"{arguments.model} is a run folder: make a model repo of it with `python -m hub_model build {arguments.model} OUT`"
        )
    on_gpu = device.type != "cpu"
    backend = "timm" if on_gpu and arguments.backend == "auto" else arguments.backend
    try:
        classifier = Classifier.from_pretrained(arguments.model, revision, backend, threads=1)
        if classifier.backend == "timm":
            classifier.model.to(device)
        classifier.warmup()
    except RepoError as error:
        raise RepoError(str(error)) from None
    return classifier


def ahead(pool: Executor, work: Callable[[Any], T], items: Iterator, depth: int) -> Iterator[T]:
    """`work(item)` for each item, in order, with up to `depth` items under way."""
    pending = deque(pool.submit(work, item) for item in itertools.islice(items, depth))
    while pending:
        result = pending.popleft().result()
        pending.extend(pool.submit(work, item) for item in itertools.islice(items, 1))
        yield result


def batches(source: Source, numbers: list[int]) -> Iterator[tuple[int, list[Picture]]]:
    """(number of the piece, pictures), at least one batch a piece. Raises RepoError where the source fails."""
    try:
        for number in numbers:
            pictures = source.read(source.pieces[number])
            batch = list(itertools.islice(pictures, BATCH_SIZE))
            yield number, batch
            while batch := list(itertools.islice(pictures, BATCH_SIZE)):
                yield number, batch
    except (*UNREACHABLE, pa.ArrowException) as error:
        raise RepoError(f"reading the images failed: {first_line(error)}") from None


def score_pieces(
    source: Source, classifier: Classifier, parts: Parts, numbers: list[int], threads: int, bar: tqdm
) -> int:
    """Write the part of each of these pieces; return how many images that were.

    Each of the threads computes whole batches on one core, so that the bits of an answer do not depend on how many there are.
    """
    schema, images = schema_of(classifier, source.known), 0

    def work(item: tuple[int, list[Picture]]) -> tuple[int, pa.Table]:
        return item[0], answer(classifier, item[1], schema)

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            answers = ahead(pool, work, batches(source, numbers), depth=3 * threads)
            for number, group in itertools.groupby(answers, key=lambda item: item[0]):
                tables = []
                for _, table in group:
                    tables.append(table)
                    bar.update(table.num_rows)
                    images += table.num_rows
                parts.write(number, pa.concat_tables(tables))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return images


class Run:
    """One run, in each of its processes."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        waiting = InitProcessGroupKwargs(timeout=PATIENCE)
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[waiting])
        self.parts = Parts(arguments.out)

    def agreed(self, act: Callable[[], T]) -> T:
        """What `act` returns in the main process. Where it raises RepoError there, every process ends."""
        outcome: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            try:
                outcome[0] = act()
            except RepoError as error:
                self.parts.remove_if_unused()
                outcome[1] = str(error)
        broadcast_object_list(outcome)
        if outcome[1] is not None:
            if self.accelerator.is_main_process:
                raise RepoError(outcome[1])
            raise SystemExit(1)
        return outcome[0]

    def prepare(self) -> tuple[Source, dict[str, Any], list[int] | None]:
        """Main process: the source, the manifest, and the pieces still to do (None: OUT is complete)."""
        arguments = self.arguments
        self.parts.claim(arguments.resume, arguments.overwrite)
        source = open_source(arguments, self.parts.folder)
        self.classifier = open_model(arguments, self.accelerator.device, arguments.model_revision)
        repo = self.classifier.repo
        manifest = source.settings | {
            "model": repo.name,
            "model_revision": repo.commit,
            "weights_sha256": weights_digest(repo.folder),
            "calibration_sha256": hashlib.sha256(
                json.dumps(repo.read_json(CALIBRATION)).encode()
            ).hexdigest(),
            "backend": self.classifier.backend,
            "device": self.accelerator.device.type,
        }
        complete = self.parts.settle(manifest, arguments.resume, arguments.overwrite)
        missing = [] if complete else self.parts.missing(len(source.pieces))
        if not complete and len(missing) < len(source.pieces):
            done = len(source.pieces) - len(missing)
            print(f"going on: {done:,} of {len(source.pieces):,} parts are there", flush=True)
        return source, manifest, None if complete else missing

    def __call__(self) -> None:
        """Score what is missing, and make OUT of the parts."""
        accelerator, parts = self.accelerator, self.parts
        source, manifest, missing = self.agreed(self.prepare)
        if missing is None:
            accelerator.print(f"{parts.out} is complete: nothing to do")
            return
        if not accelerator.is_main_process:
            if not parts.folder.is_dir():
                raise RepoError(
                    f"{parts.folder} is not seen by every process: --out must lie on a disk that they share"
                )
            self.classifier = open_model(self.arguments, accelerator.device, manifest["model_revision"])
        images, seconds = self.score(source, missing)
        if accelerator.is_main_process:
            counts, unread = parts.merge(len(source.pieces), manifest.get("images"), manifest)
            parts.remove()
            print(summary(parts.out, counts, unread, f"{images / seconds:.0f} images/s"), flush=True)
        accelerator.end_training()

    def score(self, source: Source, missing: list[int]) -> tuple[int, float]:
        """Score this process's share; return how many images all of them scored, and in how many seconds."""
        accelerator = self.accelerator
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        rows = [source.pieces[number].rows for number in mine]
        title = "scoring"
        if accelerator.num_processes > 1:
            title += f", process 1 of {accelerator.num_processes}"
        hidden = None if accelerator.is_main_process else True  # None: shown on a terminal
        threads = self.arguments.threads or threads_of_a_process()
        started = time.perf_counter()
        with tqdm(desc=title, total=None if None in rows else sum(rows), unit="image", disable=hidden) as bar:
            images = score_pieces(source, self.classifier, self.parts, mine, threads, bar)
        images = sum(gather_object([images]))  # waits for all of them
        return images, time.perf_counter() - started


def end_with_launcher() -> None:
    """Have Linux end this process when the launcher that started it is killed, lest an orphan go on writing OUT."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def threads_of_a_process() -> int:
    """The machine's cores, shared by the processes that were launched on it."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def summary(out: Path, counts: Counter, unread: int, speed: str) -> str:
    """The line at the end."""
    total = sum(counts.values()) + unread
    classes = ", ".join(f"{label} {count:,}" for label, count in sorted(counts.items()))
    return f"{out}: {total:,} images: {classes or 'none of any class'}; {unread:,} unreadable; {speed}"


def main(argv: list[str] | None = None) -> int:
    """Score; expected failures end with one sentence and exit code 1."""
    arguments = parse(argv)
    end_with_launcher()
    kept = f"finished parts are kept beside {arguments.out}: the same command goes on"
    try:
        with threadpool_limits(1):
            Run(arguments)()
        return 0
    except RepoError as error:
        message = str(error)
    except OSError as error:
        reason = (
            "the disk is full"
            if is_disk_full(error)
            else f"{error.strerror or error}: {error.filename or ''}"
        )
        message = f"{reason}; {kept}"
    except KeyboardInterrupt:
        message = f"stopped; {kept}"
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
