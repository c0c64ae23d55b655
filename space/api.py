"""The API: named endpoints with typed results, and the tab that explains them.

In: files, sent as Gradio clients send them. Out: plain typed values (below). Uploads are deleted as soon as
they were read. A bad upload is an error of one sentence for `/predict` and `/field`, a row with `error` for
`/predict_many`, and for `/count` one of `unusable`, or that error when nothing is left to count.
"""

from __future__ import annotations

from html import escape
from typing import Any, TypedDict

import gradio as gr
from gradio.components.api_component import Api
from gradio_client.utils import python_type_to_json_schema

from hub_model.inference.classifier import Predictions
from hub_model.inference.errors import ImageError
from hub_model.inference.images import CELL_SIDE, read_picture
from space.bulk import answer_uploads
from space.inputs import FileInput, forget
from space.resources import Resources
from space.tab_cells import BULK_JOBS
from space.tab_field import FIELD_SIDE, FIELDS, answer_field, nucleus_share
from space.texts import language_of, say


class CellAnswer(TypedDict):
    """One cell: `verdict` is "sure", "between X and Y", "not a cell I know" or "uncalibrated"."""

    label: str
    description: str
    verdict: str
    probabilities: dict[str, float]
    sets: dict[str, list[str]]
    ood_score: float | None


class NamedAnswer(TypedDict):
    """One row of many: `error` is empty for a picture that could be used, and then `label` is set."""

    file: str
    error: str
    label: str
    confidence: float
    verdict: str


class CountRow(TypedDict):
    """Shares in 0…1 with their 95% intervals [low, high].

    Left out, and said in every row: cells `unknown` to the model, and `unusable` files.
    """

    label: str
    cells: int
    share: float
    share_interval: list[float]
    corrected: float
    corrected_interval: list[float]
    unknown: int
    unusable: int


class FieldCell(TypedDict):
    """A square box in pixels of the picture, and its class; every row says how many cells were `found` in all."""

    left: int
    top: int
    side: int
    label: str
    confidence: float
    verdict: str
    found: int


class ModelCard(TypedDict):
    """What answers here."""

    model: str
    revision: str
    labels: dict[str, str]
    temperature: float
    backend: str


ENDPOINTS = ("predict", "predict_many", "count", "field", "model")

PYTHON = """from gradio_client import Client, handle_file

client = Client("{address}")
answer = client.predict(handle_file("cell.jpg"), api_name="/predict")
print(answer["label"], answer["verdict"], answer["probabilities"])"""

CURL = """FILE=$(curl -s -F "files=@cell.jpg" {address}/gradio_api/upload | tr -d '[]"')
DATA='{{"data": [{{"path": "'$FILE'", "meta": {{"_type": "gradio.FileData"}}}}]}}'
EVENT=$(curl -s -H "Content-Type: application/json" -d "$DATA" {address}/gradio_api/call/predict | cut -d'"' -f4)
curl -sN {address}/gradio_api/call/predict/$EVENT"""


def as_cell_answer(predictions: Predictions, row: int, descriptions: dict[str, str]) -> CellAnswer:
    """One row of predictions as plain values."""
    label = predictions.labels[row]
    names = predictions.label_names
    return {
        "label": label,
        "description": descriptions[label],
        "verdict": str(predictions.verdicts[row]),
        "probabilities": {
            name: float(p) for name, p in zip(names, predictions.probabilities[row], strict=True)
        },
        "sets": {
            level: [name for name, inside in zip(names, members[row], strict=True) if inside]
            for level, members in predictions.sets.items()
        },
        "ood_score": None if predictions.ood_score is None else float(predictions.ood_score[row]),
    }


