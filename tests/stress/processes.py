"""Training runs as processes of their own, cheap enough to be killed by the dozen.

Each is forked from a server that has imported the trainer already, gets the environment that torchrun would give it, and runs
`train_accelerate.main` as the command line does. Everything it prints goes to a log of its own.
"""

import itertools
import multiprocessing
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train_accelerate"])
PATIENCE = 1800  # seconds until a run that does not end counts as hanging, on a machine that is busy with other things
HOURS = 12  # how far the wall clock jumps


def start_server() -> None:
    """Have the server import the trainer now, so that it is not part of the time that the first run takes."""
    first = CONTEXT.Process(target=int)
    first.start()
    first.join()


class Training:
    """The processes of one run, started."""

    numbers = itertools.count()

    def __init__(self, arguments: list, folder: Path, processes: int = 1, first: Callable | None = None):
        """Start `train_accelerate.py ARGUMENTS`, its logs in `folder`; `first` is called before it in each process."""
        folder.mkdir(parents=True, exist_ok=True)
        number = next(self.numbers)
        self.logs = [folder / f"{number}-process-{rank}.log" for rank in range(processes)]
        arguments = [str(argument) for argument in arguments]
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
        group |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        self.processes = []
        for rank, log in enumerate(self.logs):
            mine = group | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            target = (arguments, log, mine if processes > 1 else {}, first)
            self.processes.append(CONTEXT.Process(target=run_trainer, args=target))
        for process in self.processes:
            process.start()

    @property
    def running(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def kill(self, *ranks: int) -> None:
        """SIGKILL these processes, or all, one right after the other."""
        for rank in ranks or range(len(self.processes)):
            self.processes[rank].kill()

    def wait(self) -> list[int]:
        """Return the exit codes (a signal's is negative) once all have ended."""
        deadline = time.monotonic() + PATIENCE
        for process in self.processes:
            process.join(max(0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        if None in codes:
            self.kill()
            raise AssertionError(f"still running after {PATIENCE} s: exit codes {codes}; {self.text()}")
        return codes

    def text(self, rank: int | None = None) -> str:
        """Return what a process has printed, or all of them."""
        logs = self.logs if rank is None else [self.logs[rank]]
        return "\n".join(log.read_text() for log in logs if log.exists())


def run_trainer(arguments: list[str], log: Path, environment: dict, first: Callable | None) -> None:
    """Be a process of a run."""
    os.environ.update(environment)
    if threads := environment.get(
        "OMP_NUM_THREADS"
    ):  # the server has imported torch, which no longer looks there
        torch.set_num_threads(int(threads))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if first:
        first()
    from train_accelerate import main

    sys.exit(main(arguments))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(happened: Callable[[], object], seconds: float = PATIENCE, pause: float = 0.001) -> None:
    """Return as soon as `happened()` is true."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {seconds} s")
        time.sleep(pause)


def one_sentence(text: str) -> str:
    """Return the error that a process printed: one line, and no traceback."""
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in text, text
    return errors[0]


def let_the_wall_clock_jump() -> None:
    """From now on, this process's wall clock jumps to and fro by hours whenever it is read."""
    chance, read, read_ns = random.Random(0), time.time, time.time_ns
    time.time = lambda: read() + 3600 * chance.uniform(-HOURS, HOURS)
    time.time_ns = lambda: read_ns() + int(3600e9 * chance.uniform(-HOURS, HOURS))


def assert_same_run(folder: Path, undisturbed: Path) -> None:
    """The results are the same bytes, and nothing was left over."""
    for name in ("history.jsonl", "model.safetensors", "logits_validation.parquet", "logits_test.parquet"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), f"{folder / name} differs"
    assert {f.name for f in folder.iterdir()} == {f.name for f in undisturbed.iterdir()}
