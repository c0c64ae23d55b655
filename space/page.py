"""The page: header, tabs, and the page that says why there is nothing to show.

In: `Resources`, or the error that kept them from loading. Out: `gr.Blocks` and the arguments of its `launch`.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from hub_model.inference.images import MAX_BYTES
from space import api, tab_cell, tab_cells, tab_data, tab_field, tab_learn, tab_model
from space.resources import Resources
from space.texts import HEAD, LANGUAGES, NAMES

SESSIONS = 256  # visits that Gradio remembers, the oldest go first: each call of the API is one, of a fifth of a megabyte
SWEEP = (30, 120)  # seconds: every half minute, uploads older than two minutes are deleted


def build_page(resources: Resources) -> tuple[gr.Blocks, gr.I18n]:
    """The whole app over loaded resources."""
    i18n = gr.I18n(**LANGUAGES)
    with gr.Blocks(title="Bone-marrow cells", delete_cache=SWEEP, analytics_enabled=False) as page:
        header(i18n, resources.classifier.repo.name)
        with gr.Tabs(elem_id="tabs"):
            for name, module in (("cell", tab_cell), ("cells", tab_cells), ("field", tab_field)):
                with gr.Tab(i18n(f"tab_{name}"), id=name):
                    module.build(resources, i18n)
            for name, module in (
                ("model", tab_model),
                ("data", tab_data),
                ("learn", tab_learn),
                ("api", api),
            ):
                with gr.Tab(i18n(f"tab_{name}"), id=name) as tab:
                    module.build(resources, i18n, tab)
    return page, i18n


def build_error_page(reason: str) -> tuple[gr.Blocks, gr.I18n]:
    """What a visitor sees when the model repo is missing or breaks the contract."""
    i18n = gr.I18n(**LANGUAGES)
    with gr.Blocks(title="Bone-marrow cells", analytics_enabled=False) as page:
        header(i18n, "")
        gr.HTML(f'<h2 class="broken">{i18n("broken_title")}</h2>')
        gr.HTML(f'<p class="bad" role="alert" id="reason">{escape(reason)}</p>')
        gr.HTML(f'<p class="help">{i18n("broken_help")}</p>')
    return page, i18n


def header(i18n: gr.I18n, model: str) -> None:
    """Title, the one sentence on what this is for, and the language switch."""
    links = "".join(
        f'<a href="?lang={code}" lang="{code}" hreflang="{code}">{name}</a>' for code, name in NAMES.items()
    )
    with gr.Row(elem_id="masthead"):
        with gr.Column(scale=8, min_width=240):
            gr.HTML(f"<h1>{i18n('title')}</h1>")
            gr.HTML(f'<p class="lead">{i18n("lead")}</p>')
        with gr.Column(scale=3, min_width=200):
            gr.HTML(f'<nav class="languages" aria-label="Language / Bahasa">{links}</nav>')
            gr.HTML(f'<p class="model-name">{escape(model)}</p>')
    gr.HTML(f'<p class="disclaimer">{i18n("disclaimer")}</p>')


def launch_arguments(i18n: gr.I18n) -> dict[str, Any]:
    """Everything that `launch` needs to know; fonts are the system's, so that the page asks nobody else."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.violet,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        button_primary_background_fill="#5b3fb5",
        button_primary_background_fill_hover="#4a3199",
        button_primary_background_fill_dark="#7a5fd6",
        button_primary_background_fill_hover_dark="#8b72e0",
        button_secondary_background_fill="#ece6fb",
        button_secondary_background_fill_hover="#ddd3f7",
        button_secondary_background_fill_dark="#2e2648",
        button_secondary_background_fill_hover_dark="#3b315c",
        button_secondary_text_color="#4a3199",
        button_secondary_text_color_dark="#d9cdfb",
        checkbox_label_background_fill="#f1edfb",
        checkbox_label_background_fill_dark="#2a2340",
        block_radius="14px",
        block_border_color="#e4dff0",
        block_border_color_dark="#3a3350",
        block_background_fill_dark="#1c1829",
        body_background_fill_dark="#15121f",
        input_background_fill_dark="#231e33",
    )
    return {
        "i18n": i18n,
        "theme": theme,
        "css_paths": Path(__file__).parent / "style.css",
        "head": HEAD,
        "footer_links": ["api"],
        "max_file_size": MAX_BYTES,
        "state_session_capacity": SESSIONS,
        "ssr_mode": False,
        "quiet": True,
        "show_error": False,
        "enable_monitoring": False,
    }
