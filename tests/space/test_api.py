"""The API of the running Space: the documented examples run, and a bad upload gets an error of one sentence."""

import asyncio
import base64
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from dataset_script.synthetic_cells import draw_cell, draw_field
from hub_model.inference.classifier import Classifier
from space.api import ENDPOINTS, TOOLS
from space.tab_api import address_of, examples
from tests.small_model_repo import LABELS
from tests.space.bad_uploads import PICTURES, jpeg, zipped
from tests.space.running import RunningSpace


@pytest.fixture(scope="module")
def client(space: RunningSpace) -> Client:
    return Client(space.address, verbose=False)


@pytest.fixture(scope="module")
def example_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the examples use."""
    folder = tmp_path_factory.mktemp("examples")
    draw_cell("PMO", 77).save(folder / "cell.jpg", quality=90)
    (folder / "cells.zip").write_bytes(zipped({f"{i}.jpg": jpeg(i) for i in range(3)}))
    draw_field(540, 540, [("BLA", 140, 140), ("BLA", 400, 400)], seed=2).save(folder / "field.jpg")
    return folder


PRINTED = {
    "predict": "PMO",
    "predict_many": "cells.zip/2.jpg",
    "count": "share_interval",
    "field": "side",
    "model": "temperature",
}


@pytest.mark.parametrize("name", ENDPOINTS)
@pytest.mark.parametrize(("kind", "program"), [("Python", sys.executable), ("curl", "bash")])
def test_every_example_of_the_page_runs(
    space: RunningSpace, example_folder: Path, name: str, kind: str, program: str
) -> None:
    command = [program, "-c", examples(name, space.address)[kind]]
    done = subprocess.run(
        command, cwd=example_folder, capture_output=True, text=True, timeout=120, check=True
    )
    assert PRINTED[name] in done.stdout, done.stdout + done.stderr


PROXY = {"host": "127.0.0.1:7860", "x-forwarded-host": "lab.example", "x-forwarded-proto": "https"}
NO_PREFIX = {
    "host": "lab.example",
    "x-forwarded-proto": "https",
    "referer": "https://lab.example/cells/?lang=id",
}


@pytest.mark.parametrize(
    ("headers", "address"),
    [
        (PROXY | {"x-forwarded-prefix": "/cells"}, "https://lab.example/cells"),
        (NO_PREFIX, "https://lab.example/cells"),
        ({"host": "127.0.0.1:7860"}, "http://127.0.0.1:7860"),
    ],
)
def test_the_examples_keep_the_path_of_a_reverse_proxy(headers: dict[str, str], address: str) -> None:
    assert address_of(SimpleNamespace(request=SimpleNamespace(scope={}), headers=headers)) == address


def test_an_agent_classifies_and_counts_through_mcp(space: RunningSpace, example_folder: Path) -> None:
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    cell = base64.b64encode((example_folder / "cell.jpg").read_bytes()).decode()

    async def talk() -> tuple:
        async with (
            streamablehttp_client(f"{space.address}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            one = await session.call_tool("classify_cell", {"image_base64": cell})
            many = await session.call_tool("count_cells", {"images_base64": [cell, "bm8gcGljdHVyZQ=="]})
            return tools, one, many

    tools, one, many = asyncio.run(talk())
    assert set(TOOLS) <= set(tools)
    for name in TOOLS:
        assert len(tools[name].description) > 60 and tools[name].inputSchema["properties"]
    assert "PMO" in one.content[0].text and "probabilities" in one.content[0].text
    assert "unusable" in many.content[0].text and not many.isError


def test_endpoints_are_named_and_typed(client: Client) -> None:
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {f"/{name}" for name in (*ENDPOINTS, *TOOLS)}
    returned = {name: endpoint["returns"][0]["type"] for name, endpoint in named.items()}
    assert returned["/predict"]["properties"]["verdict"] == {"type": "string"}
    assert returned["/count"]["type"] == "array"


def test_the_api_answers_as_the_classifier_does(client: Client, small_model: Path, cell_file: Path) -> None:
    expected = Classifier.from_pretrained(small_model).predict(cell_file)
    answer = client.predict(handle_file(cell_file), api_name="/predict")
    assert answer["label"] == expected.labels[0] and answer["verdict"] == str(expected.verdicts[0])
    assert answer["probabilities"] == pytest.approx(dict(expected.top(0, 7)), abs=1e-5)
    card = client.predict(api_name="/model")
    assert card["labels"]["NIF"] == "not identifiable" and card["backend"] == "onnx"


def test_many_pictures_and_zips_give_rows_and_a_count(client: Client, tmp_path: Path) -> None:
    (tmp_path / "cells.zip").write_bytes(
        zipped({f"{i}.jpg": jpeg(i) for i in range(5)} | {"../x.jpg": jpeg()})
    )
    (tmp_path / "=evil.jpg").write_bytes(b"text")
    files = [handle_file(tmp_path / name) for name in ("cells.zip", "=evil.jpg")]
    rows = client.predict(files, api_name="/predict_many")
    assert len(rows) == 7 and sum(bool(row["error"]) for row in rows) == 2
    assert {row["label"] for row in rows if not row["error"]} <= set(LABELS)
    counts = client.predict(files, api_name="/count")
    assert [row["label"] for row in counts] == list(LABELS)
    assert sum(row["cells"] for row in counts) + counts[0]["unknown"] == 5 and counts[0]["unusable"] == 2


def test_a_count_of_nothing_is_a_sentence(client: Client, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_bytes(b"text")
    with pytest.raises(AppError, match="None of these files"):
        client.predict([handle_file(tmp_path / "text.jpg")], api_name="/count")


def test_a_field_gives_boxes(client: Client, tmp_path: Path) -> None:
    spots = [(140, 140), (140, 400), (400, 140), (400, 400)]
    draw_field(540, 540, [("BLA", *spot) for spot in spots], seed=2).save(tmp_path / "field.png")
    cells = client.predict(handle_file(tmp_path / "field.png"), api_name="/field")
    assert len(cells) == 4 and all(cell["side"] > 100 and cell["found"] == 4 for cell in cells)


@pytest.mark.parametrize("name", [name for name in PICTURES if name != "500-megabytes.jpg"])
def test_a_bad_upload_is_one_sentence_for_its_sender(client: Client, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(PICTURES[name][0]())
    with pytest.raises(AppError) as refusal:
        client.predict(handle_file(tmp_path / name), api_name="/predict")
    assert "Traceback" not in str(refusal.value) and str(refusal.value).rstrip().endswith(".")


def test_500_megabytes_are_refused_during_the_upload(client: Client, tmp_path: Path) -> None:
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(500 * 2**20)
    with pytest.raises(Exception, match=r"(?i)size|413|large"):
        client.predict(handle_file(tmp_path / "large.jpg"), api_name="/predict")
