"""The `python -m hub_model` commands that calibrate a run and measure how far it can be trusted.

In: a run folder (or a model repo folder) and the dataset repo. Out: `calibration.json` with its arrays, and
`measurements/NAME.json` in that folder, which `build` takes into `metrics.json`. Nothing is fitted on `test`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset_script.arguments import whole_number
from hub_model import label_audit, new_slide, prevalence
from hub_model.calibration import calibrate_folder, read_label_names, write_json
from hub_model.contract import weights_digest
from hub_model.crops import check_classes, open_classifier, read_crops
from hub_model.inference.calibration import softmax
from hub_model.inference.errors import RepoError
from hub_model.out_of_distribution import fit_out_of_distribution, measure_out_of_distribution, write_rule
from hub_model.perturbations import PERTURBATIONS
from hub_model.robustness import Reference, measure_robustness, table
from hub_model.run_folder import MEASUREMENTS
from hub_model.size_curve import SIZES, measure_size_curve
from hub_model.trust_report import read_temperature


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add this module's commands; each parsed namespace has `run(arguments)`, which returns the exit status."""
    add = commands.add_parser
    calibrate = add("calibrate", help="temperature and conformal thresholds from the validation logits")
    calibrate.add_argument("folder", type=Path, help="run folder or model repo folder")
    calibrate.set_defaults(run=run_calibrate)

    strangers = add("strangers", help='score and threshold of "not a cell I know", chosen and measured')
    _add_model_and_data(strangers)
    strangers.add_argument("--each", type=whole_number(1), default=100, help="foreign inputs of each kind")
    strangers.set_defaults(run=run_strangers)

    robustness = add("robustness", help="other stains, cameras and microscopes, with and without a cure")
    _add_model_and_data(robustness)
    robustness.add_argument("--split", default="test")
    robustness.add_argument(
        "--images", type=whole_number(1), help="at most so many crops, evenly over the classes"
    )
    robustness.add_argument(
        "--classes", nargs="+", help="only crops of these classes; answers may be any class"
    )
    robustness.add_argument(
        "--conditions", nargs="+", help=f"some of: {', '.join(PERTURBATIONS).replace('%', '%%')}"
    )
    robustness.add_argument("--cures", nargs="*", help="some of the cures; all by default")
    robustness.set_defaults(run=run_robustness)

    sizes = add("size-curve", help="accuracy on validation against cost, by input size")
    _add_model_and_data(sizes)
    sizes.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="pixels a side")
    sizes.set_defaults(run=run_size_curve)

    counts = add("prevalence", help="differential count of one sample, corrected for its prevalence")
    counts.add_argument("folder", type=Path, help="run folder or model repo folder")
    counts.add_argument(
        "predictions",
        type=Path,
        nargs="?",
        help="Parquet, a row a cell: what `python -m hub_model score` wrote, or a column `logits`",
    )
    counts.add_argument("--method", choices=prevalence.METHODS, default="em")
    counts.add_argument(
        "--prevalence", help="BLA=0.12,EOS=0.06,…: for method known, or to simulate samples with"
    )
    counts.add_argument(
        "--simulate", action="store_true", help="measure all methods on samples of test logits"
    )
    counts.set_defaults(run=run_prevalence)

    for name, module, text in (
        ("new-slide", new_slide, "how much is lost on slides that were not trained on"),
        ("label-audit", label_audit, "labels that out-of-fold predictions speak against"),
    ):
        command = add(name, help=text)
        command.add_argument("dataset", help="dataset repo OWNER/NAME or folder")
        command.add_argument("--revision")
        command.add_argument(
            "--backbone",
            type=Path,
            required=True,
            help="model folder that has not seen these images (`python -m runs.imagenet_lite 0 OUT` makes one)",
        )
        module.add_options(command)
    commands.choices["new-slide"].set_defaults(run=run_new_slide)
    commands.choices["label-audit"].set_defaults(run=run_label_audit)


def _add_model_and_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="run folder or model repo folder")
    parser.add_argument("dataset", help="dataset repo OWNER/NAME or folder")
    parser.add_argument("--revision", help="revision of the dataset repo")


def write_measurement(folder: Path, name: str, value: dict | list) -> Path:
    """Write `folder/measurements/NAME.json`, where `build` finds it, with the weights that it was measured on."""
    path = folder / MEASUREMENTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"weights_sha256": weights_digest(folder), "result": value})
    return path


