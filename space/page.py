"""The page: header, tabs and footer; and the error page for a model that cannot be loaded.

In: `Resources`, or the error message. Out: `gr.Blocks` and the arguments of its `launch`.
"""

from __future__ import annotations

from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from hub_model.inference.images import MAX_BYTES
from space import cards, tab_api, tab_cell, tab_cells, tab_data, tab_field, tab_learn, tab_model
from space.resources import Resources
from space.texts import LANGUAGES, NAMES, NOTES, Words, language_of, say
from space.visits import Visit, Visits

SESSIONS = 256  # kept by Gradio, the oldest are dropped first: each API call is a session
TABS = {
    "cell": tab_cell, "cells": tab_cells, "field": tab_field,
    "learn": tab_learn, "model": tab_model, "data": tab_data, "api": tab_api,
}  # fmt: skip
RELOAD = "<script>setTimeout(() => location.reload(), 15000)</script>"  # of the error page
SET_LANGUAGE = "language => { document.documentElement.lang = language; return language; }"


def build_page(resources: Resources, visits: Visits) -> tuple[gr.Blocks, gr.I18n]:
    """The complete app over loaded resources."""
    words = Words()
    known = NOTES["en"].keys()  # the classes of this project's model
    title = "title" if known >= set(resources.classifier.label_names) else "title_other"
    with gr.Blocks(title=say("en", title), analytics_enabled=False) as page:
        token = gr.BrowserState("", storage_key="space-visit")
        language = header(words, title, resources.classifier_name)
        built = []  # of each tab, its outputs and the function that draws them for a visit
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):
            for name, module in TABS.items():
                with words.put(gr.Tab, f"tab_{name}", id=name, elem_id=f"tab-{name}") as tab:
                    built.append(module.build(resources, words, visits, tab))
        words.computed(
            gr.HTML(cards.footer(resources, "en")), lambda code: {"value": cards.footer(resources, code)}
        )
    tabs = [tab for tab in built if tab]
    outputs = [*words.components, *(output for tab_outputs, _ in tabs for output in tab_outputs)]

    def redraw(visit: Visit) -> list[Any]:
        drawn = (value for _, draw in tabs for value in draw(visit))
        return [*words.updates(visit.language), *drawn]

    def arrive(remembered: str, request: gr.Request) -> list[Any]:
        visit = visits.open(remembered, request.session_hash, language_of(request))
        if request.query_params and request.query_params.get("lang"):
            visit.language = language_of(request)
        values = redraw(visit) if visit.results else words.updates(visit.language)
        unchanged = [gr.skip()] * (len(outputs) - len(values))  # a new visitor may already be using the page
        return [visit.token, gr.update(value=visit.language), *values, *unchanged]

    def switch(code: str, request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        visit.language = code if code in LANGUAGES else "en"
        return redraw(visit)

    with page:
        page.load(
            arrive, token, [token, language, *outputs], api_visibility="private", show_progress="hidden"
        ).then(None, language, None, js=SET_LANGUAGE)
        language.input(
            switch, language, outputs, js=SET_LANGUAGE, api_visibility="private", show_progress="hidden"
        )
        page.unload(visits.leave)
    return page, words.i18n


def build_error_page(reason: str) -> tuple[gr.Blocks, gr.I18n]:
    """What visitors see while the model repo is missing, unreachable or broken. With `RELOAD` in its head it reloads itself."""
    words = Words()
    with gr.Blocks(title=say("en", "broken_title"), analytics_enabled=False) as page:
        words.html('<h2 class="broken">{}</h2>', "broken_title")
        gr.HTML(f'<p class="bad" role="alert" id="reason">{escape(reason)}</p>')
        words.html('<p class="help">{}</p>', "broken_help")
    return page, words.i18n


def header(words: Words, title: str, model: str) -> gr.Radio:
    """Title, a sentence on what this is for, and the language switch, which is returned."""
    with gr.Row(elem_id="masthead"):
        with gr.Column(scale=8, min_width=240):
            words.html("<h1>{}</h1>", title)
            words.html('<p class="lead">{}</p>', "lead")
        with gr.Column(scale=3, min_width=200):
            language = gr.Radio(
                [(name, code) for code, name in NAMES.items()],
                value="en",
                show_label=False,
                label="Language / Bahasa",
                container=False,
                elem_id="language",
            )
            gr.HTML(f'<p class="model-name">{escape(model)}</p>')
    words.html('<p class="disclaimer">{}</p>', "disclaimer")
    return language


async def ignore_disconnect(request: Request, error: ClientDisconnect) -> Response:
    """Answer a cancelled upload, for which Gradio 6.31 would log a traceback."""
    return Response(status_code=400)


def launch_arguments(i18n: gr.I18n, head: str = "") -> dict[str, Any]:
    """The arguments of `launch`. System fonts, so that the page loads nothing from other servers."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.violet,
        neutral_hue=gr.themes.colors.zinc,
        radius_size=gr.themes.sizes.radius_md,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        button_primary_background_fill="#5b3fb5",
        button_primary_background_fill_hover="#4a3199",
        button_primary_background_fill_dark="#6a4fc9",
        button_primary_background_fill_hover_dark="#5b3fb5",
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
        "head": head,
        "theme": theme,
        "css_paths": Path(__file__).parent / "style.css",
        "footer_links": [],  # the API tab replaces them, in the visitor's language
        "run_history": False,  # it would store visitors' inputs in their browser
        "max_file_size": MAX_BYTES,
        "app_kwargs": {"exception_handlers": {ClientDisconnect: ignore_disconnect}},
        "state_session_capacity": SESSIONS,
        "ssr_mode": False,
        "quiet": True,
        "show_error": False,
        "enable_monitoring": False,
        "mcp_server": find_spec("mcp") is not None,
    }
