"""What is kept for a visitor lives as long as the visit: over reloads, not beyond its end, and not beyond a crash."""

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
    """Sent ten minutes ago."""
    for one in (path, path.parent):
        os.utime(one, (time.time() - 600,) * 2)
    return path


def test_a_reload_finds_results_and_uploads_again(tmp_path: Path) -> None:
    visits = Visits(tmp_path)
    visit, kept = visits.open("", "first page", "en"), aged(upload(tmp_path))
    visit.keep([str(kept)])
    visit.results["cells"] = "corrected"
    visits.leave(request("first page"))
    again = visits.open(visit.token, "second page", "en")
    visits.sweep(grace=0)
    assert again is visit and again.results["cells"] == "corrected" and kept.exists()


def test_uploads_stay_while_the_visit_lives_and_go_with_it(tmp_path: Path) -> None:
    visits = Visits(tmp_path)
    visit, kept, nobodys = visits.open("", "page", "en"), aged(upload(tmp_path)), aged(upload(tmp_path))
    visit.keep(str(kept))
    made = visit.file("thumbnail.jpg")
    made.write_bytes(b"x")
    visits.sweep()
    assert kept.exists() and made.exists() and not nobodys.exists()
    visits.leave(request("page"))
    visits.sweep(grace=0)
    assert not kept.exists() and not made.exists() and list(tmp_path.iterdir()) == []


def test_an_upload_that_was_cut_off_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "tmpabc").write_bytes(b"half")
    os.utime(tmp_path / "tmpabc", (time.time() - 600,) * 2)
    fresh = upload(tmp_path)
    Visits(tmp_path).sweep()
    assert not (tmp_path / "tmpabc").exists() and fresh.exists()


def test_a_strange_token_begins_a_visit_of_its_own(tmp_path: Path) -> None:
    visits = Visits(tmp_path)
    mine = visits.open("", "a", "en")
    other = visits.open("guessed", "b", "id")
    assert other is not mine and other.token != "guessed" and other.language == "id"


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


def test_a_job_ends_with_its_visitor_or_at_the_press_of_a_button(tmp_path: Path) -> None:
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


def test_what_a_killed_process_left_is_deleted_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True)
    left = Path(killed.stdout.strip())
    assert killed.returncode == -signal.SIGKILL and (left / "upload-x" / "cell.jpg").exists()
    mine = own_folder()
    assert mine.parent == tmp_path and not left.exists()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    other = own_folder()
    assert mine.exists() and other.exists(), "who is alive keeps what is theirs"


def test_an_outage_at_start_heals_itself(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setattr(app, "RETRY", (0.5, 1))
    (tmp_path / "model").mkdir()
    running, stopped = App(str(tmp_path / "model"), "", server_name="127.0.0.1"), threading.Event()
    try:
        first = httpx2.get(running.page.local_url).text
        assert "location.reload" in first and str(tmp_path) not in first, "it asks again, and shows no path"
        shutil.copytree(small_model, tmp_path / "model", dirs_exist_ok=True)
        running.heal(stopped)
        assert running.complete and "location.reload" not in httpx2.get(running.page.local_url).text
    finally:
        stopped.set()
        running.page.close()
