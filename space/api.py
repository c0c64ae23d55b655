"""The API: named endpoints with typed results.

In: files, as Gradio clients send them. Out: plain typed values (below). Uploads are deleted as soon as they have been read. An
unusable upload is an error of one sentence for `/predict` and `/field`, a row with `error` for `/predict_many`, and one of
`unusable` for `/count`, or that error when there is nothing left to count.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypedDict, TypeVar

import gradio as gr
from gradio.components.api_component import Api
from gradio_client.utils import python_type_to_json_schema
from PIL import Image

from hub_model.inference.calibration import names_in
from hub_model.inference.classifier import Predictions
from hub_model.inference.errors import ImageError
from space.archives import MAX_PICTURES, read_cell, read_slide
from space.bulk import BulkPredictions, classify_uploads
from space.inputs import FileInput, refusal
from space.resources import Resources
from space.tab_cells import MAX_BULK_JOBS
from space.tab_field import MAX_FIELD_JOBS, classify_field
from space.texts import say
from space.visits import forget

AGENT_PICTURES = 200
T = TypeVar("T")


class CellAnswer(TypedDict):
    """One cell: `verdict` begins with "sure", "between", "a cell that", "not a cell" or "uncalibrated"; `sets` are conformal."""

    label: str
    description: str
    verdict: str
    probabilities: dict[str, float]
    sets: dict[str, list[str]]
    ood_score: float | None


class NamedAnswer(TypedDict):
    """One row of many: `label` is set where `error` is empty.

    `warning`, the same in every such row: a sentence if the pictures as a whole look unlike the training images, else empty.
    """

    file: str
    error: str
    label: str
    confidence: float
    verdict: str
    warning: str


class CountRow(TypedDict):
    """Fractions in 0…1 with their 95% intervals [low, high].

    The same in every row: how many cells `unknown` to the model, `unusable` files and pictures `beyond_limit` were left out; and
    `warning`, a sentence if 20 or more pictures look unlike those of every training laboratory, else empty.
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

    The same in every row: how many cells were `found`, and `warning`, a sentence if they look unlike the training images.
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
    """The model behind this Space."""

    model: str
    revision: str
    labels: dict[str, str]
    temperature: float
    backend: str