def run_calibrate(arguments: argparse.Namespace) -> int:
    """Write `calibration.json` and print what is in it."""
    calibration = calibrate_folder(arguments.folder)
    print(f"temperature {calibration['temperature']['value']:.4f} (fitted on validation)")
    for level, entry in calibration["conformal"].items():
        limits = ", ".join(f"{name} {limit:.4f}" for name, limit in entry["thresholds"].items())
        print(f"{level}: 1 - p <= {limits}")
    return 0


def run_strangers(arguments: argparse.Namespace) -> int:
    """Choose, fit, write and measure the out-of-distribution rule; print AUROC by kind."""
    folder = arguments.folder
    temperature = read_temperature(folder)
    classifier = open_classifier(folder)
    train, validation, test = (
        read_crops(arguments.dataset, split, revision=arguments.revision)
        for split in ("train", "validation", "test")
    )
    check_classes(classifier, validation)
    rule, threshold, evidence = fit_out_of_distribution(
        classifier, train, validation, temperature, arguments.each
    )
    write_rule(folder, rule, threshold)
    result = measure_out_of_distribution(classifier, rule, threshold, test, arguments.each)
    result["auroc_when_choosing"] = evidence
    print(f"wrote {write_measurement(folder, 'out_of_distribution', result)}")
    for name, kinds in evidence.items():
        print(f"choosing: {name:12s} mean AUROC {np.mean(list(kinds.values())):.4f}")
    print(
        f"chosen: {result['score']}; {result['false_alarms']:.1%} of {result['cells']} test cells turned away"
    )
    for kind, figures in result["kinds"].items():
        print(f"{kind:40s} AUROC {figures['auroc']:.4f}  flagged {figures['flagged']:.1%}")
    return 0


def run_robustness(arguments: argparse.Namespace) -> int:
    """Measure and write `robustness`, and print it as a table."""
    conditions = {name: PERTURBATIONS.get(name) for name in arguments.conditions or PERTURBATIONS}
    if unknown := [name for name, change in conditions.items() if change is None]:
        raise RepoError(f"unknown condition {unknown[0]!r} (known: {', '.join(PERTURBATIONS)})")
    classifier = open_classifier(arguments.folder)
    validation = read_crops(arguments.dataset, "validation", revision=arguments.revision)
    crops = read_crops(arguments.dataset, arguments.split, revision=arguments.revision)
    check_classes(classifier, crops)
    if arguments.classes:
        if unknown := sorted(set(arguments.classes) - set(crops.label_names)):
            raise RepoError(f"no class {unknown[0]!r} (there are: {', '.join(crops.label_names)})")
        wanted = [crops.label_names.index(name) for name in arguments.classes]
        crops = crops.take(np.flatnonzero(np.isin(crops.labels, wanted)))
    reference = Reference.of(validation.sample(300))
    rows = measure_robustness(
        classifier, crops.sample(arguments.images), reference, conditions, arguments.cures
    )
    print(table(rows))
    print(f"wrote {write_measurement(arguments.folder, 'robustness', rows)}")
    return 0


def run_size_curve(arguments: argparse.Namespace) -> int:
    """Measure and write `size_curve`."""
    classifier = open_classifier(arguments.folder)
    crops = read_crops(arguments.dataset, "validation", revision=arguments.revision)
    check_classes(classifier, crops)
    rows = measure_size_curve(classifier, crops, arguments.sizes)
    for row in rows:
        print(
            f"{row['size']:4d} px  accuracy {row['accuracy']:.4f}  {row['gmacs']:.3f} GMAC  {row['milliseconds']} ms"
        )
    print(f"wrote {write_measurement(arguments.folder, 'size_curve', rows)}")
    return 0


