"""Check a model repo folder: recompute and compare everything that follows from its weights, logits and history.

Not checked, because it needs images: figures on OOD inputs (except their thresholds), robustness and input sizes, training
time, and whether the normalization in `config.json` is the one used in training.
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
from hub_model.studies.ood import ood_thresholds
from hub_model.studies.prevalence import simulate_samples


def check(folder: Path) -> list[str]:
    """Return the problems of a model repo folder, one sentence each."""
    if problems := check_files(folder):
        return problems
    try:
        contents = read_contents(folder)
        check_figures(folder)
        check_model(folder, contents.config)
        return compare(folder, contents)
    except RepoError as error:
        return [str(error)]


def check_figures(folder: Path) -> None:
    """Raise RepoError for a figure in the card that cannot be decoded."""
    with malformed_as_error(folder / CARD):
        figures = re.findall(r"\((figures/[^)]+)\)", (folder / CARD).read_text(encoding="utf-8"))
    for name in figures:
        try:
            Image.open(folder / name).load()
        except (OSError, SyntaxError, ValueError):  # Pillow raises SyntaxError for a broken PNG
            raise RepoError(f"{name}, which {CARD} shows, is missing or not an image") from None


def check_model(folder: Path, config: ModelConfig) -> None:
    """Raise RepoError unless the model returns finite logits for an image, and its ONNX graph the same ones."""
    classifier = Classifier.from_pretrained(folder, backend="timm")
    classifier.warmup()
    try:
        model = LogitsAndFeatures(classifier.model)
        difference = largest_difference(model, config.input_size, folder / ONNX)
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise RepoError(f"{ONNX} cannot be run: {' '.join(str(error).split())}") from None
    if not difference <= TOLERANCE:
        raise RepoError(
            f"{ONNX} gives other outputs than {WEIGHTS}: they differ by {difference:.1e} of their range"
        )


def compare(folder: Path, contents: Contents) -> list[str]:
    """Return where calibration, metrics and card differ from what config, history and logits give."""
    logits, names = contents.logits, contents.config.label_names
    metrics = read_json(folder / METRICS)
    with malformed_as_error(folder / METRICS):
        card = card_text(metrics)
    validation = logits["validation"]
    calibration = fit_calibration(validation.values, validation.labels, names, validation.sources)
    stored = {key: contents.calibration.get(key) for key in calibration}
    problems = [f"{CALIBRATION}: {text}" for text in differences(stored, calibration)[:5]]
    with malformed_as_error(folder / CONFIG):
        expected = describe(contents.config, contents.history)
    expected |= {
        "splits": measure_splits(logits, names, calibration),
        "epochs_trained": len(contents.history),
        "images": {split: len(table.labels) for split, table in logits.items()},
    }
    with malformed_as_error(folder / METRICS):
        stored = {key: metrics.get(key) for key in expected} | {
            "epochs_trained": metrics["training"]["epochs_trained"],
            "images": {split: metrics["dataset"]["splits"].get(split) for split in logits},
        }
        if simulated := metrics.get("prevalence"):
            prevalence = np.array([simulated["prevalence"][name] for name in names])
            sizes = [int(cells) for cells in simulated["sizes"]]
            stored["prevalence"] = simulated
            expected["prevalence"] = simulate_samples(folder, prevalence, sizes, simulated["samples"])
        problems += [f"{METRICS}: {text}" for text in differences(stored, expected)[:5]]
        ood = metrics.get("out_of_distribution")
        if ood and ood["thresholds"] != ood_thresholds(contents.calibration):
            problems.append(
                f"{METRICS} and {CALIBRATION} have different OOD thresholds: run `python -m hub_model ood` again"
            )
    if card.strip() != (folder / CARD).read_text(encoding="utf-8").strip():
        problems.append(f"{CARD} disagrees with {METRICS}: build the repo again")
    return problems
