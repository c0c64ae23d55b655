"""Process setup, signals, exit codes, and the failure of other processes.

All processes, on one machine or several, train in lockstep. When one exits, its connections are closed and the others fail at
once. When its machine is unreachable, they fail after `--process_group_timeout` minutes.
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
CHUNK = 64 * 2**20  # bytes of a file per broadcast
# messages of gloo, NCCL and the rendezvous store about a lost process; gloo raises a plain RuntimeError
CONNECTION_LOST = re.compile(
    r"gloo|nccl|tcpstore|connection|broken pipe|timed out|timeout|unreachable|no route", re.IGNORECASE
)
SOURCE_LINE = re.compile(r"^\[[^\]]*\]\s*")  # [/pytorch/third_party/gloo/…:547] before gloo's messages
UNWRITABLE = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM]
UNWRITABLE += [errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP]


def start_accelerator(options: Namespace) -> Accelerator:
    """Return the accelerator of this process, after setting all random seeds.

    Raises:
        TrainingError: `accelerate launch` started one process instead of several.
    """
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # otherwise CPU processes would not form a group
        mixed_precision=options.mixed_precision,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        log_with=options.log_with,
        project_dir=options.output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=options.process_group_timeout))],
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    torch.backends.cudnn.benchmark = True  # few different batch shapes
    check_launch(accelerator)
    set_seed(options.seed)
    return accelerator


def check_launch(accelerator: Accelerator) -> None:
    """Refuse the single process that `accelerate launch --cpu --num_processes N` silently starts instead of N.

    Raises:
        TrainingError: with the option that starts N processes.
    """
    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    distributed = "MASTER_ADDR" in os.environ  # only set for several processes
    if cpu and distributed and accelerator.num_processes == 1:
        raise TrainingError(
            "accelerate launch --cpu starts a single process and ignores --num_processes and --num_machines: pass "
            "--multi_gpu instead of --cpu, which starts several CPU processes where there is no GPU"
        )


def keep_freed_memory() -> bool:
    """Make glibc's malloc reuse freed memory instead of returning it to the system; return whether that worked.

    Every training step frees and reallocates hundreds of megabytes of activations. By default malloc returns large blocks to the
    system, which has to map and zero every page again. With these settings blocks of any size come from the heap
    (M_MMAP_MAX 0), and the heap never shrinks (M_TRIM_THRESHOLD -1); see mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


class StopRequest:
    """True once one of the watched signals has been received; a second Ctrl-C interrupts immediately."""

    def __init__(self):
        self.received = False

    def watch(self, number: signal.Signals) -> None:
        """Record this signal from now on instead of exiting."""
        with contextlib.suppress(ValueError):  # not in the main thread, where the caller handles signals
            signal.signal(number, self._record)

    def _record(self, number: int, _frame: object) -> None:
        self.received = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __bool__(self) -> bool:
        return self.received


def exit_code(train: Callable[[Namespace], None], options: Namespace) -> int:
    """Run the training and return the exit code; expected failures are printed as one sentence."""
    try:
        train(options)
    except (TrainingError, RepoError) as error:
        message = str(error)
    except KeyboardInterrupt:
        print("error: interrupted; rerun with --resume to continue from the last checkpoint", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        message = f"{options.output_dir} cannot be written: {error.strerror}"
    except RuntimeError as error:
        if not (message := lost_process(error, options)):
            raise
    else:
        return 0
    print(f"error: {message}", file=sys.stderr)
    return 1


def lost_process(error: RuntimeError, options: Namespace) -> str | None:
    """Return the message for an error caused by the loss of another process; None for any other error."""
    group = torch.distributed
    text = SOURCE_LINE.sub("", first_line(error)).split(". ")[0]
    lost = group.is_initialized() and CONNECTION_LOST.search(text)
    if not isinstance(error, group.DistError) and not lost:
        return None
    name = "this process"
    if group.is_initialized():
        name = f"process {group.get_rank()} of {group.get_world_size()}"
    return (
        f"{name} on {socket.gethostname()} has lost another one ({text}): it exited (see its own message), or its machine did "
        f"not respond within {options.process_group_timeout:g} minutes (--process_group_timeout); rerun all with --resume"
    )


@contextlib.contextmanager
def broadcast_folder(accelerator: Accelerator, folder: Path | None, marker: str) -> Iterator[Path | None]:
    """Give every process the main process's flat `folder` (None: gives None): the folder itself if shared, else a temporary copy.

    Copies are sent through the process group, so machines need not share a disk. A process shares the main process's disk if the
    file `marker` in the folder has the same content for both.
    """
    main = accelerator.is_main_process
    files = {file.name: file.stat().st_size for file in folder.iterdir()} if main and folder else {}
    content = (folder / marker).read_bytes() if main and folder else b""
    folder, files, content = broadcast_object_list([folder, files, content])
    shared = folder is None or ((folder / marker).is_file() and (folder / marker).read_bytes() == content)
    if all(gather_object([shared])):
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        for name, size in files.items():
            with open(folder / name if main else Path(copy) / name, "rb" if main else "wb") as file:
                for _ in range(0, size, CHUNK):
                    (chunk,) = broadcast_object_list([file.read(CHUNK) if main else None])
                    if not main and not shared:
                        file.write(chunk)
        yield folder if shared else Path(copy)
