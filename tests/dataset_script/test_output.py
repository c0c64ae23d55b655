"""Which outputs a build may replace, and what an interrupted one leaves behind."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tqdm import tqdm

from dataset_script.build import replace_on_success
from dataset_script.push import check_contract
from dataset_script.source import DatasetError
from dataset_script.validate import check, check_all
from tests.dataset_script.raw_folders import build, noise_folder


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("empty_before", [False, True])
def test_files_written_to_out_during_a_build_stay(
    overwrite: bool, empty_before: bool, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if empty_before:
        out.mkdir()
    with pytest.raises(DatasetError, match="choose another"), replace_on_success(out, overwrite):
        out.mkdir(exist_ok=True)
        (out / "thesis.txt").write_text("years of work")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.txt"]


def test_the_later_of_two_builds_to_one_output_fails(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DatasetError, match="--overwrite"), replace_on_success(out, False) as late:
        (late / "splits.csv").write_text("late")
        with replace_on_success(out, False) as early:
            (early / "splits.csv").write_text("early")
    assert (out / "splits.csv").read_text() == "early" and list(tmp_path.iterdir()) == [out]
    with replace_on_success(out, True) as last:
        (last / "splits.csv").write_text("last")
    assert (out / "splits.csv").read_text() == "last" and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("exists", [True, False])
def test_a_symlink_as_output_stays_a_symlink(exists: bool, tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "disk" / "target"
    link.symlink_to(target)
    if exists:
        target.mkdir(parents=True)
    with replace_on_success(link, False) as folder:
        (folder / "splits.csv").write_text("")
    assert link.is_symlink() and (target / "splits.csv").is_file()
    names = {path.name for path in (*tmp_path.iterdir(), *target.parent.iterdir())}
    assert names == {"disk", "link", "target"}


def test_other_files_in_the_output_are_never_deleted(drawn_folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    for options, sentence in (((), "--overwrite"), (("--overwrite",), "is not a dataset")):
        assert build(drawn_folder, tmp_path / "out", *options) == 1
        assert sentence in capsys.readouterr().err
        assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"
    assert build(drawn_folder, drawn_folder.parent, "--overwrite") == 1, "it would delete the raw data"
    assert drawn_folder.is_dir()


@pytest.mark.parametrize(
    ("raw", "out", "sentence"),
    [("raw", ".", "current folder"), ("raw", "", "current folder"), ("raw", "..", "current folder"),
     ("", "../out", "RAW is empty")],
)  # fmt: skip
def test_empty_raw_and_the_current_folder_are_refused(
    raw, out, sentence, tmp_path, monkeypatch, capsys
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert build(raw and "/nowhere", out) == 1
    assert sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    raw = noise_folder(tmp_path / "raw", ["a", "b"], 30)
    command = [sys.executable, "-m", "dataset_script", "build", str(raw), str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob(".out.*.partial")):
        time.sleep(0.01)
    process.send_signal(number)
    error = process.communicate(timeout=250)[1]
    assert error == "dataset_script build: stopped; nothing was written\n"
    assert process.returncode == 1 and list(tmp_path.iterdir()) == [raw]


class Logged:
    """A source that logs each read as one byte of a file."""

    def __init__(self, log: Path):
        self.log = log

    def read(self, path: str) -> bytes:
        with self.log.open("ab") as file:
            file.write(b".")
        time.sleep(0.001)
        return b""


def test_the_workers_of_an_interrupted_build_stop(tmp_path: Path) -> None:
    results = check_all(Logged(tmp_path / "log"), ["a/1.png"] * 3200, 1, tqdm(disable=True))
    next(results)
    results.close()
    assert (tmp_path / "log").stat().st_size < 3200


@pytest.mark.parametrize("data", [b"\xff\xd8\xff" + b"x" * 50, b"II*\0" + b"x" * 40])
def test_the_detail_of_a_rejection_is_deterministic(data: bytes) -> None:
    first, second = (check("a/x.jpg", data) for _ in range(2))
    assert first == second and "0x" not in first.detail


def test_a_group_in_two_splits_or_a_wrong_splits_csv_is_not_pushed(drawn_dataset, tmp_path):
    folder = Path(shutil.copytree(drawn_dataset, tmp_path / "data"))
    check_contract(folder)
    table = (folder / "splits.csv").read_text()
    (folder / "splits.csv").write_text("".join(table.splitlines(keepends=True)[:-1]))
    with pytest.raises(DatasetError, match=r"splits\.csv counts"):
        check_contract(folder)
    (folder / "splits.csv").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DatasetError, match=r"splits\.csv cannot be read"):
        check_contract(folder)
    (folder / "splits.csv").write_text(table)
    (train,), (test,) = ((folder / "data").glob(f"{split}-*") for split in ("train", "test"))
    rows = pq.read_table(test)
    column = rows.schema.get_field_index("group")
    group = pq.read_table(train)["group"][0].as_py()
    pq.write_table(rows.set_column(column, "group", [[group] * len(rows)]), test)
    with pytest.raises(DatasetError, match=f"group {group} is in train and in test"):
        check_contract(folder)
