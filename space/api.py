"""The API: named endpoints with typed results.

In: files, sent as Gradio clients send them. Out: plain typed values (below). Uploads are deleted as soon as
they were read. A bad upload is an error of one sentence for `/predict` and `/field`, a row with `error` for
`/predict_many`, and for `/count` one of `unusable`, or that error when nothing is left to count.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypedDict

import gradio as gr
from gradio.components.api_component import Api
from gradio_client.utils import python_type_to_json_schema
from PIL import Image

from hub_model.inference.calibration import names_in
from hub_model.inference.classifier import Predictions
from hub_model.inference.errors import ImageError
from space.archives import MAX_PICTURES, read_cell, read_slide
from space.bulk import BulkAnswer, answer_uploads
from space.inputs import FileInput
from space.resources import Resources
from space.tab_cells import BULK_JOBS
from space.tab_field import FIELDS, answer_field, nucleus_share
from space.texts import say
from space.visits import forget

AGENT_PICTURES = 200


class CellAnswer(TypedDict):
    """One cell: `verdict` begins with "sure", "between", "a cell that", "not a cell" or "uncalibrated"; `sets` fit it."""

    label: str
    description: str
    verdict: str
    probabilities: dict[str, float]
    sets: dict[str, list[str]]
    ood_score: float | None


class NamedAnswer(TypedDict):
    """One row of many: `error` is empty for a picture that could be used, and then `label` is set.

    `warning`, in every such row: a sentence where all of them together look unlike the training images, else empty.
    """

    file: str
    error: str
    label: str
    confidence: float
    verdict: str
    warning: str


class CountRow(TypedDict):
    """Shares in 0…1 with their 95% intervals [low, high].

    Left out, and said in every row: cells `unknown` to the model, `unusable` files, and pictures `beyond_limit`. So is
    `warning`: a sentence where 20 or more pictures look unlike those of every training laboratory, else empty.
    """

    label: str
    cells: int
    share: float
    share_interval: list[float]
    corrected: float
    corrected_interval: list[float]
    unknown: int
    unusable: int
    beyond_limit: int
    warning: str


class FieldCell(TypedDict):
    """A square box in pixels of the picture, and its class.

    Every row says how many cells were `found` in all, and as `warning` whether they look unlike the training images.
    """

    left: int
    top: int
    side: int
    label: str
    confidence: float
    verdict: str
    found: int
    warning: str


class ModelCard(TypedDict):
    """What answers here."""

    model: str
    revision: str
    labels: dict[str, str]
    temperature: float
    backend: str


ENDPOINTS = {  # name -> what it returns
    "predict": CellAnswer,
    "predict_many": list[NamedAnswer],
    "count": list[CountRow],
    "field": list[FieldCell],
    "model": ModelCard,
}
TOOLS = ("classify_cell", "count_cells")


def answer_cell(resources: Resources, picture: Image.Image) -> CellAnswer:
    """The answer for one cell as plain values."""
    predictions = resources.batcher.predict([picture])
    label, names = predictions.labels[0], predictions.label_names
    return {
        "label": label,
        "description": resources.classifier.label_descriptions[label],
        "verdict": str(predictions.verdicts[0]),
        "probabilities": dict(zip(names, map(float, predictions.probabilities[0]), strict=True)),
        "sets": {level: names_in(members, names)[0] for level, members in predictions.sets.items()},
        "ood_score": None if predictions.ood_score is None else float(predictions.ood_score[0]),
    }


def answer_row(predictions: Predictions, row: int) -> dict[str, Any]:
    """One of many answers."""
    label, confidence = predictions.top(row, 1)[0]
    verdict, warning = str(predictions.verdicts[row]), warning_of(predictions)
    return {"label": label, "confidence": confidence, "verdict": verdict, "warning": warning}


def register(resources: Resources) -> None:
    """Register the endpoints and the tools for agents with the page that is being built."""
    classifier = resources.classifier

    def predict(image: str | None) -> CellAnswer:
        """Classify the picture of one cell."""
        return answer_cell(resources, _read_and_forget(image, read_cell))

    def predict_many(files: list[str] | None) -> list[NamedAnswer]:
        """Classify up to 5,000 pictures, or zips of them: a row a picture, bad ones and those beyond the limit with an error."""
        answer = _answer_and_forget(resources, files)
        nothing = {"label": "", "confidence": 0.0, "verdict": "", "warning": ""}
        rows: list[NamedAnswer] = [
            {"file": name, "error": str(error), **nothing} for name, error in [*answer.bad, *beyond(answer)]
        ]
        for row, entry in enumerate(answer.entries):
            rows.append({"file": entry.name, "error": "", **answer_row(answer.predictions, row)})
        return rows

    def count(files: list[str] | None) -> list[CountRow]:
        """Differential count of up to 5,000 pictures: as counted and corrected for the prevalence."""
        return count_rows(resources, _answer_and_forget(resources, files))

    def field(image: str | None) -> list[FieldCell]:
        """Find and classify the nucleated cells of a whole microscope picture: of more than 400, that many, evenly spread."""
        picture = _read_and_forget(image, read_slide)
        found, boxes, predictions = answer_field(resources, picture, nucleus_share(resources), None)
        return [
            {**asdict(box), **answer_row(predictions, row), "found": found} for row, box in enumerate(boxes)
        ]

    def model() -> ModelCard:
        """Which model answers: repo, revision, labels, temperature, backend."""
        repo = classifier.repo
        return {
            "model": resources.classifier_name,
            "revision": repo.commit or "",
            "labels": classifier.label_descriptions,
            "temperature": classifier.calibration.temperature,
            "backend": classifier.backend,
        }

    def classify_cell(image_base64: str) -> CellAnswer:
        """Classify the picture of one bone-marrow cell: class, verdict, calibrated probabilities, conformal sets.

        Args:
            image_base64: a JPEG, PNG, TIFF, BMP or WebP with one cell in its centre, base64-encoded (a data URI works too).
        """
        return answer_cell(resources, _read(_decoded(image_base64), read_cell))

    def count_cells(images_base64: list[str]) -> list[CountRow]:
        """Count the classes among pictures of single cells, with 95% intervals, as counted and corrected for the prevalence.

        Args:
            images_base64: up to 200 pictures of one cell each, base64-encoded; those that cannot be used are `unusable`.
        """
        if not images_base64 or len(images_base64) > AGENT_PICTURES:
            reason = "upload_too_many" if images_base64 else "upload_missing"
            raise gr.Error(say("en", reason, limit=AGENT_PICTURES), print_exception=False)
        pictures, bad = [], []
        for i, text in enumerate(images_base64):
            try:
                pictures.append(read_cell(_decoded(text)))
            except ImageError as error:
                bad.append((str(i), error))
        predictions = resources.batcher.predict(pictures) if pictures else None
        return count_rows(resources, BulkAnswer([], predictions, bad, Counter()))

    one, many = FileInput(visible=False), FileInput(visible=False, file_count="multiple")
    _register(predict, one, None, 16)
    _register(predict_many, many, "bulk", BULK_JOBS)
    _register(count, many, "bulk", BULK_JOBS)
    _register(field, one, "field", FIELDS)
    _register(model, None, None, None)
    gr.api(classify_cell, api_name="classify_cell", concurrency_limit=16)
    gr.api(count_cells, api_name="count_cells", concurrency_id="bulk", concurrency_limit=BULK_JOBS)


def count_rows(resources: Resources, answer: BulkAnswer) -> list[CountRow]:
    """The count of a request as plain rows; an error when nothing is left to count."""
    found = answer.predictions
    counts = found and resources.classifier.calibration.count(found.probabilities, found.ood_score)
    if not counts:
        raise gr.Error(say("en", "count_nothing" if found else "cells_none"), print_exception=False)
    left_out = {
        "unknown": answer.unknown,
        "unusable": len(answer.bad),
        "beyond_limit": sum(answer.left_out.values()),
        "warning": warning_of(found),
    }
    return [{**asdict(count), **left_out} for count in counts]


def warning_of(predictions: Predictions) -> str:
    """The sentence on a batch unlike every training laboratory; empty otherwise."""
    return str(predictions.shift or "")


def beyond(answer: BulkAnswer) -> list[tuple[str, str]]:
    """One row a folder for what the limit left out."""
    return [
        (folder or "/", say("en", "count_left_out", total=n, limit=MAX_PICTURES, folders=folder or "/"))
        for folder, n in sorted(answer.left_out.items())
    ]


def _register(fn: Any, source: FileInput | None, shared: str | None, limit: int | None) -> None:
    """`limit` calls at a time; `shared` names the events of the page that count among them."""
    gr.on(
        [],
        fn,
        source,
        Api(None, python_type_to_json_schema(ENDPOINTS[fn.__name__])),
        api_name=fn.__name__,
        concurrency_id=shared,
        concurrency_limit=limit,
    )


def _read_and_forget(path: str | None, read: Callable[[str], Image.Image]) -> Image.Image:
    if not path:
        raise gr.Error(say("en", "upload_missing"), print_exception=False)
    try:
        return _read(path, read)
    finally:
        forget([path])


def _read(source: Any, read: Callable[[Any], Image.Image]) -> Image.Image:
    try:
        return read(source)
    except ImageError as error:
        raise gr.Error(str(error), print_exception=False) from None


def _decoded(text: str) -> bytes:
    """The bytes of base64 text or of a data URI; of anything else, bytes that are no picture."""
    try:
        return base64.b64decode(str(text).rpartition(",")[2], validate=True)
    except ValueError:
        return b"no base64"


def _answer_and_forget(resources: Resources, paths: list[str] | None) -> Any:
    if not paths:
        raise gr.Error(say("en", "upload_missing"), print_exception=False)
    try:
        return answer_uploads(resources, paths)
    finally:
        forget(paths)
