"""Publish a model repo folder, with the card rendered for the repo, its dataset and its Space."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml
from datasets import ClassLabel, Image, load_dataset
from huggingface_hub import EvalResultEntry, HfApi, constants, eval_result_entries_to_yaml, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from hub_model.card import write_card
from hub_model.check import check
from hub_model.contract import CARD, METRICS, read_logits
from hub_model.figures import draw_examples
from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import RepoError
from hub_model.inference.hub import HUB_ERRORS, hub_error_message
from hub_model.inference.model_repo import read_json
from hub_model.publish import Published, check_access, check_repo_id, find_repo, push_folder

EVAL_RESULTS = ".eval_results/test.yaml"
EXAMPLES = "figures/examples.png"
TASKS = ("accuracy", "macro_f1", "balanced_accuracy")


def push(
    folder: Path, repo: str, private: bool = False, dataset: str | None = None, space: str | None = None
) -> Published:
    """Check access and folder, render the card for `repo` and publish in one commit; without changes, nothing is committed.

    Args:
        dataset: dataset repo that the card links and takes example images from (default: the training dataset, if it is on a
            Hub). The model index names it only if its test images are those that the model was evaluated on.
        space: Space that the card links.

    Raises:
        RepoError: invalid repo id, no access, an invalid folder, or a Hub that refuses the push.
    """
    for name in filter(None, (dataset, space)):
        check_repo_id(name)
    check_access(repo)
    check_folder(folder)
    return render_and_push(folder, repo, private, dataset, space)


def check_folder(folder: Path) -> None:
    """Raise RepoError with the first problem of a model repo folder."""
    if problems := check(folder):
        raise RepoError(f"{folder} is not published: {problems[0]}")


def render_and_push(
    folder: Path, repo: str, private: bool, dataset: str | None, space: str | None
) -> Published:
    """Render and publish a folder that `check_folder` accepts; see `push`."""
    with tempfile.TemporaryDirectory() as temporary:
        staged = shutil.copytree(folder, Path(temporary) / "repo")
        render(staged, repo, dataset, space)
        return push_folder(staged, repo, "model", private, "Publish the model")


def render(folder: Path, repo: str, dataset: str | None, space: str | None) -> None:
    """Write card, example images and evaluation results of a model folder for the repo that it is published as."""
    metrics = read_json(folder / METRICS)
    training = metrics["dataset"]
    dataset = dataset or training["id"]
    (folder / EXAMPLES).unlink(missing_ok=True)
    published: dict[str, Any] = {"endpoint": constants.ENDPOINT, "model": repo}
    if space:
        published["space"] = space
    if dataset:
        same = dataset == training["id"]
        revision = find_repo(dataset, "dataset", training["revision"] if same else None).sha
        published |= {"dataset": dataset, "dataset_revision": revision}
        try:
            published["measured_on_dataset"] = same or has_test_images(dataset, revision, folder, metrics)
            published |= draw_dataset_examples(dataset, revision, folder)
        except HUB_ERRORS as error:
            raise RepoError(hub_error_message(error, dataset, "dataset")) from error
    metrics["published"] = published
    (folder / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    write_card(metrics, folder / CARD)
    write_eval_results(metrics, folder / EVAL_RESULTS)


def has_test_images(dataset: str, revision: str, folder: Path, metrics: dict) -> bool:
    """Return whether the test images in the `splits.csv` of a dataset repo are those that the model was evaluated on."""
    logits = folder / "logits_test.parquet"
    if not logits.is_file():
        return False
    try:
        path = hf_hub_download(dataset, "splits.csv", repo_type="dataset", revision=revision)
    except RemoteEntryNotFoundError:
        return False
    with open(path, newline="", encoding="utf-8") as file:
        names = {row.get("file_name") for row in csv.DictReader(file) if row.get("split") == "test"}
    return names == set(read_logits(logits, len(metrics["label_names"])).file_names)


def draw_dataset_examples(dataset: str, revision: str, folder: Path) -> dict[str, Any]:
    """Draw the first test image of every class with its prediction; return the entries of `published` that this adds.

    `widget` lists the example images in the dataset repo, if it has any. Empty unless the dataset has a test split with images
    of the model's classes.
    """
    classifier = Classifier.from_pretrained(folder)
    try:
        rows = load_dataset(dataset, split="test", streaming=True, revision=revision)
    except ValueError:  # no test split, or several configurations
        return {}
    features = rows.features or {}
    label, image = features.get("label"), features.get("image")
    same_classes = isinstance(label, ClassLabel) and tuple(label.names) == classifier.label_names
    if not (same_classes and isinstance(image, Image)):
        return {}
    examples: dict[int, bytes] = {}
    for row in rows.cast_column("image", Image(decode=False)):
        if row["label"] in range(len(label.names)) and row["image"] and row["image"]["bytes"]:
            examples.setdefault(row["label"], row["image"]["bytes"])
        if len(examples) == len(label.names):
            break
    if not examples:
        return {}
    classes = sorted(examples)
    names, images = [label.names[i] for i in classes], [examples[i] for i in classes]
    draw_examples(images, names, classifier.predict(images), folder / EXAMPLES)
    files = HfApi().list_repo_files(dataset, repo_type="dataset", revision=revision)
    paths = {name: f"figures/examples/{i}.jpg" for i, name in zip(classes, names, strict=True)}
    base = f"{constants.ENDPOINT}/datasets/{dataset}/resolve/main"
    widget = [
        {"src": f"{base}/{path}", "example_title": name} for name, path in paths.items() if path in files
    ]
    return {"examples": True} | ({"widget": widget} if widget else {})


def write_eval_results(metrics: dict, path: Path) -> None:
    """Write the test metrics in the Hub's format of evaluation results, or no file if the dataset is not on a Hub."""
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
