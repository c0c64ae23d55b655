"""Likely label errors among the images that a model did not train on, by confident learning (Northcutt et al. 2021; `cleanlab`).

In: the logits of `validation` and `test` in run folders or model repos; runs with other splits audit other images. Out:
`label_issues.csv` for the dataset repo: images whose given label is less likely than another one, the lowest `score` first,
cleanlab's normalised margin between both. A row is a question to an expert, not an error: cells between two stages of maturation
have no label that all experts share.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from dataset_script.tables import write_csv
from hub_model.contract import read_all_logits
from hub_model.inference.calibration import Calibration
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
    rows = sorted(
        (row for folder in arguments.folders for row in find_issues(folder)), key=lambda row: row[3]
    )
    write_csv(arguments.out, COLUMNS, [[*row[:3], *(f"{value:.4f}" for value in row[3:])] for row in rows])
    print(f"{arguments.out}: {len(rows)} likely label errors")
    return 0


def find_issues(folder: Path) -> list[tuple]:
    """A row of `COLUMNS` for each held-out image whose given label confident learning takes for wrong."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    names = read_label_names(folder)
    tables = read_all_logits(folder, len(names)).values()
    labels = np.concatenate([table.labels for table in tables])
    files = [name for table in tables for name in table.file_names]
    logits = np.concatenate([table.values for table in tables])
    p = Calibration.from_folder(folder, names).probabilities(logits)
    scores = get_label_quality_scores(labels, p, method="normalized_margin")
    issues = find_label_issues(labels, p, filter_by="prune_by_noise_rate", n_jobs=1)
    return [
        (files[i], names[labels[i]], names[best], scores[i], p[i, labels[i]], p[i, best])
        for i in np.flatnonzero(issues)
        if (best := p[i].argmax()) != labels[i]
    ]
