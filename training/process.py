"""The process and its ranks: how it starts, what stops it, and the sentence for a failure that is nobody's bug.

All ranks, on one machine or several, train in step. When one ends, the system closes its connections, and the others know at
once; when its machine is cut off, they know after `--process_group_timeout` minutes without an answer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import signal
import socket
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object, set_seed

from hub_model.inference.errors import RepoError, first_line
from training import TrainingError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
CHUNK = 64 * 2**20  # bytes of a file that are sent at a time
# what gloo, NCCL and the rendezvous store say of a process that is gone; gloo raises a plain RuntimeError
SIGNS = re.compile(
    r"gloo|nccl|tcpstore|connection|broken pipe|timed out|timeout|unreachable|no route", re.IGNORECASE
)
SOURCE_LINE = re.compile(r"^\[[^\]]*\]\s*")  # [/pytorch/third_party/gloo/…:547] before gloo's messages
UNWRITABLE = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM]
UNWRITABLE += [errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP]


def start_accelerator(options: Namespace) -> Accelerator:
    """Return the seeded accelerator of this rank.

    Raises:
        TrainingError: fewer processes were started than asked for.
    """
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # without it, processes on a CPU would each train alone
        mixed_precision=options.mixed_precision,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        log_with=options.log_with,
        project_dir=options.output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=options.process_group_timeout))],
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    torch.backends.cudnn.benchmark = True  # batches have two sizes: the fastest convolutions are soon found
    check_launch(accelerator)
    set_seed(options.seed)
    return accelerator


def check_launch(accelerator: Accelerator) -> None:
    """Refuse the one process that `accelerate launch --cpu --num_processes N` starts, which would train alone in silence.

    Raises:
        TrainingError: says what starts N processes.
    """
    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    several = "MASTER_ADDR" in os.environ  # is set for several processes only
    if cpu and several and accelerator.num_processes == 1:
        raise TrainingError(
            "accelerate launch with --cpu starts one process, whatever --num_processes and --num_machines say: pass "
            "--multi_gpu instead of --cpu, which without a GPU trains on several processes of the CPU"
        )


def keep_freed_memory() -> bool:
    """Tell this process's malloc to keep what is freed; return whether it can be told (it can where it is glibc's).

    A training step frees its activations, hundreds of megabytes, and takes as many again in the next one. By default malloc
    hands large blocks back to the system, which maps and zeroes every page again. Here blocks of any size come from the
    heap (M_MMAP_MAX 0), and the heap never shrinks (M_TRIM_THRESHOLD -1); see mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


class StopRequest:
    """True once one of the watched signals has arrived; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self.received = False

    def watch(self, number: signal.Signals) -> None:
        """Note this signal from now on instead of ending at once."""
        with contextlib.suppress(ValueError):  # not in the main thread: whoever runs us there handles signals
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        self.received = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __bool__(self) -> bool:
        return self.received


def exit_code(train: Callable[[Namespace], None], options: Namespace) -> int:
    """Run the training; print an expected failure as one sentence, and return the exit code."""
    try:
        train(options)
    except (TrainingError, RepoError) as error:
        sentence = str(error)
    except KeyboardInterrupt:
        print("error: interrupted; rerun with --resume to continue from the last checkpoint", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        sentence = f"{options.output_dir} cannot be written: {error.strerror}"
    except RuntimeError as error:
        if not (sentence := lost_rank(error, options)):
            raise
    else:
        return 0
    print(f"error: {sentence}", file=sys.stderr)
    return 1


def lost_rank(error: RuntimeError, options: Namespace) -> str | None:
    """Return the sentence for an error that comes from the loss of another process; None for any other error."""
    group = torch.distributed
    text = SOURCE_LINE.sub("", first_line(error)).split(". ")[0]
    if not isinstance(error, group.DistError) and not (group.is_initialized() and SIGNS.search(text)):
        return None
    who = "this process"
    if group.is_initialized():
        who = f"process {group.get_rank()} of {group.get_world_size()}"
    return (
        f"{who} on {socket.gethostname()} has lost another one ({text}): it ended, and its own message says why, or its machine "
        f"did not answer (--process_group_timeout is {options.process_group_timeout:g} minutes); rerun all of them with --resume"
    )


@contextlib.contextmanager
def seen_by_all(accelerator: Accelerator, folder: Path | None, mark: str) -> Iterator[Path | None]:
    """Give each rank the main process's flat `folder`: itself where it is seen, else a copy for as long as it is needed.

    The copy comes through the connection that the ranks have anyway, so that machines need not share a disk. A folder is
    taken for the main process's when its file `mark` has the same content. Without a folder (None) all are given None.
    """
    main = accelerator.is_main_process
    files = {file.name: file.stat().st_size for file in folder.iterdir()} if main and folder else {}
    proof = (folder / mark).read_bytes() if main and folder else b""
    folder, files, proof = broadcast_object_list([folder, files, proof])
    seen = folder is None or ((folder / mark).is_file() and (folder / mark).read_bytes() == proof)
    if all(gather_object([seen])):
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        for name, size in files.items():
            with open(folder / name if main else Path(copy) / name, "rb" if main else "wb") as file:
                for _ in range(0, size, CHUNK):
                    (chunk,) = broadcast_object_list([file.read(CHUNK) if main else None])
                    if not main and not seen:
                        file.write(chunk)
        yield folder if seen else Path(copy)
