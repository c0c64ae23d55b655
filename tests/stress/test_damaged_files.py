"""Thousands of damaged files through the build, the trainer's stream and the Space's uploads: read correctly, or rejected.

No traceback, no wrong label, and at most 300 MB more memory than with undamaged files. The short form takes 200 files;
`make stress` takes 10,000 (set BONE_MARROW_MUTATIONS for another number) and prints the outcomes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.dataset_script.raw_folders import rows_of
from tests.pictures import encoded
from tests.stress.damage_paths import write_parquet
from tests.stress.mutations import LABELS, Damaged, write_damaged

REPOSITORY = Path(__file__).resolve().parents[2]
CLEAN = 12  # undamaged images per label, so that each split has some
MAX_MB = 300


def write_clean(raw: Path) -> None:
    from dataset_script.synthetic_cells import draw_cell

    for label in LABELS:
        (raw / label).mkdir(parents=True, exist_ok=True)
        # files of the first folder warm the programs up
        for i in range(CLEAN * (2 if label == LABELS[0] else 1)):
            (raw / label / f"clean_{label}_{i}.jpg").write_bytes(encoded(draw_cell(label, 100 + i), "JPEG"))


def run_build(raw: Path, out: Path) -> tuple[subprocess.CompletedProcess[str], float, float]:
    """Run the build; return the process, and the peak memory of it and of its workers (the largest), in MB."""
    command = [sys.executable, "-m", "dataset_script", "build", str(raw), str(out), "--workers", "2"]
    log = (out.parent / f"{out.name}.log").open("w+")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=REPOSITORY)
    program = psutil.Process(process.pid)
    peaks = {"program": 0.0, "worker": 0.0}
    while process.poll() is None:
        try:
            roles = {"program": [program], "worker": program.children(recursive=True)}
            for role, members in roles.items():
                for member in members:
                    peaks[role] = max(peaks[role], peak_memory(member.pid))
        except (psutil.NoSuchProcess, OSError):
            pass
        time.sleep(0.05)
    stdout = process.stdout.read()
    log.seek(0)
    done = subprocess.CompletedProcess(command, process.returncode, stdout, log.read())
    log.close()
    return done, peaks["program"], peaks["worker"]


def peak_memory(pid: int) -> float:
    """Peak resident memory of a process so far, in MB; 0 for one that has ended."""
    match = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) / 1024 if match else 0.0


def through_program(name: str, folder: Path) -> dict:
    """The result of `damage_paths` for one program, in a subprocess."""
    command = [sys.executable, "-m", "tests.stress.damage_paths", name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def check_damage(count: int, folder: Path) -> dict[str, tuple[Counter, float]]:
    """Write the files, read them with all three programs, and check each file; return outcomes and memory by program."""
    clean, raw = folder / "clean", folder / "raw"
    write_clean(clean)
    shutil.copytree(clean, raw)
    written = write_damaged(raw, count)
    assert len(written) == count
    undamaged = {path.name for path in clean.rglob("*.jpg")}

    usual, program, worker = run_build(clean, folder / "usual")
    assert usual.returncode == 0, usual.stderr
    done, program_now, worker_now = run_build(raw, folder / "out")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    kept = {row["file_name"]: row["label"] for row in rows_of(folder / "out" / "splits.csv")}
    rejected = {row["path"].split("/")[-1]: row["reason"] for row in rows_of(folder / "out" / "rejected.csv")}
    assert set(kept) | set(rejected) == set(written) | undamaged and not set(kept) & set(rejected)
    assert len(kept) + len(rejected) == count + len(undamaged)
    assert all(rejected.values())
    assert [name for name, label in kept.items() if label != label_of(name, written)] == []
    memory = max(program_now - program, worker_now - worker)
    outcomes = {name: rejected.get(name, "kept") for name in written}
    results = {"build": (Counter(outcomes.values()), memory)}

    write_parquet(raw, raw / "parquet")
    for name in ("trainer", "space"):
        answer = through_program(name, raw)
        assert answer["wrong"] == []
        messages = {file: text for file, text in answer["outcomes"].items() if file not in undamaged}
        assert set(messages) == set(written)
        assert all("\n" not in text and text for text in messages.values())
        results[name] = (Counter(short(text) for text in messages.values()), answer["memory_mb"])
        if name == "trainer":  # what the build keeps can be trained on
            assert [file for file in kept if answer["outcomes"][file] != "kept"] == []
    for name, (outcome, memory) in results.items():
        assert outcome.total() == count
        assert min(outcome["kept"], count - outcome["kept"]) > count // 10, name
        assert memory < MAX_MB, f"{name} took {memory:.0f} MB more than usual"
    return results


def label_of(name: str, written: dict[str, Damaged]) -> str:
    return written[name].label if name in written else name.split("_")[1]


def short(text: str) -> str:
    """A message without the numbers and file names that differ between files."""
    return re.sub(r"image damaged\S* ", "", re.sub(r"\d[\d,]*", "N", text))[:70]


def test_200_damaged_files_are_read_correctly_or_rejected(tmp_path: Path) -> None:
    check_damage(200, tmp_path)


@pytest.mark.stress
@pytest.mark.timeout(7200)
def test_10_000_damaged_files_are_read_correctly_or_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    count = int(os.environ.get("BONE_MARROW_MUTATIONS", 10_000))
    results = check_damage(count, tmp_path)
    with capsys.disabled():
        for name, (outcomes, memory) in results.items():
            print(f"\n{name}: {count:,} damaged files, peak memory {memory:.0f} MB above the usual")
            for outcome, number in outcomes.most_common(14):
                print(f"  {number:7,}  {outcome}")
            if rest := outcomes.most_common()[14:]:
                print(f"  {sum(number for _, number in rest):7,}  {len(rest)} other messages")
