"""The events of the page, called as a browser calls them: the quiz, the data tab, concurrency limits, malformed inputs."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx2
import pytest

from space.app import start
from space.batching import Batcher
from space.texts import say
from tests.small_model_repo import LABELS


@pytest.fixture(scope="module")
def page(
    small_model: Path, small_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[gr.Blocks]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        page = start(str(small_model), str(small_dataset), server_name="127.0.0.1")
        yield page
        page.close()


def function(page: gr.Blocks, elem_id: str, event: str) -> Any:
    """The function that an event of an element calls."""
    ids = {block.elem_id: number for number, block in page.blocks.items()}
    return next(fn for fn in page.fns.values() if (ids[elem_id], event) in fn.targets)


def post(url: str, body: dict, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """The response of a Gradio route to a JSON body, in which NaN is allowed."""
    headers = {"content-type": "application/json", **(headers or {})}
    return httpx2.post(url, content=json.dumps(body), headers=headers).raise_for_status().json()


def send(page: gr.Blocks, session: str, fn: Any, *data: Any) -> None:
    """Trigger an event without waiting for its output."""
    body = {"fn_index": fn._id, "session_hash": session, "data": data}
    post(f"{page.local_api_url}queue/join", body)


def outputs(page: gr.Blocks, session: str) -> list[dict[str, Any]]:
    """The outputs of a session's events, in the order in which a browser receives them."""
    with httpx2.stream(
        "GET", f"{page.local_api_url}queue/data", params={"session_hash": session}, timeout=60
    ) as stream:
        messages = [json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:")]
    return [message["output"] for message in messages if message["msg"] == "process_completed"]


def answers(page: gr.Blocks, session: str) -> list[list[Any]]:
    """The values of the outputs."""
    return [output["data"] for output in outputs(page, session)]


def test_no_verdict_comes_after_the_next_cell(page: gr.Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments: Any, predict: Any = Batcher.predict) -> Any:
        time.sleep(1)
        return predict(*arguments)

    monkeypatch.setattr(Batcher, "predict", slow)
    check, following = function(page, "learn-check", "click"), function(page, "learn-next", "click")
    send(page, "hasty", function(page, "tab-learn", "select"))
    ((cell, *_),) = answers(page, "hasty")
    send(page, "hasty", check, cell, LABELS[0])
    send(page, "hasty", following)
    judged, asked = answers(page, "hasty")
    assert "answer" in judged[3] and "1" in judged[4]
    assert "img" in asked[1] and asked[3] == ""
    send(page, "hasty", check, asked[0] + 1, LABELS[0])  # the answer for another cell
    (late,) = answers(page, "hasty")
    assert "answer" not in str(late)


def test_a_visit_that_is_over_gets_a_new_cell_and_the_reason(page: gr.Blocks) -> None:
    send(page, "late", function(page, "learn-check", "click"), 3, LABELS[0])
    ((cell, picture, _, sentence, _),) = answers(page, "late")
    assert isinstance(cell, int) and "img" in picture and say("en", "learn_lost") in sentence


def test_the_quiz_asks_every_cell_once_before_any_comes_again(page: gr.Blocks) -> None:
    send(page, "thorough", function(page, "tab-learn", "select"))
    ((first, *_),) = answers(page, "thorough")
    asked = [first]
    for _ in range(27):
        send(page, "thorough", function(page, "learn-next", "click"))
        asked.append(answers(page, "thorough")[0][0])
    assert sorted(asked) == list(range(28))


def test_the_score_of_the_quiz_is_listed_by_class(page: gr.Blocks) -> None:
    send(page, "scored", function(page, "tab-learn", "select"))
    ((cell, *_),) = answers(page, "scored")
    send(page, "scored", function(page, "learn-check", "click"), cell, LABELS[0])
    ((*_, score),) = answers(page, "scored")
    assert score.count("<tr>") == 2 and "by class" not in score


def test_the_data_tab_shows_examples_of_the_chosen_class(page: gr.Blocks) -> None:
    assert "EOS_" in function(page, "data-class", "input").fn("EOS")
    assert "BLA_" not in function(page, "data-class", "input").fn("EOS")


def test_the_page_and_the_api_share_their_limits(page: gr.Blocks) -> None:
    api = {fn.api_name: fn for fn in page.fns.values()}
    for button, names, limit in (("cells-run", ("predict_many", "count"), 2), ("field-run", ("field",), 1)):
        shared = [function(page, button, "click"), *(api[name] for name in names)]
        assert len({fn.concurrency_id for fn in shared}) == 1
        assert {fn.concurrency_limit for fn in shared} == {limit}


def test_counts_are_updated_in_the_order_of_the_corrections(page: gr.Blocks) -> None:
    for desk in ("cells-desk", "field-desk"):
        assert function(page, desk, "correct").concurrency_limit == 1


def upload(data: object, **more: object) -> dict:
    return {"path": data, "meta": {"_type": "gradio.FileData"}, **more}


PATHS = (
    None,
    5,
    "",
    "\0",
    "\ud800",
    "a" * 5000,
    "/etc/passwd",
    "cell.jpg",
    "file:///etc/passwd",
    "ftp://x/y.jpg",
)
MALFORMED = [
    *[("predict", data) for data in ([], ["cell.jpg"], [5], [float("nan")], [{}], [[]], [{"path": "x.jpg"}])],
    *[("predict", [upload(path)]) for path in PATHS],
    ("predict", [upload("/x.jpg", orig_name=5)]),
    ("predict_many", [upload("/x.jpg")]),
    ("predict_many", [[None]]),
]


@pytest.mark.parametrize(("endpoint", "data"), MALFORMED)
def test_malformed_inputs_are_a_sentence_and_no_traceback(
    page: gr.Blocks, capfd: pytest.CaptureFixture, endpoint: str, data: list
) -> None:
    url = f"{page.local_api_url}call/{endpoint}"
    event = post(url, {"data": data})["event_id"]
    answer = json.loads(httpx2.get(f"{url}/{event}").text.rpartition("data: ")[2])
    assert answer["error"].endswith(".") and "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("side", ["abc", [3], -5, 801, float("nan")])
def test_a_malformed_crop_side_is_a_sentence_too(
    page: gr.Blocks, capfd: pytest.CaptureFixture, side: object
) -> None:
    send(page, f"side {side}", function(page, "field-run", "click"), None, side)
    (answer,) = outputs(page, f"side {side}")
    assert answer["error"].endswith(".") and "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("path", ["monitoring", "monitoring/summary"])
def test_visitors_learn_nothing_about_each_other(page: gr.Blocks, path: str) -> None:
    assert httpx2.get(f"{page.local_url}{path}").status_code == 403
