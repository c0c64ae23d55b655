"""Training runs in subprocesses that start fast, so that tests can kill many of them.

Each process is forked from a server that has already imported the trainer, gets the environment variables that torchrun would
set, and runs `train_accelerate.main` as the command line does. Its output goes to its own log.
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
DEADLINE = 1800  # a run that takes longer counts as hanging, even on a busy machine
HOURS = 12  # the wall clock jumps by up to that


def start_server() -> None:
    """Let the server import the trainer now, so that the time of the first run does not include it."""
    first = CONTEXT.Process(target=int)
    first.start()
    first.join()


class Training:
    """The running processes of one training run."""

    numbers = itertools.count()

    def __init__(self, arguments: list, folder: Path, processes: int = 1, setup: Callable | None = None):
        """Start `train_accelerate.py ARGUMENTS` with logs in `folder`; each process calls `setup` first."""
        folder.mkdir(parents=True, exist_ok=True)
        number = next(self.numbers)
        self.logs = [folder / f"{number}-process-{rank}.log" for rank in range(processes)]
        arguments = [str(argument) for argument in arguments]
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
        group |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        self.processes = []
        for rank, log in enumerate(self.logs):
            environment = group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            args = (arguments, log, environment, setup)
            self.processes.append(CONTEXT.Process(target=run_trainer, args=args))
        for process in self.processes:
            process.start()

    @property
    def running(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def kill(self, *ranks: int) -> None:
        """SIGKILL these processes, by default all."""
        for rank in ranks or range(len(self.processes)):
            self.processes[rank].kill()

    def wait(self) -> list[int]:
        """Wait for all processes; return their exit codes (negative for a signal)."""
        deadline = time.monotonic() + DEADLINE
        for process in self.processes:
            process.join(max(0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        if None in codes:
            self.kill()
            raise AssertionError(f"still running after {DEADLINE} s: exit codes {codes}; {self.text()}")
        return codes

    def text(self, rank: int | None = None) -> str:
        """Return the output of one process, or of all."""
        logs = self.logs if rank is None else [self.logs[rank]]
        return "\n".join(log.read_text() for log in logs if log.exists())


def run_trainer(arguments: list[str], log: Path, environment: dict, setup: Callable | None) -> None:
    """The entry point of a process."""
    os.environ.update(environment)
    if threads := environment.get("OMP_NUM_THREADS"):  # read by torch at import, which was in the server
        torch.set_num_threads(int(threads))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if setup:
        setup()
    from train_accelerate import main

    sys.exit(main(arguments))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(condition: Callable[[], object], seconds: float = DEADLINE, pause: float = 0.001) -> None:
    """Return as soon as `condition()` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"the condition was not true within {seconds} s")
        time.sleep(pause)


def one_sentence(text: str) -> str:
    """Return the error message of a process: one line, without a traceback."""
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in text, text
    return errors[0]


def let_the_wall_clock_jump() -> None:
    """Make this process's wall clock jump back and forth by hours whenever it is read."""
    chance, read, read_ns = random.Random(0), time.time, time.time_ns
    time.time = lambda: read() + 3600 * chance.uniform(-HOURS, HOURS)
    time.time_ns = lambda: read_ns() + int(3600e9 * chance.uniform(-HOURS, HOURS))


def assert_same_run(folder: Path, uninterrupted: Path) -> None:
    """Assert that the results have the same bytes and that there are no other files."""
    for name in ("history.jsonl", "model.safetensors", "logits_validation.parquet", "logits_test.parquet"):
        assert (folder / name).read_bytes() == (uninterrupted / name).read_bytes(), f"{folder / name} differs"
    assert {f.name for f in folder.iterdir()} == {f.name for f in uninterrupted.iterdir()}
