"""Tab "The data": class counts of the dataset repo as bar and pie chart, and examples."""

from __future__ import annotations

import random
from html import escape
from typing import Any

import gradio as gr

from space import cards, charts
from space.resources import Resources, public_name
from space.texts import Words, number, say
from space.visits import Visits

EXAMPLES = 12  # shown at once


def build(resources: Resources, words: Words, visits: Visits, tab: gr.Tab) -> tuple:
    """Lay out the tab; it is drawn in the visitor's language when first opened."""
    head = gr.HTML(elem_id="data-head")
    dataset = resources.dataset
    if dataset is None:

        def missing(language: str) -> list[str]:
            return [cards.message(say(language, "data_missing", reason=resources.dataset_error), "bad")]

        return visits.draw_on_open("data", tab, [head], missing)
    with gr.Row():
        bars = cards.plot_panel(words, "data_bar")
        sources = {name.replace("_", " "): images for name, images in dataset.sources.items()}
        by_source = len(sources) > 1
        totals = map(sum, zip(*dataset.counts.values(), strict=True))
        shares = sources if by_source else dict(zip(dataset.label_names, totals, strict=True))
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
        classifier = resources.classifier
        choices = [(f"{x} · {cards.name_of(classifier, language, x)}", x) for x in dataset.label_names]
        return [
            headline(resources, language),
            charts.class_bars(dataset.counts, dataset.label_names, language),
            charts.share_pie(shares, language),
            gr.update(choices=choices),
        ]

    def show(label: str) -> str:
        samples = [sample for sample in resources.held_out if sample.label == label]
        return cards.sample_grid(random.sample(samples, min(EXAMPLES, len(samples))))

    gr.on([choice.input, more.click, tab.select], show, choice, examples, api_visibility="private")
    return visits.draw_on_open("data", tab, [head, bars, pie, choice], draw)


def headline(resources: Resources, language: str) -> str:
    """Name and size of the dataset, with a warning if its classes differ from the model's."""
    dataset = resources.dataset
    total = sum(sum(values) for values in dataset.counts.values())
    line = say(language, "data_summary", images=number(language, total), classes=len(dataset.label_names))
    others, warning = set(dataset.label_names) ^ set(resources.classifier.label_names), ""
    if others:
        warning = cards.message(
            say(language, "data_other_classes", classes=", ".join(sorted(others))), "warn"
        )
    name = escape(public_name(dataset.name))
    return f'<section class="headline"><h2>{name}</h2><p>{escape(line)}</p>{warning}</section>'
