"""Differential counts of a sample, corrected for its prevalence, and their error on simulated samples.

Reads the predictions of `python -m hub_model score` for the cells of one sample, and the calibration from the model's folder.
Prints CSV. The counts are those of `hub_model.inference.counts`, as in the Space.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hub_model.contract import read_logits
from hub_model.evaluation import SEED, markdown_table
from hub_model.inference.calibration import Calibration
from hub_model.inference.counts import reweight
from hub_model.inference.errors import RepoError, first_line
from hub_model.inference.text import csv_cell
from hub_model.studies.calibration import by_name, read_label_names
from hub_model.studies.crops import write_measurement

KEY = "prevalence"
SIZES, SAMPLES = (50, 200, 500), 100  # cells per simulated sample, samples per size
METHODS = ("plain", "known", "em")
# Cells of each class in the full archive (171,373 cells of 945 patients, 21 classes; Matek et al. 2021): the
# prevalence of these seven in routine samples.
ARCHIVE_COUNTS = dict(BLA=11973, EOS=5883, LYT=26242, MON=4040, NGS=29424, NIF=3538, PMO=11994)


def add_command(commands: argparse._SubParsersAction) -> None:
    purpose = "print the differential count of one sample, corrected for its prevalence"
    command = commands.add_parser("prevalence", help=purpose)
    command.add_argument("folder", type=Path, help="run folder or model repo folder")
    predictions = "predictions of `python -m hub_model score` for the cells of the sample"
    command.add_argument("predictions", type=Path, nargs="?", help=predictions)
    command.add_argument(
        "--prevalence",
        help="prevalence of the sample if known, BLA=0.12,EOS=0.06,… (default: estimated by EM; with --simulate, that of the "
        "full archive)",
    )
    simulate = "measure the error on samples drawn from the test logits"
    command.add_argument("--simulate", action="store_true", help=simulate)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the differential count as CSV, or measure its error on simulated samples."""
    folder, names = arguments.folder, read_label_names(arguments.folder)
    known = parse_prevalence(arguments.prevalence, names) if arguments.prevalence else None
    if arguments.simulate:
        result = simulate_samples(folder, prevalence_of(ARCHIVE_COUNTS, names) if known is None else known)
        print(section(result))
        print(f"wrote {write_measurement(folder, KEY, result)}")
        return 0
    if arguments.predictions is None:
        raise RepoError(
            "pass the predictions of a sample (a file written by `python -m hub_model score`), or --simulate"
        )
    calibration = Calibration.from_folder(folder, names)
    counts = calibration.count(*read_cells(arguments.predictions, calibration), known)
    if not counts:
        raise RepoError(f"{arguments.predictions} has no cells to count")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(
        ("label", "cells", "share", "low", "high", "corrected", "corrected_low", "corrected_high")
    )
    for count in counts:
        shares = (count.share, *count.share_interval, count.corrected, *count.corrected_interval)
        writer.writerow([csv_cell(count.label), count.cells, *(f"{share:.4f}" for share in shares)])
    return 0


def read_cells(path: Path, calibration: Calibration) -> tuple[np.ndarray, np.ndarray | None]:
    """Calibrated probabilities [N, C] and OOD scores [N] (None without) of the cells in `path`.

    Rows without a prediction (unreadable images) are skipped. Raises RepoError if a row is not a probability distribution.
    """
    names = [f"probability_{name}" for name in calibration.label_names]
    try:
        columns = pq.read_schema(path).names
        if missing := [name for name in names if name not in columns]:
            raise RepoError(
                f"{path} has no column {missing[0]}: pass a file written by `python -m hub_model score`"
            )
        optional = ["ood_score"] if calibration.ood and "ood_score" in columns else []
        table = pq.read_table(path, columns=[*names, *optional]).drop_null()
        cells = np.stack([table[name].cast(pa.float64()).to_numpy() for name in names], axis=1)
    except (OSError, pa.ArrowException) as error:
        raise RepoError(f"{path} cannot be read: {first_line(error)}") from None
    valid = (cells >= 0).all(axis=1) & (np.abs(cells.sum(axis=1) - 1) < 1e-3)
    if not valid.all():
        raise RepoError(f"{path}: cell {valid.argmin() + 1} has no probabilities that sum to 1")
    return cells, table["ood_score"].to_numpy() if optional else None


