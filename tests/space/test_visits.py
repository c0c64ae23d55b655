"""Files and results of a visit survive reloads, and are deleted when the visit ends or the process was killed."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest

from space import app
from space import visits as visits_module
from space.app import App
from space.visits import ABANDONED, Visits, own_folder


def request(session: str) -> SimpleNamespace:
    return SimpleNamespace(session_hash=session, query_params={}, headers={})


def upload(folder: Path, name: str = "cell.jpg") -> Path:
    path = folder / f"upload-{len(list(folder.glob('upload-*')))}" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    return path


def aged(path: Path) -> Path:
    """An upload of ten minutes ago."""
    for changed in (path, path.parent):
        os.utime(changed, (time.time() - 600,) * 2)
    return path


def test_a_reload_restores_results_and_uploads(tmp_path: Path) -> None:
    visits = Visits(tmp_path)
    visit, kept = visits.open("", "first page", "en"), aged(upload(tmp_path))
    visit.keep([str(kept)])
    visit.results["cells"] = "corrected"
    visits.leave(request("first page"))
    again = visits.open(visit.token, "second page", "en")
    visits.sweep(grace=0)
    assert again is visit and again.results["cells"] == "corrected" and kept.exists()


def test_uploads_and_files_of_a_visit_are_deleted_when_it_ends(tmp_path: Path) -> None:
    visits = Visits(tmp_path)
    visit, kept, unclaimed = visits.open("", "page", "en"), aged(upload(tmp_path)), aged(upload(tmp_path))
    visit.keep(str(kept))
    thumbnail = visit.file("thumbnail.jpg")
    thumbnail.write_bytes(b"x")
    visits.sweep()
    assert kept.exists() and thumbnail.exists() and not unclaimed.exists()
    visits.leave(request("page"))
    visits.sweep(grace=0)
    assert not kept.exists() and not thumbnail.exists() and list(tmp_path.iterdir()) == []


def test_an_upload_that_was_cut_off_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "tmpabc").write_bytes(b"half")
    os.utime(tmp_path / "tmpabc", (time.time() - 600,) * 2)
    fresh = upload(tmp_path)
    Visits(tmp_path).sweep()
    assert not (tmp_path / "tmpabc").exists() and fresh.exists()


def test_an_unknown_token_begins_a_new_visit(tmp_path: Path) -> None:
    visits = Visits(tmp_path)
    visit = visits.open("", "a", "en")
    other = visits.open("guessed", "b", "id")
    assert other is not visit and other.token != "guessed" and other.language == "id"


def test_beyond_the_limit_the_visit_left_longest_ago_ends_and_never_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visits_module, "MAX_VISITS", 3)
    visits = Visits(tmp_path)
    first, second, third, fourth = (visits.open("", session, "en") for session in "abcd")
    assert visits.open(fourth.token, "e", "en") is fourth, "all others have a page"
    visits.leave(request("b"))
    visits.leave(request("a"))
    monkeypatch.setattr(visits_module, "MAX_VISITS", 4)
    visits.open("", "f", "en")
    assert [visit.cancelled for visit in (first, second, third, fourth)] == [False, True, False, False]


def test_a_job_stops_when_its_visitor_leaves_or_cancels_it(tmp_path: Path) -> None:
    visits = Visits(tmp_path)
    visit = visits.open("", "page", "en")
    assert not visit.stops()
    visit.cancelled = True
    assert visit.stops()
    visit.cancelled = False
    visits.leave(request("page"))
    assert not visit.stops(), "a reload takes a moment"
    visit.left -= ABANDONED
    assert visit.stops()


KILLED = """
import os, signal
from space.visits import own_folder
folder = own_folder()
(folder / "upload-x").mkdir()
(folder / "upload-x" / "cell.jpg").write_bytes(b"x")
print(folder, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_files_of_a_killed_process_are_deleted_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True)
    orphaned = Path(killed.stdout.strip())
    assert killed.returncode == -signal.SIGKILL and (orphaned / "upload-x" / "cell.jpg").exists()
    folder = own_folder()
    assert folder.parent == tmp_path and not orphaned.exists()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    other = own_folder()
    assert folder.exists() and other.exists(), "folders of running processes stay"


def test_the_page_recovers_from_an_outage_at_start(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setattr(app, "RETRY", (0.5, 1))
    (tmp_path / "model").mkdir()
    running, stopped = App(str(tmp_path / "model"), "", server_name="127.0.0.1"), threading.Event()
    try:
        first = httpx2.get(running.page.local_url).text
        assert "location.reload" in first and str(tmp_path) not in first, (
            "it reloads itself, and shows no path"
        )
        shutil.copytree(small_model, tmp_path / "model", dirs_exist_ok=True)
        running.load_missing(stopped)
        assert running.complete and "location.reload" not in httpx2.get(running.page.local_url).text
    finally:
        stopped.set()
        running.page.close()
