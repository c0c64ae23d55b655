"""Render the model card (`README.md`) from `metrics.json`, which holds every number and repo id in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hub_model.evaluation import markdown_table, reported_split, span
from hub_model.publish import links
from hub_model.studies import card_sections

HUB = "https://huggingface.co"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
BASELINES = json.loads(Path(__file__).with_name("baselines.json").read_text("utf-8"))  # best first
NAMES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "balanced_accuracy": "Balanced accuracy",
    "auc": "AUC, one vs. rest",
}
METRIC_TYPES = {"macro_f1": "f1", "auc": "roc_auc"}  # where `evaluate` uses other names


def write_card(metrics: dict, path: Path) -> None:
    """Write the card that `card_text` renders."""
    path.write_text(card_text(metrics), encoding="utf-8")


def card_text(metrics: dict) -> str:
    """Return the card with its metadata.

    metrics: the contents of `metrics.json`. `published` holds the repo ids that `hub_model.push` adds; without them, the
    snippets load the folder that the card is in.
    """
    model, names, splits = metrics["model"], metrics["label_names"], metrics["splits"]
    published, matek = metrics.get("published") or {}, metrics["dataset"].get("licence") == "cc-by-4.0"
    split = reported_split(metrics)
    name = published.get("model", "").partition("/")[2]
    _, height, width = model["input_size"]
    text = ModelCard.from_template(
        metadata(metrics),
        template_path=str(TEMPLATE),
        title=name or f"{model['architecture']} for {len(names)} classes of cells",
        architecture=model["architecture"],
        parameters=f"{model['parameters'] / 1e6:.1f}",
        gmacs=f"{model['gmacs']:.2f}",
        width=width,
        height=height,
        training=metrics["training"],
        published=published,
        classes=[(name, escape(metrics["label_descriptions"].get(name, name))) for name in names],
        ood=bool(metrics.get("out_of_distribution")),
        of_matek=matek,
        links=links(published.get("endpoint", HUB), **{k: published.get(k) for k in ("dataset", "space")}),
        baseline=BASELINES[0] if matek and len(names) == 7 else None,
        measured=" and ".join(f"{figures['images']:,} {name} images" for name, figures in splits.items()),
        split=split,
        figures=figures_table(splits),
        per_class=per_class_table(splits[split], names),
        confusions=confusions_text(splits[split], names),
        by_source=by_source_table(splits[split]),
        studies=card_sections(metrics),
        recipe=recipe(metrics),
        dinov2=any("dino" in teacher["architecture"] for teacher in metrics["training"]["teachers"]),
    )
    return str(text)


def snippets(card: str) -> list[str]:
    """The Python snippets of a card."""
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def metadata(metrics: dict) -> ModelCardData:
    """Return the card's metadata; `datasets` and the model index name only a dataset that is on a Hub."""
    data, training = metrics["dataset"], metrics["training"]
    published, test = metrics.get("published") or {}, metrics["splits"].get("test")
    dataset, revision = data["id"], data["revision"]
    if published.get("measured_on_dataset"):
        dataset, revision = published["dataset"], published["dataset_revision"]
    start = training["pretrained"] or training["init_from"] or ""
    base_model = start if "/" in start else None
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=dataset.partition("/")[2],
            dataset_split="test",
            dataset_revision=revision,
            metric_type=METRIC_TYPES.get(key, key),
            metric_name=title,
            metric_value=test[key],
        )
        for key, title in NAMES.items()
        if dataset and test and test[key] is not None
    ]
    name = published.get("model", "").partition("/")[2] or metrics["model"]["architecture"]
    return ModelCardData(
        license="apache-2.0",
        library_name="timm",
        pipeline_tag="image-classification",
        datasets=[dataset] if dataset else None,
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        metrics=["accuracy", "f1"],
        tags=["timm", "transformers", "onnx", "image-classification", "cytology", "microscopy"],
        widget=published.get("widget"),
        model_name=name if results else None,
        eval_results=results or None,
    )


def figures_table(splits: dict[str, dict]) -> str:
    """Return a table of the headline figures of every split, with their intervals."""
    titles = {**NAMES, "log_loss": "Log loss", "ece": "Expected calibration error (ECE)"}
    rows = [[title, *(figure_text(split, key) for split in splits.values())] for key, title in titles.items()]
    return markdown_table(["", *splits], rows)