def parse_prevalence(text: str, label_names: Sequence[str]) -> np.ndarray:
    """Parse `BLA=0.02,LYT=0.3,…` to shares [C] that sum to 1.

    Raises RepoError if a class is missing, unknown or given twice, or its value is not a positive number.
    """
    given: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name in given:
            raise RepoError(f"the prevalence of {name} is given twice")
        try:
            given[name] = float(value)
        except ValueError:
            raise RepoError(f"{part.strip()!r} is not of the form CLASS=SHARE") from None
    return prevalence_of(given, label_names)


def prevalence_of(counts: Mapping[str, float], label_names: Sequence[str]) -> np.ndarray:
    """Normalize counts or shares by class to shares [C] that sum to 1. Raises RepoError as `parse_prevalence` does."""
    if missing := [name for name in label_names if name not in counts]:
        raise RepoError(f"the prevalence of {', '.join(missing)} is missing")
    if unknown := [name for name in counts if name not in label_names]:
        raise RepoError(f"unknown classes in the prevalence: {', '.join(unknown)}")
    given = [float(counts[name]) for name in label_names]
    if min(given) > 0 and (shares := np.array(given) / sum(given)).min() > 0:  # an infinite sum leaves 0
        return shares
    raise RepoError("every class needs a finite prevalence above 0")


def simulate_samples(
    folder: Path,
    prevalence: np.ndarray,
    sizes: Sequence[int] = SIZES,
    samples: int = SAMPLES,
    seed: int = SEED,
) -> dict:
    """Error of the count and coverage of its intervals on samples drawn from the `test` logits.

    Returns {prevalence, samples, sizes: {cells: {mean_absolute_error: {method: …}, coverage: {class: …}}}}. The error is that of
    a share, averaged over classes and samples: of the `plain` count, of `em`, and of its lower bound `known`, the posteriors
    under the true prevalence. Coverage is how often the 95 % interval contains the prevalence that the samples were drawn at.
    """
    names = read_label_names(folder)
    calibration = Calibration.from_folder(folder, names)
    logits = read_logits(folder / "logits_test.parquet", len(names))
    members = [np.flatnonzero(logits.labels == c) for c in range(len(names))]
    if empty := [n for n, m in zip(names, members, strict=True) if not len(m)]:
        raise RepoError(f"no test images of {', '.join(empty)} to draw samples from")
    probabilities, rng = calibration.probabilities(logits.values), np.random.default_rng(seed)
    prior = np.full(len(names), 1 / len(names)) if calibration.prior is None else calibration.prior
    results = {}
    for cells in sizes:
        errors: dict[str, list[float]] = {method: [] for method in METHODS}
        covered = []
        for _ in range(samples):
            drawn = rng.choice(len(names), cells, p=prevalence)
            sample = probabilities[[rng.choice(members[c]) for c in drawn]]
            truth = np.bincount(drawn, minlength=len(names)) / cells
            counts = calibration.count(sample)
            estimates = {
                "plain": [count.share for count in counts],
                "known": reweight(sample, prior, prevalence).mean(axis=0),
                "em": [count.corrected for count in counts],
            }
            for method, shares in estimates.items():
                errors[method].append(np.abs(shares - truth).mean())
            low, high = np.transpose([count.corrected_interval for count in counts])
            covered.append((low <= prevalence) & (prevalence <= high))
        results[str(cells)] = {
            "mean_absolute_error": {method: float(np.mean(error)) for method, error in errors.items()},
            "coverage": by_name(names, np.mean(covered, axis=0)),
        }
    return {"prevalence": by_name(names, prevalence), "samples": samples, "sizes": results}


def section(result: dict) -> str:
    """The card's section."""
    head = ["cells", *METHODS, *(f"{name} covered" for name in result["prevalence"])]
    rows = []
    for cells, of in result["sizes"].items():
        errors = [f"{error:.4f}" for error in of["mean_absolute_error"].values()]
        rows.append([cells, *errors, *(f"{share:.2f}" for share in of["coverage"].values())])
    return f"""### Differential counts

On {result["samples"]} simulated samples of test cells at the prevalence of the full archive, by number of cells: the mean
absolute error of a class's fraction when predictions are counted (`plain`), corrected for a `known` prevalence, or for an
estimated one (`em`, the default of the Space and of `python -m hub_model prevalence`); and how often the 95% interval of `em`,
which includes the classifier's own error, covers the true prevalence.

{markdown_table(head, rows)}"""
