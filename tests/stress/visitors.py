"""Load on a running Space, for the load tests and `python -m tests.stress.space_load`.

Concurrent clients send questions; each gives a `Reply` with its outcome and latency. Also samples memory, and summarizes both.
"""

from __future__ import annotations

import asyncio
import io
import random
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2
import psutil

from dataset_script.synthetic_cells import LOOKS, draw_cell
from tests.space.bad_uploads import PICTURES, zipped
from tests.space.running import RunningSpace

BAD = [name for name in PICTURES if name not in ("500-megabytes.jpg", "wide.png")]
T = TypeVar("T")
META = {"_type": "gradio.FileData"}


# ---- clients
@dataclass(frozen=True)
class Question:
    """A request and its expected outcome: "answer", or "refusal" for files that are not images."""

    endpoint: str
    files: tuple[tuple[str, bytes], ...]
    expected: str


@dataclass(frozen=True)
class Reply:
    question: Question
    outcome: str  # "answer", "refusal", or the error
    seconds: float
    at: float  # time.monotonic() of the response


def good_cells(count: int = 28) -> list[tuple[str, bytes]]:
    """Synthetic cells as JPEG files."""
    cells, labels = [], list(LOOKS)
    for i in range(count):
        draw_cell(labels[i % len(labels)], 500 + i).save(buffer := io.BytesIO(), "JPEG", quality=92)
        cells.append((f"cell-{i}.jpg", buffer.getvalue()))
    return cells


def questions(mixed: bool, seed: int = 0) -> Iterator[Question]:
    """Endless questions with one cell each, one in seven not an image; `mixed` adds zips of good and bad files, and counts."""
    rng, good = random.Random(seed), good_cells()
    bad = [(name, PICTURES[name][0]()) for name in BAD]
    while True:
        chance = rng.random()
        if mixed and chance < 0.08:
            files = [*rng.sample(good, 6), *rng.sample(bad, 2), ("../climb.jpg", b"x")]
            archive = ("cells.zip", zipped(dict(files)))
            yield Question(rng.choice(("predict_many", "count")), (archive,), "answer")
        elif chance < 1 / 7 + 0.08 * mixed:
            yield Question("predict", (rng.choice(bad),), "refusal")
        else:
            yield Question("predict", (rng.choice(good),), "answer")


async def ask(http: httpx2.AsyncClient, address: str, question: Question) -> str:
    """Upload and ask as the documented curl commands do; return "answer", "refusal", or the error."""
    uploads = [("files", (name, data)) for name, data in question.files]
    sent = await http.post(f"{address}/gradio_api/upload", files=uploads)
    if sent.status_code != 200:
        return f"upload answered {sent.status_code}"
    files = [{"path": path, "meta": META} for path in sent.json()]
    data = files[0] if question.endpoint in ("predict", "field") else files
    url = f"{address}/gradio_api/call/{question.endpoint}"
    called = await http.post(url, json={"data": [data]})
    if called.status_code != 200:
        return f"call answered {called.status_code}"
    event = ""
    async with http.stream("GET", f"{url}/{called.json()['event_id']}") as stream:
        async for line in stream.aiter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: ") and event in ("complete", "error"):
                return "answer" if event == "complete" else "refusal"
    return "no answer"


async def _client(
    address: str, asked: Iterator[Question], until: float, replies: list[Reply], retry: bool
) -> None:
    async with httpx2.AsyncClient(timeout=300) as http:
        while time.monotonic() < until:
            question, start = next(asked), time.monotonic()
            try:
                outcome = await ask(http, address, question)
            except httpx2.HTTPError as error:
                outcome = f"cut: {type(error).__name__}"
                await asyncio.sleep(0.2 if retry else 0)
            now = time.monotonic()
            replies.append(Reply(question, outcome, now - start, now))


def hammer(
    address: str, clients: int, seconds: float, mixed: bool, retry: bool = False, seed: int = 0
) -> list[Reply]:
    """Let each of `clients` ask one question after the other for `seconds`; return the replies in order of arrival."""
    replies: list[Reply] = []
    asked = questions(mixed, seed)  # shared by the clients, which run in one thread

    async def all_clients() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(_client(address, asked, until, replies, retry) for _ in range(clients)))

    run(all_clients())
    return replies


def run(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in another thread, since Playwright may run an event loop in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@contextmanager
def hanging_client(port: int) -> Iterator[None]:
    """An upload of 1 MB that stalls after a tenth of it while the block runs."""
    head = (
        "POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="files"; filename="slow.jpg"\r\n\r\n'
    )
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + b"\xff\xd8" + bytes(100_000))
        yield


@contextmanager
def watched_memory(space: RunningSpace, every: float = 1.0) -> Iterator[list[float]]:
    """Resident memory, in MB, sampled while the block runs."""
    samples, done = [], threading.Event()

    def watch() -> None:
        while not done.wait(every):
            with suppress(psutil.NoSuchProcess):
                samples.append(space.memory_mb())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def under_load(
    space: RunningSpace, clients: int, seconds: float, mixed: bool
) -> tuple[list[Reply], list[float]]:
    """The replies to `clients` clients, while another upload stalls, and the memory samples."""
    with watched_memory(space) as samples, hanging_client(space.port):
        return hammer(space.address, clients, seconds, mixed), samples


# ---- figures
def errors(replies: Sequence[Reply]) -> Counter:
    """Number of unexpected outcomes by kind."""
    return Counter(
        f"{reply.outcome} for {reply.question.endpoint} ({reply.question.files[0][0]})"
        for reply in replies
        if reply.outcome != reply.question.expected
    )


def percentile(values: Sequence[float], fraction: float) -> float:
    return sorted(values)[round(fraction * (len(values) - 1))]


def latency_line(name: str, replies: Sequence[Reply], seconds: float) -> str:
    """Answers, refusals, errors, answers per second, median and 95th percentile latency."""
    right = [r for r in replies if r.outcome == r.question.expected]
    times = [r.seconds for r in right if r.outcome == "answer"]
    answers = len(times)
    return (
        f"{name:<28} {answers:6,} answers  {len(right) - answers:5,} correctly refused  "
        f"{errors(replies).total():4,} errors  {answers / seconds:6.1f} answers/s  "
        f"median {statistics.median(times):6.2f} s  95% {percentile(times, 0.95):6.2f} s"
    )


def memory_line(samples: Sequence[float]) -> str:
    """Memory at the start, after each quarter, and its peak."""
    quarters = [samples[round(fraction * (len(samples) - 1))] for fraction in (0, 0.25, 0.5, 0.75, 1)]
    course = " → ".join(f"{value:.0f}" for value in quarters)
    return f"memory at the start and after each quarter: {course} MB (peak {max(samples):.0f} MB)"
