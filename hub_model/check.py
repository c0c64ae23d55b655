"""Check a model repo folder: whatever follows from its weights, logits and history is recomputed and compared.

What needs images is not: figures on OOD inputs (except their rule), robustness and input sizes, training time, and whether
the normalization in `config.json` is the one that was trained with.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from hub_model.card import card_text
from hub_model.contract import (
    CALIBRATION,
    CARD,
    CONFIG,
    METRICS,
    ONNX,
    WEIGHTS,
    Contents,
    check_files,
    malformed_as_error,
    read_contents,
)
from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import RepoError
from hub_model.inference.model_repo import ModelConfig, read_json
from hub_model.onnx.export import TOLERANCE, LogitsAndFeatures, largest_difference
from hub_model.results import describe, differences, measure_splits
from hub_model.studies.calibration import fit_calibration
from hub_model.studies.ood import thresholds_of
from hub_model.studies.prevalence import simulate_samples


def check(folder: Path) -> list[str]:
    """Return what is wrong with a model repo folder, a sentence each."""
    if problems := check_files(folder):
        return problems
    try:
        contents = read_contents(folder)
        check_pictures(folder)
        check_answers(folder, contents.config)
        return compare(folder, contents)
    except RepoError as error:
        return [str(error)]


def check_pictures(folder: Path) -> None:
    """Raise RepoError for a picture that the card shows and that cannot be seen."""
    with malformed_as_error(folder / CARD):
        shown = re.findall(r"\((figures/[^)]+)\)", (folder / CARD).read_text(encoding="utf-8"))
    for name in shown:
        try:
            Image.open(folder / name).load()
        except (OSError, SyntaxError, ValueError):  # SyntaxError: Pillow's word for a broken PNG
            raise RepoError(f"{name}, which {CARD} shows, is missing or no picture") from None


def check_answers(folder: Path, config: ModelConfig) -> None:
    """Raise RepoError where the model gives no finite answer about an image, or its ONNX graph another one."""
    classifier = Classifier.from_pretrained(folder, backend="timm")
    classifier.warmup()
    try:
        network = LogitsAndFeatures(classifier.model)
        difference = largest_difference(network, config.input_size, folder / ONNX)
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise RepoError(f"{ONNX} cannot be run: {' '.join(str(error).split())}") from None
    if not difference <= TOLERANCE:
        raise RepoError(
            f"{ONNX} gives other answers than {WEIGHTS}: they differ by {difference:.1e} of their range"
        )


def compare(folder: Path, contents: Contents) -> list[str]:
    """Where calibration, metrics and card are not what follows from config, history and logits."""
    history, logits, names = contents.history, contents.logits, contents.config.label_names
    metrics = read_json(folder / METRICS)
    with malformed_as_error(folder / METRICS):
        card = card_text(metrics)
    held_out = logits["validation"]
    fitted = fit_calibration(held_out.values, held_out.labels, names, held_out.sources)
    known = {key: contents.calibration.get(key) for key in fitted}
    problems = [f"{CALIBRATION}: {text}" for text in differences(known, fitted)[:5]]
    with malformed_as_error(folder / CONFIG):
        expected = describe(contents.config, history)
    expected |= {
        "splits": measure_splits(logits, names, fitted),
        "epochs_trained": len(history),
        "images": {split: len(table.labels) for split, table in logits.items()},
    }
    with malformed_as_error(folder / METRICS):
        found = {key: metrics.get(key) for key in expected} | {
            "epochs_trained": metrics["training"]["epochs_trained"],
            "images": {split: metrics["dataset"]["splits"].get(split) for split in logits},
        }
        if stored := metrics.get("prevalence"):
            shares = np.array([stored["prevalence"][name] for name in names])
            found["prevalence"] = stored
            expected["prevalence"] = simulate_samples(
                folder, shares, [int(cells) for cells in stored["sizes"]], stored["samples"]
            )
        problems += [f"{METRICS}: {text}" for text in differences(found, expected)[:5]]
        measured = metrics.get("out_of_distribution")
        if measured and measured["thresholds"] != thresholds_of(contents.calibration):
            problems.append(
                f"{METRICS} and {CALIBRATION} have different out-of-distribution rules: measure again"
            )
    if card.strip() != (folder / CARD).read_text(encoding="utf-8").strip():
        problems.append(f"{CARD} disagrees with {METRICS}: build it again")
    return problems
