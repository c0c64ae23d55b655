"""A plot under a heading of its own: Gradio's label would lie on the plot."""

from __future__ import annotations

import gradio as gr


def titled_plot(i18n: gr.I18n, key: str, min_width: int = 320) -> gr.Plot:
    """Heading and plot in one panel; `elem_id` is the key with dashes."""
    with gr.Column(elem_classes="plot", min_width=min_width):
        gr.HTML(f'<h3 class="plot-title">{i18n(key)}</h3>')
        return gr.Plot(show_label=False, label=i18n(key), elem_id=key.replace("_", "-"))
