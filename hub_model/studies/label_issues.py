"""Likely label errors among held-out images, by confident learning (Northcutt et al. 2021; `cleanlab`).

Reads the logits of `validation` and `test` in run folders or model repos; runs with different splits cover different images.
Writes `label_issues.csv` for the dataset repo: images with a label more likely than the given one, lowest `score` (cleanlab's
normalised margin between the two) first. A row is a case for expert review, not necessarily an error: experts disagree about
cells between two stages of maturation.
"""

from __future__ import annotations

import argparse
from operator import itemgetter
from pathlib import Path

import numpy as np

from dataset_script.tables import write_csv
from hub_model.contract import read_all_logits
from hub_model.inference.calibration import Calibration
from hub_model.inference.errors import RepoError
from hub_model.studies.calibration import read_label_names

FILE = "label_issues.csv"
COLUMNS = ("file_name", "label", "suggested", "score", "given_probability", "suggested_probability")


def add_command(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("label-issues", help="list likely label errors among held-out images")
    command.add_argument("folders", type=Path, nargs="+", help="run folders or model repo folders")
    command.add_argument("--out", type=Path, default=Path(FILE), help=f"file to write (default: {FILE})")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write `label_issues.csv`."""
    rows = sorted((row for folder in arguments.folders for row in find_issues(folder)), key=itemgetter(3))
    write_csv(arguments.out, COLUMNS, [[*row[:3], *(f"{value:.4f}" for value in row[3:])] for row in rows])
    print(f"{arguments.out}: {len(rows)} likely label errors")
    return 0


def find_issues(folder: Path) -> list[tuple]:
    """A row of `COLUMNS` for each held-out image whose label is likely wrong by confident learning."""
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        raise RepoError(
            "label-issues needs the package cleanlab: pip install 'bone-marrow-cells[audit]'"
        ) from None

    names = read_label_names(folder)
    splits = read_all_logits(folder, len(names)).values()
    labels = np.concatenate([split.labels for split in splits])
    files = [name for split in splits for name in split.file_names]
    logits = np.concatenate([split.values for split in splits])
    p = Calibration.from_folder(folder, names).probabilities(logits)
    scores = get_label_quality_scores(labels, p, method="normalized_margin")
    issues = find_label_issues(labels, p, filter_by="prune_by_noise_rate", n_jobs=1)
    return [
        (files[i], names[labels[i]], names[best], scores[i], p[i, labels[i]], p[i, best])
        for i in np.flatnonzero(issues)
        if (best := p[i].argmax()) != labels[i]
    ]
