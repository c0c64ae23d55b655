"""Training on two machines, with the exact commands of docs/scaling.md. `make stress` runs these tests.

The machines are network namespaces (machines.py). Every run, distributed or interrupted, is compared with one process that
takes four accumulation steps.
"""

import json
import re
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

from tests.stress.machines import Machines, missing_requirement
from tests.stress.processes import DEADLINE, Training, wait_for

pytestmark = [pytest.mark.stress, pytest.mark.timeout(4 * 3600)]

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
ACCELERATE, TORCHRUN, SLURM, *_, ONE_LEFT = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
EPOCHS, IMAGES = 3, 112
# layer norm instead of batch norm, so that only the order of sums depends on how batches are distributed
TINY = ["--no-pretrained", "--model", "test_efficientnet_ln", "--image_size", "32", "--batch_size", "4"]
TINY += ["--epochs", str(EPOCHS), "--shuffle_buffer", "50", "--checkpoint_minutes", "0.001"]
# Losses near 2 are float32 sums, here in another order: they differed by 1e-6 after 21 updates. The optimizer divides gradients
# by their magnitude, which can amplify the rounding of the smallest ones; hence a hundred times as much.
TOLERANCE = 1e-4


@pytest.fixture
def machines(tmp_path, hub) -> Iterator[Machines]:
    if reason := missing_requirement():
        pytest.skip(reason)
    with Machines(tmp_path, int(hub.endpoint.rsplit(":", 1)[1])) as machines:
        yield machines


@pytest.fixture(scope="module")
def one_process(drawn_repo, tmp_path_factory) -> Path:
    """The run folder of one process with four accumulation steps."""
    folder = tmp_path_factory.mktemp("one")
    arguments = ["--dataset", drawn_repo, "--data", "stream", *TINY, "--gradient_accumulation_steps", "4"]
    one = Training([*arguments, "--output_dir", folder / "run"], folder)
    assert one.wait() == [0], one.text()
    return folder / "run"


def start(
    machines, number: int, block: str, repo: str, *more: str, script: str = "train_accelerate.py", **variables
):
    """Start a command of the page on a machine, with a separate run folder; return the process, its log and that folder."""
    folder = machines.folder / f"machine_{number}"
    folder.mkdir(exist_ok=True)
    log = folder / f"{len(list(folder.glob('*.log')))}.log"
    block = block.replace("OWNER/NAME", repo).replace("my_run", str(folder / "run"))
    assert "train_accelerate.py" in block and str(folder) in block
    command = block.replace("train_accelerate.py", script).strip() + " " + shlex.join([*TINY, *more])
    return machines.start(number, ["bash", "-c", command], log, **variables), log, folder / "run"


