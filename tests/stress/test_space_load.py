"""The Space with many concurrent visitors: no errors except for invalid inputs, and no growing memory."""

from __future__ import annotations

import asyncio
import socket
import statistics
import threading
import time
from pathlib import Path

import httpx2
import pytest

from tests.space.running import RunningSpace, of_repos
from tests.stress.visitors import (
    Question,
    ask,
    errors,
    good_cells,
    hammer,
    latency_line,
    memory_line,
    run,
    under_load,
)

GROWTH_MB = 60  # from the second quarter of the load to the last: memory that allocators do not return


def left_over(space: RunningSpace) -> list[str]:
    """Visitors' files that are still on disk; the examples of the page are elsewhere."""
    files = [path for path in space.uploads.rglob("*") if path.is_file()]
    return [str(path) for path in files if path.parent.name.startswith("upload-")]


def growth(samples: list[float]) -> float:
    """Median of the last quarter minus that of the second, in MB."""
    quarter = len(samples) // 4
    return statistics.median(samples[-quarter:]) - statistics.median(samples[quarter : 2 * quarter])


@pytest.mark.timeout(900)
def test_ten_visitors_are_answered_while_another_upload_stalls(space: RunningSpace) -> None:
    replies, _ = under_load(space, clients=10, seconds=5, mixed=True)
    assert errors(replies) == {}
    assert {reply.outcome for reply in replies} == {"answer", "refusal"}
    assert left_over(space) == []
    assert "Traceback" not in space.log


@pytest.mark.timeout(600)
def test_concurrent_uploads_of_one_image_are_all_answered(space: RunningSpace) -> None:
    """Each upload is separate: deleting the first one after its answer does not delete the others."""
    question = Question("predict", (good_cells(1)[0],), "answer")

    async def all_at_once() -> list[str]:
        async with httpx2.AsyncClient(timeout=120) as http:
            return await asyncio.gather(*(ask(http, space.address, question) for _ in range(24)))

    assert set(run(all_at_once())) == {"answer"}


def test_an_interrupted_upload_leaves_no_traceback_in_the_log(space: RunningSpace) -> None:
    host, port = space.address.removeprefix("http://").rstrip("/").split(":")
    head = "POST /gradio_api/upload HTTP/1.1", f"Host: {host}", "Content-Length: 9999"
    content_type = "Content-Type: multipart/form-data; boundary=x"
    part = '--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(("\r\n".join((*head, content_type, "", part)) + "half").encode())
        time.sleep(0.5)  # for the server to read it
    assert run(one_answer(space)) == "answer"
    assert "Traceback" not in space.log


async def one_answer(space: RunningSpace) -> str:
    async with httpx2.AsyncClient(timeout=120) as http:
        return await ask(http, space.address, Question("predict", (good_cells(1)[0],), "answer"))


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_fifty_visitors_for_two_minutes(space: RunningSpace, capsys: pytest.CaptureFixture) -> None:
    replies, samples = under_load(space, clients=50, seconds=120, mixed=True)
    with capsys.disabled():
        print(f"\n{latency_line('Space, 50 clients, mixed', replies, 120)}\n  {memory_line(samples)}")
    assert errors(replies) == {}
    assert growth(samples) < GROWTH_MB
    assert left_over(space) == []
    assert "Traceback" not in space.log


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_a_restart_under_load_fails_only_the_requests_that_it_interrupts(
    small_model: Path, small_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    server = of_repos(small_model, small_dataset, tmp_path / "space")
    server.start()
    down: list[float] = []

    def restart() -> None:
        time.sleep(10)
        down.append(time.monotonic())
        server.stop()
        server.start()
        down.append(time.monotonic())

    restarting = threading.Thread(target=restart)
    restarting.start()
    try:
        replies = []
        while restarting.is_alive() or not replies or time.monotonic() < down[1] + 10:
            replies += hammer(server.address, clients=20, seconds=10, mixed=True, retry=True)
    finally:
        restarting.join()
        server.stop()
    before = [reply for reply in replies if reply.at < down[0]]
    after = [reply for reply in replies if reply.at - reply.seconds > down[1]]
    interrupted = len(replies) - len(before) - len(after)
    with capsys.disabled():
        print(f"\nrestart: down for {down[1] - down[0]:.1f} s, {len(before)} requests before, {interrupted} in between, "
              f"{len(after)} after")  # fmt: skip
    assert errors(before) == {} and errors(after) == {}
    assert len(after) > 20
    assert left_over(server) == [], "interrupted uploads are deleted with the process"
