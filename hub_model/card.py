"""The model card: metrics.json in, README.md out. Every number in it is read from there, every id is that of the repo it is for."""

from __future__ import annotations

import json
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hub_model.evaluation import markdown_table, span
from hub_model.publish import links
from hub_model.studies import chapters

HUB = "https://huggingface.co"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
BASELINES = json.loads(Path(__file__).with_name("baselines.json").read_text("utf-8"))  # the best first
NAMES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "balanced_accuracy": "Balanced accuracy",
    "auc": "AUC, one vs. rest",
}
METRIC_TYPES = {"macro_f1": "f1", "auc": "roc_auc"}  # names of `evaluate`, where they differ


def write_card(metrics: dict, path: Path) -> None:
    """Write the card of what `metrics.json` holds."""
    path.write_text(card_text(metrics), encoding="utf-8")


def card_text(metrics: dict) -> str:
    """Return the card with its metadata.

    `metrics["published"]` holds the ids that `push` renders it for (see `hub_model.push`); without it, the snippets
    are for the folder that the card is in.
    """
    model, names, splits = metrics["model"], metrics["label_names"], metrics["splits"]
    published, matek = metrics.get("published") or {}, metrics["dataset"].get("licence") == "cc-by-4.0"
    split = "test" if "test" in splits else "validation"
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
        measured=" and ".join(f"{part['images']:,} {name} images" for name, part in splits.items()),
        split=split,
        figures=figures_table(splits),
        per_class=per_class_table(splits[split], names),
        confusions=confusions_text(splits[split], names),
        by_source=by_source_table(splits[split]),
        studies=chapters(metrics),
        recipe=recipe(metrics),
        dinov2=any("dino" in teacher["architecture"] for teacher in metrics["training"]["teachers"]),
    )
    return str(text)


def snippets(card: str) -> list[str]:
    """The Python snippets of a card."""
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def metadata(metrics: dict) -> ModelCardData:
    """Return the card's metadata; `datasets` and the model index only name a dataset that is on a Hub."""
    data, training = metrics["dataset"], metrics["training"]
    published, test = metrics.get("published") or {}, metrics["splits"].get("test")
    dataset, revision = data["id"], data["revision"]
    if published.get("measured_on_dataset"):
        dataset, revision = published["dataset"], published["dataset_revision"]
    origin = training["pretrained"] or training["init_from"] or ""
    origin = origin if "/" in origin else None
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
        base_model=origin,
        base_model_relation="finetune" if origin else None,
        metrics=["accuracy", "f1"],
        tags=["timm", "transformers", "onnx", "image-classification", "cytology", "microscopy"],
        widget=published.get("widget"),
        model_name=name if results else None,
        eval_results=results or None,
    )


def figures_table(splits: dict[str, dict]) -> str:
    """Return the figures of every split with their intervals."""
    titles = {**NAMES, "log_loss": "Log loss", "ece": "Expected calibration error (ECE)"}
    rows = [[title, *(with_interval(part, key) for part in splits.values())] for key, title in titles.items()]
    return markdown_table(["", *splits], rows)


def with_interval(part: dict, key: str) -> str:
    """Return a figure with its interval; a dash where it is not defined."""
    return "–" if part[key] is None else f"{part[key]:.3f}{span(part['intervals'].get(key))}"


def per_class_table(part: dict, names: list[str]) -> str:
    """Return precision, recall, F1 and number of images of each class."""
    rows = []
    for name in names:
        of = part["per_class"][name]
        figures = ["–" if of[key] is None else f"{of[key]:.3f}" for key in ("precision", "recall", "f1")]
        rows.append([escape(name), *figures, str(of["support"])])
    return markdown_table(["class", "precision", "recall", "F1", "images"], rows)


def by_source_table(part: dict) -> str:
    """Return the figures by source of the images; nothing where there is one source or none is known."""
    found = part.get("by_source") or {}
    rows = []
    for name, of in found.items():
        promised = of["calibrated"]
        least = min(promised["coverage"], key=promised["coverage"].get)
        sure, right = promised["sure"]["sure"], promised["sure"]["right"]
        rows.append([
            escape(name), f"{of['images']:,}", with_interval(of, "accuracy"), with_interval(of, "macro_f1"),
            f"{promised['ece']:.3f}", f"{promised['coverage'][least]:.3f} ({escape(least)})",
            f"{sure / of['images']:.0%}", f"{right / sure:.3f}" if sure else "–",
        ])  # fmt: skip
    figures = ("images", "accuracy", "macro-F1", "ECE", "least coverage of a class (95% sets)")
    head = ["source", *figures, "sure", "of these right"]
    return markdown_table(head, rows) if len(rows) > 1 else ""


def confusions_text(part: dict, names: list[str], most: int = 5) -> str:
    """Return the pairs of classes that are confused most often as a sentence."""
    matrix = part["confusion_matrix"]
    pairs = [
        (count, true, predicted)
        for true, row in enumerate(matrix)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    if not pairs:
        return "No image is classified as another class."
    named = "; ".join(
        f"{count} of {sum(matrix[true])} {escape(names[true])} are classified as {escape(names[predicted])}"
        for count, true, predicted in sorted(pairs, key=lambda p: (-p[0], p[1:]))[:most]
    )
    return f"Most frequent confusions: {named}."


def recipe(metrics: dict) -> str:
    """Return data, initialization and options of the training as a list."""
    data, training, published = metrics["dataset"], metrics["training"], metrics.get("published") or {}
    images = ", ".join(f"{size:,} {split}" for split, size in data["splits"].items())
    on_hub = data["id"] or (published.get("measured_on_dataset") and published["dataset"])
    link = links(published.get("endpoint", HUB), dataset=on_hub or None)
    lines = [f"Data: {images} images{f' of {link}' if link else ''}"]
    start = training["pretrained"] or training["init_from"]
    lines.append(f"Initialization: {where(start) if start else 'random weights'}")
    if training["teachers"]:
        named = ", ".join(f"{t['architecture']} ({where(t['name'])})" for t in training["teachers"])
        lines.append(f"Teachers (knowledge distillation): {named}")
    if training["epochs_trained"]:
        best = metrics["model"]["best_epoch"] + 1
        lines.append(
            f"{training['epochs_trained']} epochs; the weights are those of epoch {best}, best by validation macro-F1"
        )
    if others := training.get("averaged_with"):
        rest = 1 - sum(other["weight"] for other in others)
        named = " and ".join(f"of {where(other['name'])} ({other['weight']:g})" for other in others)
        lines.append(f"The weights are the average of those ({rest:g}) and {named}")
    if training["recipe"].get("reestimate_batch_norm"):
        lines.append(
            "Batch norm statistics were re-estimated at the end on one random view of each training image; the curves show the epochs before"
        )
    lines.append("Options: " + ", ".join(f"`{key}` {value}" for key, value in training["recipe"].items()))
    return "\n".join(f"- {line}." for line in lines)


def where(name: str) -> str:
    """Return a Hub id as a link, and anything else as the unpublished run that it was."""
    return f"[{name}]({HUB}/{name})" if "/" in name else f"the unpublished run `{name}`"


def escape(text: str) -> str:
    """Return the text with what Markdown and HTML would take for markup made harmless."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
