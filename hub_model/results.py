"""`metrics.json`: what is measured on a run or model folder, as one dict from which every text takes its numbers.

`measure_splits` makes the part that follows from logits alone, `describe` that of the other files; `build` writes them and
`check` makes them again.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence

import numpy as np

from hub_model.contract import Logits, empty_model, multiply_adds
from hub_model.evaluation import evaluate_split
from hub_model.inference.model_repo import ModelConfig
from hub_model.studies.calibration_report import calibration_figures, source_figures

SCHEMA = 1
TOLERANCE = 1e-9


def measure_splits(
    logits: dict[str, Logits], label_names: Sequence[str], calibration: dict
) -> dict[str, dict]:
    """Everything that its logits say about each split, with bootstrap intervals.

    calibration: the contents of `calibration.json`. Where the logits name the source of their images, `by_source` has the
    headline figures of each.
    """
    splits = {}
    for split, table in logits.items():
        splits[split] = evaluate_split(table.values, table.labels, label_names)
        splits[split] |= calibration_figures(table.values, table.labels, label_names, calibration)
        if table.sources:
            sources = np.array(table.sources)
            splits[split]["by_source"] = {
                str(name): of_source(table, sources == name, label_names, calibration)
                for name in np.unique(sources)
            }
    return splits


def of_source(table: Logits, rows: np.ndarray, label_names: Sequence[str], calibration: dict) -> dict:
    """The headline figures of some rows of a split, with intervals, and what of the calibration's promises holds there."""
    logits, labels = table.values[rows], table.labels[rows]
    found = evaluate_split(logits, labels, label_names)
    kept = {key: found[key] for key in ("accuracy", "balanced_accuracy", "macro_f1")}
    intervals = {key: found["intervals"][key] for key in kept}
    promises = source_figures(logits, labels, label_names, calibration)
    return {"images": int(rows.sum()), **kept, "intervals": intervals, "calibrated": promises}


def describe(config: ModelConfig, history: list[dict]) -> dict:
    """What `config.json` and `history.jsonl` alone say of a model."""
    return {
        "schema": SCHEMA,
        "label_names": list(config.label_names),
        "label_descriptions": config.label_descriptions,
        "model": measure_model(config) | {"best_epoch": best_epoch(history, config.input_size[-1])},
    }


def best_epoch(history: list[dict], side: int) -> int | None:
    """The epoch whose weights the trainer keeps: the best by validation macro-F1, of those at the final image size if any."""
    if not history:
        return None
    return max(history, key=lambda e: (e.get("image_size") == side, e["validation_macro_f1"]))["epoch"]


def measure_model(config: ModelConfig) -> dict:
    """Size and cost of the architecture: parameters, and multiply-adds of one image in units of 1e9."""
    model = empty_model(config)
    return {
        "architecture": config.architecture,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gmacs": round(multiply_adds(model, config.input_size) / 1e9, 4),
        "input_size": list(config.input_size),
    }


def differences(found: object, expected: object) -> list[str]:
    """Where two JSON values differ (numbers by more than 1e-9, relatively or absolutely), a text each."""
    here, there = leaves(found), leaves(expected)
    texts = []
    for where in sorted(here.keys() | there.keys()):
        values = [side.get(where, "missing") for side in (here, there)]
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        if not (
            math.isclose(*values, rel_tol=TOLERANCE, abs_tol=TOLERANCE) if numbers else values[0] == values[1]
        ):
            texts.append(f"{where} is {reprlib.repr(values[0])}, recomputed {reprlib.repr(values[1])}")
    return texts


def leaves(value: object, where: str = "") -> dict[str, object]:
    """What a JSON value holds by its place, as `splits.test.accuracy`."""
    if not isinstance(value, (dict, list)):
        return {where: value}
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    parts = [leaves(part, f"{where}.{key}" if where else str(key)) for key, part in inside]
    return {place: leaf for part in parts for place, leaf in part.items()}
