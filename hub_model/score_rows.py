"""A batch of `python -m hub_model.score`: encoded pictures in, rows of predictions out, also for what cannot be read."""

from __future__ import annotations

import os
import stat
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa

from hub_model.inference.calibration import names_in
from hub_model.inference.classifier import Classifier, Predictions
from hub_model.inference.errors import ImageError, RepoError
from hub_model.inference.images import read_picture
from hub_model.score_datasets import UNREACHABLE, first_line
from hub_model.score_sources import Picture


def schema_of(classifier: Classifier, known: tuple[str, ...]) -> pa.Schema:
    """The columns of the predictions."""
    text = pa.string()
    columns = [("file_name", text), *((name, text) for name in known), ("predicted_label", text)]
    columns += [(f"probability_{label}", pa.float32()) for label in classifier.label_names]
    columns += [(f"set_{level}", pa.list_(text)) for level in classifier.calibration.thresholds]
    return pa.schema([*columns, ("ood_score", pa.float64()), ("verdict", text), ("error", text)])


def answer(classifier: Classifier, pictures: list[Picture], schema: pa.Schema) -> pa.Table:
    """One batch of the predictions: pictures in, their rows out, in the same order."""
    pixels, places, errors = [], [], []
    for picture in pictures:
        try:
            pixels.append(classifier.preprocess([read_picture(encoded(picture))]))
        except ImageError as error:
            errors.append(str(error))
        except OSError as error:
            errors.append(f"The file cannot be read: {error.strerror or first_line(error)}")
        else:
            errors.append(None)
        places.append(len(pixels) - 1 if errors[-1] is None else None)
    of_all: dict[str, list] = {"error": errors}
    of_all |= {
        name: [getattr(picture, name) for picture in pictures] for name in ("file_name", "split", "label")
    }
    of_read = columns_of(classifier.interpret(*classifier.forward(np.concatenate(pixels)))) if pixels else {}
    rows, arrays = pa.array(places, pa.int64()), []
    for field in schema:
        if field.name in of_all:
            arrays.append(pa.array(of_all[field.name], field.type))
        else:
            values = of_read.get(field.name, [None] * len(pixels))
            arrays.append(pa.array(values, field.type).take(rows))
    return pa.table(arrays, schema=schema)


def columns_of(found: Predictions) -> dict[str, Any]:
    """Predictions as columns of `schema_of`."""
    columns: dict[str, Any] = {
        "predicted_label": found.labels,
        "verdict": [verdict.kind for verdict in found.verdicts],
    }
    for index, label in enumerate(found.label_names):
        columns[f"probability_{label}"] = found.probabilities[:, index].astype(np.float32)
    for level, members in found.sets.items():
        columns[f"set_{level}"] = names_in(members, found.label_names)
    if found.ood_score is not None:
        columns["ood_score"] = found.ood_score
    return columns


def encoded(picture: Picture) -> bytes | str:
    """What `read_picture` takes: the picture's bytes, or a path of this machine.

    Raises OSError where there is no such file, and RepoError where the place that it is in does not answer.
    """
    if picture.data is None:
        raise OSError("the dataset holds no image in this row")
    if isinstance(picture.data, bytes):
        return picture.data
    if "://" not in picture.data:
        if not stat.S_ISREG(os.stat(picture.data).st_mode):  # to open a pipe is to wait for its writer
            raise OSError("it is not a file")
        open(picture.data, "rb").close()  # raises for a file that may not be read
        return picture.data
    try:
        with fsspec.open(picture.data) as file:
            return file.read()
    except FileNotFoundError:
        raise
    except UNREACHABLE as error:
        raise RepoError(f"{picture.data} cannot be reached: {first_line(error)}") from None