def figure_text(figures: dict, key: str) -> str:
    """Return a figure with its interval, if it has one; a dash where it is undefined."""
    if figures[key] is None:
        return "–"
    return f"{figures[key]:.3f}{span(figures.get('intervals', {}).get(key))}"


def per_class_table(figures: dict, names: list[str]) -> str:
    """Return a table of precision, recall, F1 and number of images of each class."""
    rows = []
    for name in names:
        scores = figures["per_class"][name]
        texts = [figure_text(scores, key) for key in ("precision", "recall", "f1")]
        rows.append([escape(name), *texts, str(scores["support"])])
    return markdown_table(["class", "precision", "recall", "F1", "images"], rows)


def by_source_table(figures: dict) -> str:
    """Return a table of the figures by source of the images; empty unless there are several sources."""
    rows = []
    for name, source in (figures.get("by_source") or {}).items():
        calibrated, coverage = source["calibrated"], source["calibrated"]["coverage"]
        worst = min(coverage, key=coverage.get)
        sure, right = calibrated["sure"]["sure"], calibrated["sure"]["right"]
        rows.append([
            escape(name), f"{source['images']:,}", figure_text(source, "accuracy"), figure_text(source, "macro_f1"),
            f"{calibrated['ece']:.3f}", f"{coverage[worst]:.3f} ({escape(worst)})",
            f"{sure / source['images']:.0%}", f"{right / sure:.3f}" if sure else "–",
        ])  # fmt: skip
    titles = ("images", "accuracy", "macro-F1", "ECE", "lowest class coverage (95% sets)")
    return markdown_table(["source", *titles, "sure", "of these correct"], rows) if len(rows) > 1 else ""


def confusions_text(figures: dict, names: list[str], top: int = 5) -> str:
    """Return a sentence that names the `top` most frequently confused pairs of classes."""
    matrix = np.array(figures["confusion_matrix"])
    confused = [(-n, *pair) for pair, n in np.ndenumerate(matrix) if n and pair[0] != pair[1]]
    if not confused:
        return "No image is classified as another class."
    most_frequent = "; ".join(
        f"{-n} of {matrix[true].sum()} {escape(names[true])} are classified as {escape(names[predicted])}"
        for n, true, predicted in sorted(confused)[:top]
    )
    return f"Most frequent confusions: {most_frequent}."


def recipe(metrics: dict) -> str:
    """Return a list of the training data, initialization and options."""
    data, training, published = metrics["dataset"], metrics["training"], metrics.get("published") or {}
    images = ", ".join(f"{size:,} {split}" for split, size in data["splits"].items())
    on_hub = data["id"] or (published.get("measured_on_dataset") and published["dataset"])
    link = links(published.get("endpoint", HUB), dataset=on_hub or None)
    lines = [f"Data: {images} images{f' of {link}' if link else ''}"]
    start = training["pretrained"] or training["init_from"]
    lines.append(f"Initialization: {link_or_run(start) if start else 'random weights'}")
    if training["teachers"]:
        teachers = ", ".join(f"{t['architecture']} ({link_or_run(t['name'])})" for t in training["teachers"])
        lines.append(f"Teachers (knowledge distillation): {teachers}")
    if training["epochs_trained"]:
        best = metrics["model"]["best_epoch"] + 1
        lines.append(
            f"{training['epochs_trained']} epochs; the weights are those of epoch {best}, best by validation macro-F1"
        )
    if others := training.get("averaged_with"):
        own_weight = 1 - sum(other["weight"] for other in others)
        mixed_in = " and ".join(f"of {link_or_run(other['name'])} ({other['weight']:g})" for other in others)
        lines.append(f"The weights are the average of those ({own_weight:g}) and {mixed_in}")
    if training["recipe"].get("reestimate_batch_norm"):
        lines.append(
            "Batch norm statistics were re-estimated at the end on one random view of each training image; the curves show the epochs before that"
        )
    lines.append("Options: " + ", ".join(f"`{key}` {value}" for key, value in training["recipe"].items()))
    return "\n".join(f"- {line}." for line in lines)


def link_or_run(name: str) -> str:
    """Return a Hub id as a link, and any other name as that of an unpublished run."""
    return f"[{name}]({HUB}/{name})" if "/" in name else f"the unpublished run `{name}`"


def escape(text: str) -> str:
    """Escape characters that are markup in Markdown tables and HTML."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
