"""Tab "The data": what the dataset repo holds, as bar chart, pie chart and examples."""

from __future__ import annotations

import random
from html import escape
from typing import Any

import gradio as gr

from space import cards, charts
from space.resources import Resources
from space.texts import language_of, say

SHOWN = 12


def build(resources: Resources, i18n: gr.I18n, tab: gr.Tab) -> None:
    """Lay the tab out; it is drawn in the visitor's language when first opened."""
    head = gr.HTML(elem_id="data-head")
    dataset = resources.dataset
    if dataset is None:
        tab.select(
            lambda request: cards.message(
                say(language_of(request), "data_missing", reason=resources.dataset_error), "bad"
            ),
            None,
            head,
            api_visibility="private",
        )
        return
    with gr.Row():
        bars = cards.plot_panel(i18n, "data_bar")
        pie = cards.plot_panel(i18n, "data_pie")
    splits = cards.plot_panel(i18n, "data_splits")
    gr.HTML(f"<h3>{i18n('data_browse')}</h3>")
    with gr.Row(equal_height=True):
        choice = gr.Dropdown(
            list(dataset.label_names),
            value=dataset.label_names[0],
            label=i18n("data_class"),
            elem_id="data-class",
        )
        more = gr.Button(i18n("data_more"), elem_id="data-more")
    examples = gr.HTML(elem_id="data-examples")

    def draw(chosen: str, request: gr.Request) -> list[Any]:
        language = language_of(request)
        total = sum(sum(values) for values in dataset.counts.values())
        line = say(language, "data_summary", images=total, classes=len(dataset.label_names))
        names = [
            (f"{label} · {cards.name_of(resources.classifier, language, label)}", label)
            for label in dataset.label_names
        ]
        return [
            f'<section class="headline"><h2>{escape(dataset.name)}</h2><p>{escape(line)}</p></section>',
            charts.class_bars(dataset.counts, dataset.label_names, language),
            charts.class_pie(dataset.counts, dataset.label_names),
            charts.split_bars(dataset.counts, language),
            gr.update(choices=names),
            show(chosen),
        ]

    def show(label: str) -> str:
        samples = [sample for sample in resources.held_out if sample.label == label]
        return cards.sample_grid(random.sample(samples, min(SHOWN, len(samples))))

    tab.select(draw, choice, [head, bars, pie, splits, choice, examples], api_visibility="private")
    gr.on([choice.input, more.click], show, choice, examples, api_visibility="private")
