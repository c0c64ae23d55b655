"""Model repo folder in, repo on a Hub out: the card rendered for that repo, its dataset and its Space."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, HfApi, constants, eval_result_entries_to_yaml

from hub_model.card import write_card
from hub_model.check import check
from hub_model.contract import CARD, METRICS, read_logits
from hub_model.figures import draw_examples
from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import RepoError
from hub_model.inference.hub import HUB_ERRORS, hub_refusal, is_repo_id
from hub_model.inference.model_repo import read_json
from hub_model.publish import Published, check_access, find_repo, push_folder

EVAL_RESULTS = ".eval_results/test.yaml"
EXAMPLES = "figures/examples.png"
TASKS = ("accuracy", "macro_f1", "balanced_accuracy")


def push(
    folder: Path, repo: str, private: bool = False, dataset: str | None = None, space: str | None = None
) -> Published:
    """Check access and folder, render the card for `repo` and publish in one commit; none when nothing changed.

    Args:
        dataset: dataset repo to link, and to take example images from (default: the one that it was trained on, if
            that is on a Hub). Figures are attributed to it only when its test images are those of the figures.
        space: Space to link.

    Raises:
        RepoError: an id is wrong, there is no access, the folder breaks the contract, or the Hub refuses.
    """
    for name in filter(None, (dataset, space)):
        if not is_repo_id(name):
            raise RepoError(f"{name!r} is not a repo id (OWNER/NAME)")
    check_access(repo)
    check_folder(folder)
    return push_checked(folder, repo, private, dataset, space)


def check_folder(folder: Path) -> None:
    """Raise RepoError with the first thing that is wrong with a model repo folder."""
    if problems := check(folder):
        raise RepoError(f"{folder} is not published: {problems[0]}")


def push_checked(folder: Path, repo: str, private: bool, dataset: str | None, space: str | None) -> Published:
    """What `push` does after its checks."""
    with tempfile.TemporaryDirectory() as place:
        staged = Path(shutil.copytree(folder, Path(place) / "repo"))
        render(staged, repo, dataset, space)
        return push_folder(staged, repo, "model", private, "Publish the model")


def render(folder: Path, repo: str, dataset: str | None, space: str | None) -> None:
    """Write card, examples and evaluation results of a model folder for the repo that it goes to."""
    metrics = read_json(folder / METRICS)
    trained_on = metrics["dataset"]
    dataset = dataset or trained_on["id"]
    (folder / EXAMPLES).unlink(missing_ok=True)
    published: dict[str, Any] = {"endpoint": constants.ENDPOINT, "model": repo}
    if space:
        published["space"] = space
    if dataset:
        same = dataset == trained_on["id"]
        revision = find_repo(dataset, "dataset", trained_on["revision"] if same else None).sha
        published |= {"dataset": dataset, "dataset_revision": revision}
        try:
            published["measured_on_dataset"] = same or has_test_images(dataset, revision, folder, metrics)
            published |= examples(dataset, revision, folder)
        except HUB_ERRORS as error:
            raise RepoError(hub_refusal(error, dataset, "dataset")) from error
    metrics["published"] = published
    (folder / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    write_card(metrics, folder / CARD)
    write_eval_results(metrics, folder / EVAL_RESULTS)


def has_test_images(dataset: str, revision: str, folder: Path, metrics: dict) -> bool:
    """Whether the test images of a dataset repo, by its `splits.csv`, are those that the figures were measured on."""
    api, logits = HfApi(), folder / "logits_test.parquet"
    if not logits.is_file() or not api.file_exists(
        dataset, "splits.csv", repo_type="dataset", revision=revision
    ):
        return False
    path = api.hf_hub_download(dataset, "splits.csv", repo_type="dataset", revision=revision)
    with open(path, newline="", encoding="utf-8") as file:
        there = {row.get("file_name") for row in csv.DictReader(file) if row.get("split") == "test"}
    return there == set(read_logits(logits, len(metrics["label_names"])).file_names)


def examples(dataset: str, revision: str, folder: Path) -> dict[str, Any]:
    """Draw the first test image of every class with the model's answer; widget entries where the dataset has examples.

    Nothing where the dataset has no test split of the model's classes.
    """
    from datasets import ClassLabel, Image, load_dataset

    classifier = Classifier.from_pretrained(folder)
    try:
        rows = load_dataset(dataset, split="test", streaming=True, revision=revision)
    except ValueError:  # no split of that name, or several configurations
        return {}
    features = rows.features or {}
    label, image = features.get("label"), features.get("image")
    known = isinstance(label, ClassLabel) and tuple(label.names) == classifier.label_names
    if not (known and isinstance(image, Image)):
        return {}
    found: dict[int, bytes] = {}
    for row in rows.cast_column("image", Image(decode=False)):
        if row["image"]["bytes"]:
            found.setdefault(row["label"], row["image"]["bytes"])
        if len(found) == len(label.names):
            break
    images = [found[i] for i in sorted(found)]
    answers = classifier.predict(images)
    draw_examples(images, [label.names[i] for i in sorted(found)], answers, folder / EXAMPLES)
    there = HfApi().list_repo_files(dataset, repo_type="dataset", revision=revision)
    base = f"{constants.ENDPOINT}/datasets/{dataset}/resolve/main"
    widget = [
        {"src": f"{base}/{name}", "example_title": label.names[i]}
        for i in sorted(found)
        if (name := f"figures/examples/{i}.jpg") in there
    ]
    return {"examples": True} | ({"widget": widget} if widget else {})


def write_eval_results(metrics: dict, path: Path) -> None:
    """Write the test figures as the Hub's evaluation panel reads them; only for a dataset that is on a Hub."""
    published, test = metrics["published"], metrics["splits"].get("test")
    path.unlink(missing_ok=True)
    if not (test and published.get("measured_on_dataset")):
        return
    entries = [
        EvalResultEntry(
            dataset_id=published["dataset"],
            task_id=task,
            value=test[task],
            dataset_revision=published["dataset_revision"],
            source_url=f"{published['endpoint']}/{published['model']}/blob/main/{METRICS}",
            source_name=METRICS,
            notes=f"test split, {test['images']:,} images",
        )
        for task in TASKS
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False), encoding="utf-8")
