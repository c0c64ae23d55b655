"""Tab "The data": what the dataset repo holds, as bar chart, pie chart and examples."""

from __future__ import annotations

import random
from html import escape
from typing import Any

import gradio as gr

from space import cards, charts
from space.dataset_repo import DatasetRepo
from space.resources import Resources, public_name
from space.texts import Words, number, say
from space.visits import Visits

SHOWN = 12


def build(resources: Resources, words: Words, visits: Visits, tab: gr.Tab) -> tuple:
    """Lay the tab out; it is drawn in the visitor's language when first opened."""
    head = gr.HTML(elem_id="data-head")
    dataset = resources.dataset
    if dataset is None:
        return visits.drawn_when_opened(
            "data",
            tab,
            [head],
            lambda language: [
                cards.message(say(language, "data_missing", reason=resources.dataset_error), "bad")
            ],
        )
    with gr.Row():
        bars = cards.plot_panel(words, "data_bar")
        sources = {name.replace("_", " "): images for name, images in dataset.sources.items()}
        by_source = len(sources) > 1
        pie = cards.plot_panel(words, "data_sources" if by_source else "data_pie")
    words.html("<h3>{}</h3>", "data_browse")
    with gr.Row(elem_classes="choose"):
        choice = words.put(
            gr.Dropdown,
            "data_class",
            choices=list(dataset.label_names),
            value=dataset.label_names[0],
            elem_id="data-class",
        )
        more = words.put(gr.Button, "data_more", "value", elem_id="data-more")
    examples = gr.HTML(elem_id="data-examples")

    def draw(language: str) -> list[Any]:
        return [
            headline(resources, language),
            charts.class_bars(dataset.counts, dataset.label_names, language),
            charts.share_pie(sources if by_source else class_totals(dataset), language),
            gr.update(choices=named(resources, language)),
        ]

    def show(label: str) -> str:
        samples = [sample for sample in resources.held_out if sample.label == label]
        return cards.sample_grid(random.sample(samples, min(SHOWN, len(samples))))

    gr.on([choice.input, more.click, tab.select], show, choice, examples, api_visibility="private")
    return visits.drawn_when_opened("data", tab, [head, bars, pie, choice], draw)


def class_totals(dataset: DatasetRepo) -> dict[str, int]:
    """Images of each class over all splits."""
    totals = (sum(values) for values in zip(*dataset.counts.values(), strict=True))
    return dict(zip(dataset.label_names, totals, strict=True))


def headline(resources: Resources, language: str) -> str:
    """The dataset in a line, and whether its classes are those of the model."""
    dataset = resources.dataset
    total = sum(sum(values) for values in dataset.counts.values())
    line = say(language, "data_summary", images=number(language, total), classes=len(dataset.label_names))
    others = set(dataset.label_names) ^ set(resources.classifier.label_names)
    told = cards.message(say(language, "data_other_classes", classes=", ".join(sorted(others))), "warn")
    return (
        f'<section class="headline"><h2>{escape(public_name(dataset.name))}</h2><p>{escape(line)}</p>'
        f"{told if others else ''}</section>"
    )


def named(resources: Resources, language: str) -> list[tuple[str, str]]:
    """The classes of the dataset with their names."""
    return [
        (f"{label} · {cards.name_of(resources.classifier, language, label)}", label)
        for label in resources.dataset.label_names
    ]
