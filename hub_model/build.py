"""Run folder in, model repo folder out: weights, config, logits, figures of merit, pictures, ONNX graph and card."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import timm

from dataset_script.overwrite import holds_other_things
from hub_model.calibration import calibrate_folder, fit_calibration
from hub_model.card import card_text, write_card
from hub_model.contract import (
    CALIBRATION,
    CARD,
    CONFIG,
    HISTORY,
    METRICS,
    ONNX,
    STRANGER_ARRAYS,
    WEIGHTS,
    ContractError,
    check_files,
    check_weights,
    read_all_logits,
    read_config,
    read_json,
)
from hub_model.figures import draw_figures
from hub_model.onnx_export import export_onnx
from hub_model.results import SCHEMA, differences, measure_model, measure_splits
from hub_model.run_folder import Run, read_run
from hub_model.trust_figures import draw_trust_figures

COPIED = (
    CONFIG,
    WEIGHTS,
    HISTORY,
    CALIBRATION,
    STRANGER_ARRAYS,
    "logits_validation.parquet",
    "logits_test.parquet",
)


def build(run_folder: Path, out: Path, overwrite: bool = False) -> dict:
    """Make the model repo in `out`, whole or not at all; return its metrics.

    Raises:
        ContractError: the run folder breaks the contract, or `out` holds something already.
    """
    run = read_run(run_folder)
    if out.exists() and not overwrite:
        raise ContractError(f"{out} is there already: name another folder, or pass --overwrite")
    if holds_other_things(out, METRICS):
        raise ContractError(
            f"{out} holds no model repo, and --overwrite deletes nothing else: name another folder"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as unfinished:
        folder = Path(unfinished) / "repo"
        metrics = fill(run, folder)
        if out.exists():
            out.rename(Path(unfinished) / "before")
        folder.rename(out)
    return metrics


def fill(run: Run, folder: Path) -> dict:
    """Write every file of the model repo; return its metrics."""
    folder.mkdir()
    for name in COPIED:
        if (run.folder / name).exists():
            shutil.copyfile(run.folder / name, folder / name)
    metrics = measure(run, calibrate_folder(folder))
    (folder / METRICS).write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    draw_figures(metrics, run.history, folder / "figures")
    draw_trust_figures(metrics, folder / "figures")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    export_onnx(model, run.config.input_size, folder / ONNX)
    write_card(metrics, folder / CARD)
    return metrics


def measure(run: Run, calibration: dict) -> dict:
    """Return what goes into metrics.json."""
    names = run.config.label_names
    return {
        "schema": SCHEMA,
        "label_names": names,
        "label_descriptions": run.config.label_descriptions,
        "model": measure_model(run.config) | {"best_epoch": run.best_epoch},
        "dataset": run.dataset,
        "training": run.training,
        "splits": measure_splits(run.logits, names, calibration),
        **run.measurements,
    }


def check(folder: Path) -> list[str]:
    """Return what is wrong with a model repo folder, a sentence each; figures are computed anew from its logits."""
    if problems := check_files(folder):
        return problems
    try:
        config, metrics = read_config(folder / CONFIG), read_json(folder / METRICS)
        check_weights(folder / WEIGHTS, config)
        if metrics.get("label_names") != config.label_names:
            return [
                f"{METRICS} has the label names {metrics.get('label_names')}, {CONFIG} has {config.label_names}"
            ]
        logits = read_all_logits(folder, len(config.label_names))
        calibration = read_json(folder / CALIBRATION)
        fitted = fit_calibration(logits["validation"].values, logits["validation"].labels, config.label_names)
        known = {key: calibration.get(key) for key in fitted}
        problems = [f"{CALIBRATION}: {text}" for text in differences(known, fitted)[:5]]
        found = differences(
            metrics["splits"], measure_splits(logits, config.label_names, calibration), "splits"
        )
        problems += [f"{METRICS}: {text}" for text in found[:5]]
        if card_text(metrics).strip() != (folder / CARD).read_text(encoding="utf-8").strip():
            problems.append(f"{CARD} disagrees with {METRICS}: build it again")
    except ContractError as error:
        problems.append(str(error))
    except (KeyError, TypeError) as error:
        problems.append(f"{METRICS} lacks {error}")
    return problems
