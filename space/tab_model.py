"""Tab "The model": tables and charts of `metrics.json` and `history.jsonl` of the model repo."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from space import cards, charts
from space.resources import Resources
from space.texts import Words, number, say
from space.visits import Visits

MEASURES = ("loss", "accuracy", "macro_f1")
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auc")


def build(resources: Resources, words: Words, visits: Visits, tab: gr.Tab) -> tuple:
    """Lay out the tab; it is drawn in the visitor's language when first opened."""
    head = gr.HTML(elem_id="model-head")
    split = held_out_metrics(resources)
    with gr.Row(visible=bool(resources.history)):
        curves = [cards.plot_panel(words, measure, 260) for measure in MEASURES]
    if resources.history:
        words.html('<p class="help">{}</p>', "model_curves_note")
    with gr.Row(visible=not {"confusion_matrix", "per_class"}.isdisjoint(split)):
        confusion = cards.plot_panel(words, "model_confusion")
        per_class = cards.plot_panel(words, "model_per_class")
    with gr.Row(visible="reliability" in split):
        reliability = cards.plot_panel(words, "model_reliability")
        coverage = cards.plot_panel(words, "model_coverage")
    table = gr.HTML(elem_id="model-table")
    outputs = [head, *curves, confusion, per_class, reliability, coverage, table]

    def draw(language: str) -> list[Any]:
        history = [
            if_valid(charts.history_chart, resources.history, measure, language)
            if resources.history
            else None
            for measure in MEASURES
        ]
        no_metrics = cards.message(say(language, "model_no_metrics"))
        labels = (resources.metrics or {}).get("label_names", resources.classifier.label_names)
        return [
            (if_valid(headline, resources, split, language) or no_metrics)
            + (if_valid(source_table, split, language) or ""),
            *history,
            if_valid(charts.confusion_chart, split.get("confusion_matrix"), labels, language),
            if_valid(charts.per_class_chart, split.get("per_class"), language),
            if_valid(charts.reliability_chart, split.get("reliability"), language),
            if_valid(charts.coverage_chart, split.get("accuracy_against_coverage"), language),
            if_valid(per_class_table, resources, split, language) or "",
        ]

    return visits.draw_on_open("model", tab, outputs, draw)


def held_out_metrics(resources: Resources) -> dict[str, Any]:
    """The metrics of the test split, else of the validation split; empty if the repo has neither."""
    splits = (resources.metrics or {}).get("splits")
    for name in ("test", "validation"):
        if isinstance(splits, dict) and isinstance(splits.get(name), dict):
            return {"split": name, **splits[name]}
    return {}


def if_valid(draw: Callable[..., Any], *values: Any) -> Any:
    """`draw(*values)`; None if the metrics are missing or malformed."""
    try:
        return draw(*values)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None


def headline(resources: Resources, split: dict[str, Any], language: str) -> str:
    """Name and size of the model, and its main metrics."""
    model, repo = resources.metrics.get("model", {}), resources.classifier.repo
    line = say(
        language,
        "model_card",
        architecture=model.get("architecture", repo.config.architecture),
        parameters=number(language, model.get("parameters", 0) / 1e6, 1),
        side=resources.classifier.preprocess.config["input_size"][-1],
    )
    name = say(language, f"model_{split['split']}")
    images = say(language, "model_images", images=number(language, split["images"]), split=name)
    tiles = "".join(tile(language, key, split) for key in METRICS if key in split)
    return (
        f'<section class="headline"><h2>{escape(resources.classifier_name)}</h2><p>{escape(line)} · {escape(images)}</p>'
        f'<ul class="tiles">{tiles}</ul></section>'
    )


def tile(language: str, key: str, split: dict[str, Any]) -> str:
    """One metric with its interval, if there is one."""
    figure, small = number(language, split[key], 3), escape(interval(language, split, key))
    return f"<li><span>{escape(say(language, key))}</span><b>{figure}</b><small>{small}</small></li>"


def interval(language: str, metrics: dict[str, Any], key: str) -> str:
    """The 95% interval of a metric; empty if there is none."""
    low_high = metrics.get("intervals", {}).get(key)
    if not low_high:
        return ""
    low, high = (number(language, end, 3) for end in low_high)
    return say(language, "model_interval", low=low, high=high)


def source_table(split: dict[str, Any], language: str) -> str:
    """The main metrics with their intervals by source of the images; empty for a single source."""
    sources = split["by_source"]
    if len(sources) < 2:
        return ""
    keys = [key for key in METRICS if all(key in metrics for metrics in sources.values())]
    head = [say(language, key) for key in ("model_source", "support", *keys)]
    rows = [
        (
            ("", source.replace("_", " ")),
            number(language, metrics["images"]),
            *((number(language, metrics[key], 3), interval(language, metrics, key)) for key in keys),
        )
        for source, metrics in sources.items()
    ]
    title = say(language, "model_by_source", split=say(language, f"model_{split['split']}"))
    return f"<h3>{escape(title)}</h3>{cards.table(head, rows)}"


def per_class_table(resources: Resources, split: dict[str, Any], language: str) -> str:
    """Precision, recall, F1, AUC and support of each class."""
    keys = ("precision", "recall", "f1", "auc")
    head = [say(language, "table_label"), *(say(language, key) for key in (*keys, "support"))]
    rows = [
        (
            (label, cards.name_of(resources.classifier, language, label)),
            *("" if row.get(key) is None else number(language, row[key], 3) for key in keys),
            str(row["support"]),
        )
        for label, row in split["per_class"].items()
    ]
    return cards.table(head, rows)
