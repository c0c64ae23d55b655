"""Likely label errors: every image judged by small models that did not train on it.

In: crops of `train` and `validation` (the test labels stay as they were published). Out: `label_issues.csv` for the dataset
repo, and on request a contact sheet for a person to look at, which holds real images and stays out of every repo.

A row of `label_issues.csv` is an image whose given label is less likely than chance would have it, by confident learning
(Northcutt, Jiang & Chuang 2021, arXiv:1911.00068; `cleanlab`). `score` is cleanlab's normalised margin between given and
suggested label, lowest first. An issue is a question to an expert, not an error: the model that asks is a weak one, and
cells between two stages of maturation have no label that all experts share.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.model_selection import StratifiedKFold

from dataset_script.arguments import seed, whole_number
from dataset_script.tables import write_csv
from hub_model.evaluation import SEED
from hub_model.studies.frozen_features import add_data_and_backbone, out_of_fold, read_features

FILE = "label_issues.csv"
FOLDS, REPEATS = 5, 5
TILE, CAPTION, ACROSS = 200, 36, 8  # pixels, pixels, images in a row of the contact sheet


class LabelIssue(NamedTuple):
    """A row of `label_issues.csv`, and the image's position among the crops that were audited."""

    file_name: str
    label: str
    suggested: str
    score: float
    given_probability: float
    suggested_probability: float
    index: int


def add_command(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("label-issues", help="find likely label errors")
    add_data_and_backbone(command)
    command.add_argument("out", type=Path, help=f"folder that takes {FILE} (a dataset repo folder)")
    command.add_argument(
        "--contact_sheet",
        type=Path,
        help="draw the top of the list here; keep it out of the repo (default: none)",
    )
    command.add_argument(
        "--top", type=whole_number(1), default=40, help="images on the contact sheet (default: 40)"
    )
    command.add_argument("--seed", type=seed, default=SEED, help=f"of the folds (default: {SEED})")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write `label_issues.csv`, and the contact sheet when one is asked for."""
    crops, features = read_features(arguments)
    probabilities = judge(features, crops.labels, len(crops.label_names), arguments.seed)
    issues = find_issues(probabilities, crops.labels, crops.file_names, crops.label_names)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = [[f"{v:.4f}" if isinstance(v, float) else v for v in issue[:-1]] for issue in issues]
    write_csv(arguments.out / FILE, LabelIssue._fields[:-1], rows)
    accuracy = (probabilities.argmax(axis=1) == crops.labels).mean()
    print(f"{len(issues)} label issues in {len(crops)} images (out-of-fold accuracy {accuracy:.3f})")
    if arguments.contact_sheet:
        top = issues[: arguments.top]
        captions = [f"{i.file_name}\n{i.label} → {i.suggested} {i.suggested_probability:.2f}" for i in top]
        contact_sheet([crops.pixels(i.index) for i in top], captions).save(arguments.contact_sheet)
    return 0


def judge(features: np.ndarray, labels: np.ndarray, classes: int, seed: int = SEED) -> np.ndarray:
    """Out-of-fold probabilities [N, C], averaged over `REPEATS` random 5-fold partitions."""
    repeats = []
    for repeat in range(seed, seed + REPEATS):
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=repeat).split(features, labels)
        repeats.append(out_of_fold(features, labels, folds, classes))
    return np.mean(repeats, axis=0)


def find_issues(
    probabilities: np.ndarray, labels: np.ndarray, file_names: Sequence[str], label_names: Sequence[str]
) -> list[LabelIssue]:
    """Images whose given label confident learning takes for wrong, likeliest error first.

    probabilities: out of fold, [N, C]; labels: int [N], the given ones.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    issues = find_label_issues(labels, probabilities, filter_by="prune_by_noise_rate", n_jobs=1)
    scores = get_label_quality_scores(labels, probabilities, method="normalized_margin")
    suggested = probabilities.argmax(axis=1)
    found = [i for i in np.flatnonzero(issues) if suggested[i] != labels[i]]
    return [
        LabelIssue(
            file_names[i], label_names[labels[i]], label_names[suggested[i]], float(scores[i]),
            float(probabilities[i, labels[i]]), float(probabilities[i, suggested[i]]), int(i),
        )
        for i in sorted(found, key=lambda i: (scores[i], file_names[i]))
    ]  # fmt: skip


def contact_sheet(images: Sequence[np.ndarray], captions: Sequence[str], across: int = ACROSS) -> Image.Image:
    """The images in rows, a caption of up to two lines under each."""
    rows = -(-len(images) // across)
    sheet = Image.new("RGB", (across * TILE, rows * (TILE + CAPTION)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = number % across * TILE, number // across * (TILE + CAPTION)
        sheet.paste(Image.fromarray(image).resize((TILE - 4, TILE - 4)), (left + 2, top + 2))
        draw.text((left + 4, top + TILE), caption, fill="black", font=font)
    return sheet
