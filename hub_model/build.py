"""Build a model repo folder from a run folder: weights, config, logits, metrics, figures, ONNX graph and card."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import timm

from dataset_script.arguments import is_foreign_output
from hub_model.card import write_card
from hub_model.contract import (
    CALIBRATION,
    CARD,
    CONFIG,
    HISTORY,
    MEASUREMENTS,
    METRICS,
    ONNX,
    OOD_ARRAYS,
    SPLITS,
    WEIGHTS,
    malformed_as_error,
)
from hub_model.figures import draw_figures
from hub_model.inference.errors import RepoError
from hub_model.onnx.export import export_onnx
from hub_model.results import describe, measure_splits
from hub_model.run_folder import ENVIRONMENT, Run, read_run
from hub_model.studies import draw_figures as draw_study_figures
from hub_model.studies.calibration import calibrate_folder

COPIED = (CONFIG, WEIGHTS, HISTORY, CALIBRATION, OOD_ARRAYS, *(f"logits_{split}.parquet" for split in SPLITS))


def build(run_folder: Path, out: Path, overwrite: bool = False) -> dict:
    """Create the model repo in `out`, all of it or nothing, and return its metrics.

    Raises:
        RepoError: the run folder breaks the contract, or `out` already exists and may not be replaced.
    """
    run = read_run(run_folder)
    if out.exists() and not overwrite:
        raise RepoError(f"{out} already exists: choose another folder, or pass --overwrite")
    if is_foreign_output(out, METRICS):
        raise RepoError(
            f"{out} is not a model repo, and --overwrite replaces nothing else: choose another folder"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        folder = Path(temporary) / "repo"
        metrics = write_repo(run, folder)
        if out.exists():
            out.rename(Path(temporary) / "replaced")
        folder.rename(out)
    return metrics


def write_repo(run: Run, folder: Path) -> dict:
    """Write every file of the model repo and return its metrics."""
    folder.mkdir()
    for name in COPIED:
        if (run.folder / name).exists():
            shutil.copyfile(run.folder / name, folder / name)
    calibration, config, history = calibrate_folder(folder), run.contents.config, run.contents.history
    with malformed_as_error(run.folder / ENVIRONMENT):
        metrics = {
            **describe(config, history),
            "dataset": run.dataset,
            "training": run.training,
            "splits": measure_splits(run.contents.logits, config.label_names, calibration),
            **run.measurements,
        }
        write_card(metrics, folder / CARD)
    draw_figures(metrics, history, folder / "figures")
    with malformed_as_error(run.folder / MEASUREMENTS):
        text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
        draw_study_figures(metrics, folder / "figures")
    (folder / METRICS).write_text(text, encoding="utf-8")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    export_onnx(model, config.input_size, folder / ONNX)
    return metrics