def assert_same_history(run: Path, expected: Path) -> None:
    ours, theirs = (
        [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        for folder in (run, expected)
    )
    assert len(ours) == EPOCHS
    differences = {
        key: max(abs(a[key] - b[key]) for a, b in zip(ours, theirs, strict=True)) for key in theirs[0]
    }
    print(f"largest differences from one process: {differences}")
    losses = ("train_loss", "validation_loss")
    assert all(differences[key] <= TOLERANCE for key in (*losses, "learning_rate")), differences
    # at most one of 112 and of 28 images is classified differently
    assert differences["train_accuracy"] <= 1 / 112 and differences["validation_accuracy"] <= 1 / 28


def assert_loss_is_reported(text: str) -> None:
    """Assert that the trainer reports the lost machine in one sentence; the only traceback is the launcher's."""
    errors = [line for line in text.splitlines() if "error: " in line and "has lost another one" in line]
    assert errors, text
    assert 'train_accelerate.py", line' not in text, text


def run_counted(machines, repo: str) -> tuple[Path, str]:
    """Train on both machines; assert that each epoch used every image once; return run folder and log of the first."""
    seen = machines.folder / "seen"
    seen.mkdir()
    script = str(Path(__file__).with_name("count_images.py"))
    started = [start(machines, number, ACCELERATE, repo, script=script, SEEN=str(seen)) for number in (0, 1)]
    for process, log, _ in started:
        assert process.wait(DEADLINE) == 0, log.read_text()
    (_, log, run), (*_, other) = started
    assert json.loads((run / "environment.json").read_text())["hardware"]["processes"] == 4
    assert not other.exists(), "the second machine writes no run folder"
    assert len(list(seen.iterdir())) == 4
    lines = [json.loads(line) for file in seen.iterdir() for line in file.read_text().splitlines()]
    for epoch in range(EPOCHS):
        counted = Counter(i for line in lines if line["epoch"] == epoch for i in line["images"])
        assert len(counted) == IMAGES and set(counted.values()) == {1}
    for number in (0, 1):
        assert any((machines.folder / f"hf_home_{number}").iterdir()), "each machine downloads the dataset"
    return run, log.read_text()


def test_the_slurm_script_runs_the_tested_command():
    command = re.search(r"srun bash -c '(.*?)'", SLURM, re.DOTALL)[1]
    command = command.replace("$SLURM_NNODES", "2").replace("$SLURM_NODEID", "$MACHINE")
    command, tested = (shlex.split(text.replace("\\\n", " ")) for text in (command, TORCHRUN))
    assert command == tested
    subprocess.run(["bash", "-n"], input=SLURM, text=True, check=True)


def test_two_machines_use_every_image_once_and_train_like_one_process(machines, drawn_repo, one_process):
    run, _ = run_counted(machines, drawn_repo)
    assert_same_history(run, one_process)


def test_two_machines_with_separate_shards_use_every_image_once(machines, drawn_dataset, owner):
    repo = f"{owner}/drawn-cells-in-shards"
    splits = datasets.load_dataset(str(drawn_dataset))
    splits.push_to_hub(repo, num_shards={"train": 4, "validation": 1, "test": 1})
    _, log = run_counted(machines, repo)
    assert "each process reads its own shards" in log


def test_a_run_that_lost_its_second_machine_is_finished_on_the_first(machines, drawn_repo, one_process):
    (process, log, run), (lost, *_) = (start(machines, n, TORCHRUN, drawn_repo) for n in (0, 1))
    wait_for(lambda: list(run.glob("checkpoints/step-*")) or process.poll() is not None, pause=0.01)
    assert process.poll() is None, log.read_text()
    killed = time.monotonic()
    machines.kill(1)
    lost.wait()
    assert process.wait(DEADLINE) != 0
    print(f"the first machine ended {time.monotonic() - killed:.1f} s after the second was killed")
    assert_loss_is_reported(log.read_text())
    process, log, run = start(machines, 0, ONE_LEFT, drawn_repo)
    assert process.wait(DEADLINE) == 0, log.read_text()
    assert "resuming from step-" in log.read_text()
    assert_same_history(run, one_process)


def test_disconnected_machines_report_it_and_resume_when_reconnected(machines, drawn_repo, one_process):
    """No error signals the disconnection, so both wait for --process_group_timeout. They resume without a shared disk."""
    timeout = ["--process_group_timeout", "1"]
    started = [start(machines, n, ACCELERATE, drawn_repo, *timeout) for n in (0, 1)]
    process, log, run = started[0]
    wait_for(lambda: list(run.glob("checkpoints/step-*")) or process.poll() is not None, pause=0.01)
    assert process.poll() is None, log.read_text()
    pulled = time.monotonic()
    machines.unplug(1)
    for process, log, _ in started:
        assert process.wait(DEADLINE) != 0
        print(f"ended {time.monotonic() - pulled:.0f} s after the cable was pulled")
        assert_loss_is_reported(log.read_text())
    machines.plug(1)
    started = [start(machines, n, ACCELERATE, drawn_repo, *timeout) for n in (0, 1)]
    for process, log, _ in started:
        assert process.wait(DEADLINE) == 0, log.read_text()
    assert "resuming from step-" in started[0][1].read_text()
    assert_same_history(run, one_process)