def run_prevalence(arguments: argparse.Namespace) -> int:
    """Print the corrected differential count as CSV, or measure the methods on simulated samples."""
    folder, names = arguments.folder, read_label_names(arguments.folder)
    known = None
    if arguments.prevalence:
        known = prevalence.parse_prevalence(arguments.prevalence, names)
    if arguments.simulate:
        if known is None:
            known = prevalence.prevalence_of(prevalence.ARCHIVE_COUNTS, names)
        result = prevalence.simulate_samples(folder, known)
        print(f"wrote {write_measurement(folder, 'prevalence', result)}")
        for method, error in result["mean_absolute_error"].items():
            print(f"{method:10s} mean error of a share {error:.4f}")
        return 0
    if arguments.predictions is None:
        raise RepoError(
            "name the predictions of a sample (what `python -m hub_model score` wrote), or --simulate"
        )
    probabilities = _read_cells(arguments.predictions, names, folder)
    labelled = prevalence.labelled_of(folder) if arguments.method == "adjusted" else None
    count = prevalence.differential_count(
        probabilities, names, arguments.method, known=known, labelled=labelled
    )
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("label", "share", "low", "high", "cells"))
    writer.writerows(
        [row["label"], *(f"{row[key]:.4f}" for key in ("share", "low", "high")), f"{row['cells']:.1f}"]
        for row in count.rows()
    )
    return 0


def _read_cells(path: Path, names: list[str], folder: Path) -> np.ndarray:
    """Calibrated probabilities [N, C] of the cells in `path`: what bulk scoring wrote, or a column `logits`.

    Rows without a prediction, images that could not be read, are left out. Raises RepoError for what is no probability.
    """
    scored = [f"probability_{name}" for name in names]
    try:
        calibrated = set(scored) <= set(pq.read_schema(path).names)
        if calibrated:
            table = pq.read_table(path, columns=scored).drop_null()
            cells = np.stack([table[name].to_numpy().astype(np.float64) for name in scored], axis=1)
        else:
            logits = pq.read_table(path, columns=["logits"])["logits"].to_pylist()
            cells = np.array(logits, np.float64).reshape(len(logits), len(names))
    except (OSError, pa.ArrowException, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RepoError(
            f"{path} has neither the columns {scored[0]}, … nor a column of {len(names)} logits a cell: {reason}"
        ) from None
    if not calibrated:
        cells = softmax(np.where(np.isfinite(cells), cells, np.nan), read_temperature(folder))
    right = (cells >= 0).all(axis=1) & (np.abs(cells.sum(axis=1) - 1) < 1e-3)
    if not right.all():
        raise RepoError(f"{path}: cell {right.argmin() + 1} has no probabilities that sum to 1")
    return cells


def _features(arguments: argparse.Namespace):
    """Crops of train and validation, and their features by the frozen backbone."""
    from hub_model.frozen_features import extract, load_backbone

    crops = read_crops(arguments.dataset, "train", "validation", revision=arguments.revision)
    return crops, extract(load_backbone(arguments.backbone), crops, total=len(crops))


def run_new_slide(arguments: argparse.Namespace) -> int:
    """Measure and write `new_slide`."""
    crops, features = _features(arguments)
    clusters = new_slide.cluster(crops, arguments.clusters, arguments.seed)
    result = new_slide.measure_new_slide(
        features, crops.labels, clusters, len(crops.label_names), arguments.seed
    )
    print(f"wrote {write_measurement(arguments.folder, 'new_slide', result)}")
    print(json.dumps({k: v for k, v in result.items() if not isinstance(v, dict)}))
    for name in ("random", "grouped"):
        print(f"{name:8s} balanced accuracy {result[name]['balanced_accuracy']:.4f}")
    return 0


def run_label_audit(arguments: argparse.Namespace) -> int:
    """Write `suspects.csv`, and the contact sheet when one is asked for."""
    crops, features = _features(arguments)
    probabilities = label_audit.judge(features, crops.labels, len(crops.label_names), arguments.seed)
    suspects = label_audit.find_suspects(probabilities, crops.labels, crops.file_names, crops.label_names)
    arguments.out.mkdir(parents=True, exist_ok=True)
    label_audit.write_suspects(arguments.out / "suspects.csv", suspects)
    accuracy = (probabilities.argmax(axis=1) == crops.labels).mean()
    print(f"{len(suspects)} of {len(crops)} labels are suspect (out-of-fold accuracy {accuracy:.3f})")
    if arguments.contact_sheet:
        top = suspects[: arguments.top]
        captions = [f"{s.file_name}\n{s.label} → {s.suggested} {s.suggested_probability:.2f}" for s in top]
        sheet = label_audit.contact_sheet([crops.pixels(s.index) for s in top], captions)
        sheet.save(arguments.contact_sheet)
    return 0