ENDPOINTS = {  # name -> return type
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
    verdict, warning = str(predictions.verdicts[row]), str(predictions.shift or "")
    return {"label": label, "confidence": confidence, "verdict": verdict, "warning": warning}


def register(resources: Resources) -> None:
    """Add the endpoints, and the tools for agents, to the page that is being built."""

    def predict(image: str | None) -> CellAnswer:
        """Classify the picture of one cell."""
        return answer_cell(resources, _use_uploads(image, read_cell))

    def predict_many(files: list[str] | None) -> list[NamedAnswer]:
        """Classify up to 5,000 pictures, or zips of them: one row per picture, with an error if unusable or beyond the limit."""
        answer = _use_uploads(files, lambda paths: classify_uploads(resources, paths))
        errors = [(name, str(error)) for name, error in answer.bad]
        for folder, n in sorted(answer.left_out.items()):
            name = folder or "/"
            errors.append((name, say("en", "count_left_out", total=n, limit=MAX_PICTURES, folders=name)))
        empty = {"label": "", "confidence": 0.0, "verdict": "", "warning": ""}
        return [
            *({"file": name, "error": error, **empty} for name, error in errors),
            *(
                {"file": entry.name, "error": "", **answer_row(answer.predictions, row)}
                for row, entry in enumerate(answer.entries)
            ),
        ]

    def count(files: list[str] | None) -> list[CountRow]:
        """Differential count of up to 5,000 pictures: as counted and corrected for the prevalence."""
        return count_rows(resources, _use_uploads(files, lambda paths: classify_uploads(resources, paths)))

    def field(image: str | None) -> list[FieldCell]:
        """Find and classify the nucleated cells of a whole microscope field; of more than 400, 400 evenly spread ones."""
        picture = _use_uploads(image, read_slide)
        found, boxes, predictions = classify_field(resources, picture, None)
        return [
            {**asdict(box), **answer_row(predictions, row), "found": found} for row, box in enumerate(boxes)
        ]

    def model() -> ModelCard:
        """The model behind this Space: repo, revision, labels, temperature, backend."""
        classifier = resources.classifier
        return {
            "model": resources.classifier_name,
            "revision": classifier.repo.commit or "",
            "labels": classifier.label_descriptions,
            "temperature": classifier.calibration.temperature,
            "backend": classifier.backend,
        }

    def classify_cell(image_base64: str) -> CellAnswer:
        """Classify the picture of one bone-marrow cell: class, verdict, calibrated probabilities, conformal sets.

        Args:
            image_base64: a JPEG, PNG, TIFF, BMP or WebP with one cell in its centre, base64-encoded (a data URI works too).
        """
        try:
            return answer_cell(resources, read_cell(_decoded(image_base64)))
        except ImageError as error:
            raise refusal(str(error)) from None

    def count_cells(images_base64: list[str]) -> list[CountRow]:
        """Count the classes among pictures of single cells, with 95% intervals, as counted and corrected for the prevalence.

        Args:
            images_base64: up to 200 pictures of one cell each, base64-encoded; those that cannot be used are `unusable`.
        """
        if not images_base64 or len(images_base64) > AGENT_PICTURES:
            reason = "upload_too_many" if images_base64 else "upload_missing"
            raise refusal(say("en", reason, limit=AGENT_PICTURES))
        pictures, bad = [], []
        for i, text in enumerate(images_base64):
            try:
                pictures.append(read_cell(_decoded(text)))
            except ImageError as error:
                bad.append((str(i), error))
        predictions = resources.batcher.predict(pictures) if pictures else None
        return count_rows(resources, BulkPredictions([], predictions, bad, Counter()))

    one, many = FileInput(visible=False), FileInput(visible=False, file_count="multiple")
    # the events of the page with the same id share the limit
    for fn, source, concurrency_id, limit in (
        (predict, one, None, 16),
        (predict_many, many, "bulk", MAX_BULK_JOBS),
        (count, many, "bulk", MAX_BULK_JOBS),
        (field, one, "field", MAX_FIELD_JOBS),
        (model, None, None, None),
    ):
        gr.on(
            [],
            fn,
            source,
            Api(None, python_type_to_json_schema(ENDPOINTS[fn.__name__])),
            api_name=fn.__name__,
            concurrency_id=concurrency_id,
            concurrency_limit=limit,
        )
    gr.api(classify_cell, api_name="classify_cell", concurrency_limit=16)
    gr.api(count_cells, api_name="count_cells", concurrency_id="bulk", concurrency_limit=MAX_BULK_JOBS)


def count_rows(resources: Resources, answer: BulkPredictions) -> list[CountRow]:
    """The count of a request as plain rows; an error when there is nothing left to count."""
    predictions = answer.predictions
    counts = predictions and resources.classifier.calibration.count(
        predictions.probabilities, predictions.ood_score
    )
    if not counts:
        raise refusal(say("en", "count_nothing" if predictions else "cells_none"))
    shared = {
        "unknown": answer.unknown,
        "unusable": len(answer.bad),
        "beyond_limit": sum(answer.left_out.values()),
        "warning": str(predictions.shift or ""),
    }
    return [{**asdict(count), **shared} for count in counts]


def _use_uploads(uploads: list[str] | str | None, use: Callable[[Any], T]) -> T:
    """`use(uploads)`; the uploads are deleted afterwards, and an ImageError is shown to the caller."""
    if not uploads:
        raise refusal(say("en", "upload_missing"))
    try:
        return use(uploads)
    except ImageError as error:
        raise refusal(str(error)) from None
    finally:
        forget([uploads] if isinstance(uploads, str) else uploads)


def _decoded(text: str) -> bytes:
    """The bytes of base64 text or of a data URI; for anything else, bytes that are not an image."""
    try:
        return base64.b64decode(str(text).rpartition(",")[2], validate=True)
    except ValueError:
        return b"no base64"
