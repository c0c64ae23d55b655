"""The model card: metrics.json in, README.md out. Every number in it is read from there."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hub_model.studies import chapters

NAMES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "balanced_accuracy": "Balanced accuracy",
    "auc": "AUC, one against rest",
}

TEMPLATE = """---
{metadata}
---

# {architecture} for {classes} classes of cells

{architecture} ({parameters:.1f} million parameters, {gmacs:.2f} GMAC an image) for {width}×{height} pixels. **For research and
teaching only: this is not a medical device.**

## Use

```python
import timm

model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
names = model.pretrained_cfg["label_names"]
```

```python
from transformers import pipeline

pipeline("image-classification", model="OWNER/NAME")("cell.jpg")
```

`onnx/model.onnx` takes normalised `pixel_values` and gives `logits` and `features`.

## Classes

{class_list}

## How good it is

{measured_on}

| figure | {splits} |
|---|{rule}|
{figures}

{per_class}

{confusions}

![confusion matrix](figures/confusion_matrix.png)
![per class](figures/per_class.png)
{curves}

The logits that these figures come from are in this repo; `python -m hub_model check` computes them anew.

{studies}

## How it was made

{recipe}

## Limits

The figures hold for images like those of the dataset. Cells of one patient may be in training and in test where no patient
identifiers are known, so slides of a new patient, another laboratory, stain or scanner will be harder. {strangers} A count of cells is right only at the prevalence it was calibrated for.

The weights are under Apache-2.0. {data_licence}
"""


def write_card(metrics: dict, path: Path) -> None:
    """Write the card of what `metrics.json` holds."""
    path.write_text(card_text(metrics), encoding="utf-8")


def card_text(metrics: dict) -> str:
    """Return the card with its metadata."""
    model, training, data = metrics["model"], metrics["training"], metrics["dataset"]
    names, described = metrics["label_names"], metrics["label_descriptions"]
    splits = metrics["splits"]
    _, height, width = model["input_size"]
    rows = [
        f"| {title} | " + " | ".join(with_interval(part, key) for part in splits.values()) + " |"
        for key, title in {**NAMES, "log_loss": "Log loss", "ece": "Calibration error (ECE)"}.items()
    ]
    measured = " and ".join(f"{part['images']:,} {split} images" for split, part in splits.items())
    text = TEMPLATE.format(
        metadata=metadata(metrics).to_yaml().strip(),
        architecture=model["architecture"],
        classes=len(names),
        parameters=model["parameters"] / 1e6,
        gmacs=model["gmacs"],
        width=width,
        height=height,
        class_list="\n".join(f"- `{name}` {escape(described.get(name, name))}" for name in names),
        measured_on=f"On {measured}; 95% bootstrap intervals in brackets.",
        splits=" | ".join(splits),
        rule="|".join("---" for _ in splits),
        figures="\n".join(rows),
        per_class=per_class_table(splits.get("test") or splits["validation"], names),
        confusions=confusions_text(splits.get("test") or splits["validation"], names),
        curves="![curves](figures/curves.png)" if training["epochs_trained"] else "",
        studies=chapters(metrics),
        recipe=recipe(metrics),
        strangers=(
            "Alone, the network names one of its classes whatever it is shown; the score above turns most other things away, not all."
            if metrics.get("out_of_distribution")
            else "The model names one of its classes whatever it is shown."
        ),
        data_licence=(
            "The images that they were trained on are under CC BY 4.0: Matek et al., doi:10.7937/TCIA.AXH3-T579."
            if data.get("licence") == "cc-by-4.0"
            else "The licence of the images is that of their dataset."
        ),
    )
    return str(ModelCard(text, ignore_metadata_errors=False))


def metadata(metrics: dict) -> ModelCardData:
    """Return the card's metadata; `datasets` and the model index only name a dataset that is on a Hub."""
    data, training = metrics["dataset"], metrics["training"]
    test = metrics["splits"].get("test")
    origin = training["pretrained"] or training["init_from"]
    index = None
    if test:
        index = [
            EvalResult(
                task_type="image-classification",
                dataset_type=data["id"] or "local",
                dataset_name=data["id"] or "a local dataset",
                dataset_split="test",
                dataset_revision=data["revision"],
                metric_type=key.replace("macro_", ""),
                metric_name=title,
                metric_value=test[key],
            )
            for key, title in NAMES.items()
            if test[key] is not None
        ]
    return ModelCardData(
        license="apache-2.0",
        library_name="timm",
        pipeline_tag="image-classification",
        datasets=[data["id"]] if data["id"] else None,
        base_model=origin if origin and "/" in origin else None,
        metrics=["accuracy", "f1"],
        tags=["timm", "transformers", "image-classification", "cytology"],
        model_name=metrics["model"]["architecture"] if index else None,
        eval_results=index,
    )


def with_interval(part: dict, key: str) -> str:
    """Return a figure with its interval; a dash where it is not defined."""
    if part[key] is None:
        return "–"
    interval = part["intervals"].get(key)
    return f"{part[key]:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def per_class_table(part: dict, names: list[str]) -> str:
    """Return precision, recall, F1 and number of images of each class as a table."""
    lines = ["| class | precision | recall | F1 | images |", "|---|---|---|---|---|"]
    for name in names:
        of = part["per_class"][name]
        figures = " | ".join(
            "–" if of[key] is None else f"{of[key]:.3f}" for key in ("precision", "recall", "f1")
        )
        lines.append(f"| {escape(name)} | {figures} | {of['support']} |")
    return "\n".join(lines)


def confusions_text(part: dict, names: list[str], most: int = 5) -> str:
    """Return the confusion matrix in words: the pairs of classes that are confused most often."""
    matrix = part["confusion_matrix"]
    pairs = [
        (count, true, predicted)
        for true, row in enumerate(matrix)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    if not pairs:
        return "No image is taken for one of another class."
    named = "; ".join(
        f"{count} of {sum(matrix[true])} {escape(names[true])} are taken for {escape(names[predicted])}"
        for count, true, predicted in sorted(pairs, key=lambda p: (-p[0], p[1:]))[:most]
    )
    return f"Most often confused: {named}."


def recipe(metrics: dict) -> str:
    """Return data, start and options of the training."""
    data, training = metrics["dataset"], metrics["training"]
    images = ", ".join(f"{size:,} {split}" for split, size in data["splits"].items())
    lines = [f"- Data: {data['id'] or 'a local dataset'}, revision `{data['revision']}` ({images})."]
    start = training["pretrained"] or training["init_from"]
    lines.append(f"- Start: {where(start) if start else 'random weights'}.")
    if training["teachers"]:
        named = ", ".join(f"{t['architecture']} from {where(t['name'])}" for t in training["teachers"])
        lines.append(f"- Teacher: {named}.")
    best = metrics["model"]["best_epoch"]
    if training["epochs_trained"]:
        lines.append(
            f"- {training['epochs_trained']} epochs; the weights are those of epoch {best + 1}, best by validation macro-F1."
        )
    if training["recipe"].get("reestimate_batch_norm"):
        lines.append(
            "- Batch norm's statistics were taken anew at the end, from one random view of each training image without mixup; the "
            "curves show what was there before."
        )
    lines.append(
        "- Options: " + ", ".join(f"{key} {value}" for key, value in training["recipe"].items()) + "."
    )
    return "\n".join(lines)


def where(name: str) -> str:
    """Return a Hub id as it is, and what is none as the folder that it was."""
    return name if "/" in name else f"the local folder `{name}`"


def escape(text: str) -> str:
    """Return the text with what Markdown and HTML would take for markup made harmless."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
