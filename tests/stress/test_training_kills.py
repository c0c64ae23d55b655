"""SIGKILL at random times: one process, both of two, one of two, also under a launcher. `make stress` runs these tests.

After every kill the same command with --resume must end with the same bytes as an uninterrupted run.
"""

import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import train_accelerate
from tests.stress.processes import (
    DEADLINE,
    Training,
    assert_same_run,
    one_sentence,
    start_server,
    wait_for,
)
from tests.training.small import LAUNCH_TWO, TINY

pytestmark = [pytest.mark.stress, pytest.mark.timeout(3 * 3600)]

KILLS, IN_A_WRITE = (
    20,
    5,
)  # for one process and for two; IN_A_WRITE of them while a checkpoint is being written
EPOCHS, UPDATES = 3, 7
CHECKPOINTS = ["--checkpoint_minutes", "0.001"]  # after nearly every update
# minutes that a process waits for one that was killed before they connected
TIMEOUT = ["--process_group_timeout", "1"]


@pytest.fixture(scope="module")
def arguments(drawn_dataset) -> list:
    end = ["--epochs", EPOCHS, *CHECKPOINTS, *TIMEOUT, "--resume", "--output_dir"]
    return ["--dataset", drawn_dataset, *TINY, *end]


@pytest.fixture(scope="module", params=[1, 2], ids=["one-process", "two-processes"])
def uninterrupted(request, arguments, tmp_path_factory) -> tuple[Path, int, float]:
    """An uninterrupted run: its folder, its number of processes, and the seconds it took."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    start_server()
    started = time.monotonic()
    training = Training([*arguments, folder / "run"], folder, request.param)
    assert training.wait() == [0] * request.param, training.text()
    return folder / "run", request.param, time.monotonic() - started


def newest(run: Path) -> str:
    """Return the name of a run's newest checkpoint; names sort by step."""
    return max((path.name for path in run.glob("checkpoints/step-*")), default="")


def wait_for_a_random_time(
    training: Training, run: Path, chance: random.Random, seconds: float, write: bool
) -> None:
    """Return at a random time of a run, or at its end: one in five in its first quarter, else after a random update.

    Args:
        seconds: the duration of an uninterrupted run.
        write: return while a checkpoint is being written.
    """
    if not write and chance.random() < 0.2:
        time.sleep(chance.uniform(0, seconds / 4))
        return
    epoch, step = divmod(chance.randrange(1, EPOCHS * UPDATES + 1), UPDATES)
    wait_for(lambda: newest(run) >= f"step-{epoch:05d}-{step:08d}" or not training.running)
    if write:
        unfinished = run / "checkpoints" / "unfinished"
        wait_for(lambda: unfinished.exists() or not training.running, pause=0.0002)
        time.sleep(chance.uniform(0, 0.01))
    else:
        time.sleep(chance.uniform(0, seconds / 8))


def test_a_run_killed_at_random_times_ends_with_the_same_bytes(uninterrupted, arguments, tmp_path):
    """Twenty kills, up to four per run. If one of two processes is killed, the other must report it and end."""
    expected, processes, seconds = uninterrupted
    chance = random.Random(processes)
    kills = in_a_write = alone = runs = 0
    while kills < KILLS or in_a_write < IN_A_WRITE:
        runs += 1
        run = tmp_path / f"run-{runs}"
        for _ in range(4):
            training = Training([*arguments, run], tmp_path, processes)
            wait_for_a_random_time(training, run, chance, seconds, write=chance.random() < 0.4)
            killed = chance.choice([[0, 1], [0], [1]]) if processes == 2 else [0]
            training.kill(*killed)
            codes = training.wait()
            if codes[0] == 0:  # the main process writes the results alone, so they are complete
                assert_same_run(run, expected)
            if 0 in codes:
                break
            kills += 1
            in_a_write += (run / "checkpoints" / "unfinished").exists()
            for rank in {*range(processes)} - {*killed}:
                alone += 1
                assert codes[rank] == 1, training.text()
                assert "has lost another one" in one_sentence(training.text(rank))
        training = Training([*arguments, run], tmp_path, processes)
        assert training.wait() == [0] * processes, training.text()
        assert_same_run(run, expected)
        print(
            f"{processes} processes: {kills} kills, {in_a_write} in a write, {alone} of one process alone; {runs} runs"
        )


def launch(arguments: list, log: Path) -> subprocess.Popen:
    """Start two processes as a user would."""
    command = [sys.executable, *LAUNCH_TWO, train_accelerate.__file__, *map(str, arguments)]
    with log.open("w") as output:
        return subprocess.Popen(command, stdout=output, stderr=output)


@pytest.mark.parametrize("uninterrupted", [2], indirect=True)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_launch_that_loses_one_of_its_processes_reports_it_and_resumes(
    rank, uninterrupted, arguments, tmp_path
):
    run, log = tmp_path / "run", tmp_path / "launch.log"
    launcher = launch([*arguments, run], log)
    wait_for(lambda: list(run.glob("checkpoints/step-*")) or launcher.poll() is not None, pause=0.01)
    assert launcher.poll() is None, log.read_text()
    workers = [p for p in psutil.Process(launcher.pid).children() if "RANK" in p.environ()]
    killed, started = next(p for p in workers if p.environ()["RANK"] == str(rank)), time.monotonic()
    killed.kill()
    assert launcher.wait(DEADLINE) != 0
    print(f"the launch ended {time.monotonic() - started:.1f} s after process {rank} was killed")
    text = log.read_text()
    errors = [line for line in text.splitlines() if "error: " in line and "has lost another one" in line]
    assert len(errors) == 1 and 'train_accelerate.py", line' not in text, text
    assert launch([*arguments, run], log).wait(DEADLINE) == 0, log.read_text()
    assert_same_run(run, uninterrupted[0])
