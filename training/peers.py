"""The other processes of a run: how long one waits for them, what it says when one is gone, what it sends them.

All of them, on one machine or several, train in step. When one ends, the system closes its connections, and the others know at
once; when its machine is cut off, they know after `--peer_timeout` minutes without an answer.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object

from training import TrainingError
from training.source import first_line

PIECE = 64 * 2**20  # bytes of a file that are sent at a time
# what gloo, NCCL and the rendezvous store say of a process that is gone; gloo raises a plain RuntimeError
SIGNS = re.compile(
    r"gloo|nccl|tcpstore|connection|broken pipe|timed out|timeout|unreachable|no route", re.IGNORECASE
)
SOURCE_LINE = re.compile(r"^\[[^\]]*\]\s*")  # [/pytorch/third_party/gloo/…:547] before gloo's messages


def process_group_timeout(options) -> InitProcessGroupKwargs:
    """Return accelerate's setting of how long a process waits for another before it gives up."""
    return InitProcessGroupKwargs(timeout=timedelta(minutes=options.peer_timeout))


def check_launch(accelerator: Accelerator) -> None:
    """Refuse the one process that `accelerate launch --cpu --num_processes N` starts, which would train alone in silence.

    Raises:
        TrainingError: says what starts N processes.
    """
    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if (
        cpu and accelerator.num_processes == 1 and "MASTER_ADDR" in os.environ
    ):  # set for several processes only
        raise TrainingError(
            "accelerate launch with --cpu starts one process, whatever --num_processes and --num_machines say: pass "
            "--multi_gpu instead of --cpu, which without a GPU trains on several processes of the CPU"
        )


def tell_of_lost_peer(error: RuntimeError, options) -> str | None:
    """Return the sentence for an error that comes from the loss of another process; None for any other error."""
    group = torch.distributed
    text = SOURCE_LINE.sub("", first_line(error)).split(". ")[0]
    if not isinstance(error, group.DistError) and not (group.is_initialized() and SIGNS.search(text)):
        return None
    who = (
        f"process {group.get_rank()} of {group.get_world_size()}"
        if group.is_initialized()
        else "this process"
    )
    return (
        f"{who} on {socket.gethostname()} has lost another one ({text}): it ended, and its own message says why, or "
        f"its machine did not answer (--peer_timeout is {options.peer_timeout:g} minutes); start all of them again "
        "with --resume"
    )


@contextmanager
def seen_by_all(accelerator: Accelerator, folder: Path | None, mark: str) -> Iterator[Path | None]:
    """Give each process the main process's flat `folder`: itself where it is seen, else a copy for as long as it is needed.

    The copy comes through the connection that the processes have anyway, so that machines need not share a disk. A folder is
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
                for _ in range(0, size, PIECE):
                    (piece,) = broadcast_object_list([file.read(PIECE) if main else None])
                    if not main and not seen:
                        file.write(piece)
        yield folder if seen else Path(copy)