def build(resources: Resources, i18n: gr.I18n, tab: gr.Tab) -> None:
    """Register the endpoints and lay out their tab."""
    classifier = resources.classifier

    def predict(image: str | None) -> CellAnswer:
        """Classify the picture of one cell."""
        predictions = resources.batcher.predict([_read_and_forget(image, CELL_SIDE)])
        return as_cell_answer(predictions, 0, classifier.label_descriptions)

    def predict_many(files: list[str] | None) -> list[NamedAnswer]:
        """Classify up to 500 pictures, or zips of them: one row a picture, bad ones with their error."""
        answer = _answer_and_forget(resources, files)
        rows: list[NamedAnswer] = [
            {"file": name, "error": str(error), "label": "", "confidence": 0.0, "verdict": ""}
            for name, error in answer.bad
        ]
        for row, name in enumerate(answer.names):
            label, confidence = answer.predictions.top(row, 1)[0]
            verdict = str(answer.predictions.verdicts[row])
            rows.append(
                {"file": name, "error": "", "label": label, "confidence": confidence, "verdict": verdict}
            )
        return rows

    def count(files: list[str] | None) -> list[CountRow]:
        """Differential count of up to 500 pictures: as counted and corrected for the prevalence."""
        answer = _answer_and_forget(resources, files)
        if not answer.counts:
            reason = "count_nothing" if answer.predictions else "cells_none"
            raise gr.Error(say("en", reason), print_exception=False)
        return [
            {
                "label": c.label,
                "cells": c.cells,
                "share": c.share,
                "share_interval": list(c.share_interval),
                "corrected": c.corrected,
                "corrected_interval": list(c.corrected_interval),
                "unknown": answer.unknown,
                "unusable": len(answer.bad),
            }
            for c in answer.counts
        ]

    def field(image: str | None) -> list[FieldCell]:
        """Find and classify the nucleated cells of a whole microscope picture: of more than 400, that many, evenly spread."""
        answer = answer_field(resources, _read_and_forget(image, FIELD_SIDE), nucleus_share(resources), None)
        cells: list[FieldCell] = []
        for row, box in enumerate(answer.boxes):
            label, confidence = answer.predictions.top(row, 1)[0]
            verdict = str(answer.predictions.verdicts[row])
            place = {"left": box.left, "top": box.top, "side": box.side}
            named = {"label": label, "confidence": confidence, "verdict": verdict}
            cells.append({**place, **named, "found": answer.found})
        return cells

    def model() -> ModelCard:
        """Which model answers: repo, revision, labels, temperature, backend."""
        repo = classifier.repo
        return {
            "model": repo.name,
            "revision": repo.commit or "",
            "labels": classifier.label_descriptions,
            "temperature": classifier.calibration.temperature,
            "backend": classifier.backend,
        }

    one, many = FileInput(visible=False), FileInput(visible=False, file_count="multiple")
    _register(predict, one, CellAnswer, None, 16)
    _register(predict_many, many, list[NamedAnswer], "bulk", BULK_JOBS)
    _register(count, many, list[CountRow], "bulk", BULK_JOBS)
    _register(field, one, list[FieldCell], "field", FIELDS)
    _register(model, None, ModelCard, None, None)
    page = gr.HTML(elem_id="api-page")
    tab.select(explain, None, page, api_visibility="private")


def _register(fn: Any, source: FileInput | None, result: Any, shared: str | None, limit: int | None) -> None:
    """`limit` calls at a time; `shared` names the events of the page that count among them."""
    gr.on(
        [],
        fn,
        source,
        Api(None, python_type_to_json_schema(result)),
        api_name=fn.__name__,
        concurrency_id=shared,
        concurrency_limit=limit,
    )


def _read_and_forget(path: str | None, side: int) -> Any:
    if not path:
        raise gr.Error(say("en", "upload_missing"), print_exception=False)
    try:
        return read_picture(path, side)
    except ImageError as error:
        raise gr.Error(str(error), print_exception=False) from None
    finally:
        forget([path])


def _answer_and_forget(resources: Resources, paths: list[str] | None) -> Any:
    if not paths:
        raise gr.Error(say("en", "upload_missing"), print_exception=False)
    try:
        return answer_uploads(resources, paths)
    finally:
        forget(paths)


def address_of(request: gr.Request) -> str:
    """The address under which the visitor sees this Space."""
    headers = request.headers
    scheme = headers.get("x-forwarded-proto", "http").split(",")[0]
    return f"{scheme}://{headers.get('x-forwarded-host') or headers.get('host', '127.0.0.1:7860')}"


def explain(request: gr.Request) -> str:
    """The tab's text, with this Space's own address in the examples."""
    language, address = language_of(request), address_of(request)
    rows = "".join(
        f'<tr><th scope="row"><code>/{name}</code></th><td>{escape(say(language, f"api_{name}"))}</td></tr>'
        for name in ENDPOINTS
    )
    return (
        f'<section class="api"><p>{escape(say(language, "api_intro"))}</p>'
        f"<h3>{escape(say(language, 'api_python'))}</h3><pre><code>{escape(PYTHON.format(address=address))}</code></pre>"
        f"<h3>{escape(say(language, 'api_curl'))}</h3><pre><code>{escape(CURL.format(address=address))}</code></pre>"
        f"<h3>{escape(say(language, 'api_endpoints'))}</h3><table><tbody>{rows}</tbody></table></section>"
    )
