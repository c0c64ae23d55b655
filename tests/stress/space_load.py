"""The Space in figures, with the released model: `python -m tests.stress.space_load`.

In: a model repo folder (and a dataset repo folder; drawn cells without one). Out: seconds from start to ready; from drop to
answer in a browser; memory before and after 1,000 predictions; the time for 500 images; answers, errors, median and 95th
percentile under load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2

from tests.space.bad_uploads import zipped
from tests.space.browser import chromium
from tests.space.running import of_repos, running
from tests.stress.visitors import (
    Question,
    Reply,
    ask,
    errors,
    good_cells,
    hammer,
    hanging_client,
    latency_line,
    memory_line,
    percentile,
    run,
    watched_memory,
)

RELEASE = Path(__file__).resolve().parents[2] / "hub_model" / "release"


def predict_once(address: str, endpoint: str, *files: tuple[str, bytes]) -> float:
    """Seconds of one request that must be answered."""

    async def once() -> str:
        async with httpx2.AsyncClient(timeout=600) as http:
            return await ask(http, address, Question(endpoint, files, "answer"))

    begin = time.monotonic()
    outcome = run(once())
    if outcome != "answer":
        raise RuntimeError(f"/{endpoint}: {outcome}")
    return time.monotonic() - begin


def predictions(address: str, count: int) -> None:
    """Ask for `count` single predictions, ten at a time."""

    async def many() -> None:
        cells = good_cells()
        async with httpx2.AsyncClient(timeout=600) as http:
            for start in range(0, count, 10):
                asked = [
                    Question("predict", (cells[i % len(cells)],), "answer") for i in range(start, start + 10)
                ]
                outcomes = await asyncio.gather(*(ask(http, address, question) for question in asked))
                if set(outcomes) != {"answer"}:
                    raise RuntimeError(f"predictions ended with {outcomes}")

    run(many())


def drop_to_answer(address: str, times: int = 20) -> list[float]:
    """Seconds from giving a picture to the page until its verdict is to be seen, in a real browser."""
    measured, cells = [], good_cells(times)
    with chromium() as browser:
        page = browser.new_page(locale="en-US")
        page.set_default_timeout(300_000)
        page.goto(address)
        chooser = "#cell-picture input[type=file]"
        page.wait_for_selector(chooser, state="attached")
        for name, data in cells:
            begin = time.monotonic()
            page.set_input_files(chooser, {"name": name, "mimeType": "image/jpeg", "buffer": data})
            page.wait_for_selector("#cell-answer .answer")
            measured.append(time.monotonic() - begin)
            page.click("#cell-picture button[aria-label='Remove Image']")
            page.wait_for_selector("#cell-answer .answer", state="detached")
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress.space_load", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", type=Path, default=RELEASE)
    parser.add_argument("--dataset", type=Path, help="dataset repo folder (default: drawn cells)")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="space-load-") as folder:
        figures = measure(options, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Print every figure as soon as it is known, and return them."""
    from tests.space.small_dataset_repo import build

    sizes = {"train": 12, "validation": 2, "test": 8}
    dataset = options.dataset or build(folder / "dataset", sizes)
    found: dict[str, float] = {}
    with running(of_repos(options.model, dataset, folder / "space")) as space:
        found["ready_s"] = space.seconds_to_ready
        print(f"start to ready: {space.seconds_to_ready:.1f} s", flush=True)
        predictions(space.address, 30)
        before = space.memory_mb()
        predictions(space.address, 1000)
        after = space.memory_mb()
        found |= {"memory_before_mb": before, "memory_after_1000_mb": after}
        print(f"memory: {before:.0f} MB before, {after:.0f} MB after 1,000 predictions", flush=True)
        cells = good_cells(500)
        found["images_500_s"] = predict_once(
            space.address, "predict_many", ("cells.zip", zipped(dict(cells)))
        )
        print(f"500 images in one zip: {found['images_500_s']:.1f} s", flush=True)
        with watched_memory(space) as samples, hanging_client(space.port):
            replies = hammer(space.address, options.clients, options.seconds, mixed=False)
        found |= summary("space", replies)
        print(latency_line(f"Space, {options.clients} clients", replies, options.seconds))
        print(f"  {memory_line(samples)}", flush=True)
        for text, number in errors(replies).items():
            print(f"  error: {number} × {text}")
        dropped = drop_to_answer(space.address)
        found["drop_to_answer_s"] = statistics.median(dropped)
        print(f"drop to answer in Chromium: median of {len(dropped)} {statistics.median(dropped):.2f} s, "
              f"longest {max(dropped):.2f} s", flush=True)  # fmt: skip
    return found


def summary(name: str, replies: Sequence[Reply]) -> dict[str, float]:
    times = [r.seconds for r in replies if r.outcome == r.question.expected == "answer"]
    return {
        f"{name}_answers": len(times),
        f"{name}_errors": errors(replies).total(),
        f"{name}_median_s": statistics.median(times),
        f"{name}_95_s": percentile(times, 0.95),
    }


if __name__ == "__main__":
    main()
