"""Compute the contents of `metrics.json`, from which the card, the figures and the Space take their numbers.

`measure_splits` computes what follows from logits, `describe` what follows from config and history; `build` writes both and
`check` recomputes them.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence

import numpy as np

from hub_model.contract import Logits, empty_model, multiply_adds
from hub_model.evaluation import evaluate_split
from hub_model.inference.model_repo import ModelConfig
from hub_model.studies.calibration_report import calibration_metrics, source_figures

SCHEMA = 1
TOLERANCE = 1e-9


def measure_splits(
    logits: dict[str, Logits], label_names: Sequence[str], calibration: dict
) -> dict[str, dict]:
    """Return the metrics of each split, with bootstrap intervals and, where sources are known, headline figures by source.

    calibration: the contents of `calibration.json`.
    """
    splits = {}
    for split, table in logits.items():
        metrics = evaluate_split(table.values, table.labels, label_names)
        metrics |= calibration_metrics(table.values, table.labels, label_names, calibration)
        if table.sources:
            sources = np.array(table.sources)
            metrics["by_source"] = {
                str(name): measure_source(table, sources == name, label_names, calibration)
                for name in np.unique(sources)
            }
        splits[split] = metrics
    return splits


def measure_source(table: Logits, mask: np.ndarray, label_names: Sequence[str], calibration: dict) -> dict:
    """Return the headline figures, with intervals, and the calibration figures of the rows in a mask [N]."""
    logits, labels = table.values[mask], table.labels[mask]
    metrics = evaluate_split(logits, labels, label_names)
    keys = ("accuracy", "balanced_accuracy", "macro_f1")
    return {
        "images": int(mask.sum()),
        **{key: metrics[key] for key in keys},
        "intervals": {key: metrics["intervals"][key] for key in keys},
        "calibrated": source_figures(logits, labels, label_names, calibration),
    }


def describe(config: ModelConfig, history: list[dict]) -> dict:
    """Return the entries of `metrics.json` that follow from `config.json` and `history.jsonl`."""
    return {
        "schema": SCHEMA,
        "label_names": list(config.label_names),
        "label_descriptions": config.label_descriptions,
        "model": measure_model(config) | {"best_epoch": best_epoch(history, config.input_size[-1])},
    }


def best_epoch(history: list[dict], side: int) -> int | None:
    """Return the epoch whose weights are kept: best by validation macro-F1, at the final image size if any epoch had it."""
    if not history:
        return None
    return max(history, key=lambda e: (e.get("image_size") == side, e["validation_macro_f1"]))["epoch"]


def measure_model(config: ModelConfig) -> dict:
    """Return architecture, number of parameters, GMACs for one image and input size (C, H, W)."""
    model = empty_model(config)
    return {
        "architecture": config.architecture,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gmacs": round(multiply_adds(model, config.input_size) / 1e9, 4),
        "input_size": list(config.input_size),
    }


def differences(found: object, expected: object) -> list[str]:
    """Describe where two JSON values differ (numbers by more than 1e-9, relative and absolute), one text per leaf."""
    actual, recomputed = flatten(found), flatten(expected)
    texts = []
    for key in sorted(actual.keys() | recomputed.keys()):
        a, b = actual.get(key, "missing"), recomputed.get(key, "missing")
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (a, b))
        if not (math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) if numbers else a == b):
            texts.append(f"{key} is {reprlib.repr(a)}, recomputed {reprlib.repr(b)}")
    return texts


def flatten(value: object, key: str = "") -> dict[str, object]:
    """Return the leaves of a JSON value by dotted key, like `splits.test.accuracy`."""
    if not isinstance(value, (dict, list)):
        return {key: value}
    leaves = {}
    for name, child in value.items() if isinstance(value, dict) else enumerate(value):
        leaves |= flatten(child, f"{key}.{name}" if key else str(name))
    return leaves
