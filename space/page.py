"""The page: header, tabs, footer, and the page that says why there is nothing to show.

In: `Resources`, or the error that kept them from loading. Out: `gr.Blocks` and the arguments of its `launch`.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from hub_model.inference.images import MAX_BYTES
from space import cards, tab_api, tab_cell, tab_cells, tab_data, tab_field, tab_learn, tab_model
from space.resources import Resources
from space.texts import LANGUAGES, NAMES, NOTES, Words, language_of, say
from space.visits import Visit, Visits

SESSIONS = 256  # that Gradio remembers, the oldest go first: each call of the API is one
TABS = {
    "cell": tab_cell, "cells": tab_cells, "field": tab_field,
    "learn": tab_learn, "model": tab_model, "data": tab_data, "api": tab_api,
}  # fmt: skip
SET_LANGUAGE = "language => { document.documentElement.lang = language; return language; }"


class Drawn(NamedTuple):
    """What a tab draws for a visit: on a reload, and in another language."""

    outputs: list[Any]
    draw: Callable[[Visit], list[Any]]


def build_page(resources: Resources, visits: Visits) -> tuple[gr.Blocks, gr.I18n]:
    """The whole app over loaded resources."""
    words = Words()
    title = say("en", page_title(resources))
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        token = gr.BrowserState("", storage_key="space-visit")
        language = header(words, page_title(resources), resources.classifier_name)
        drawn: list[Drawn] = []
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):
            for name, module in TABS.items():
                with words.put(gr.Tab, f"tab_{name}", id=name, elem_id=f"tab-{name}") as tab:
                    drawn += [Drawn(*part) for part in [module.build(resources, words, visits, tab)] if part]
        footer = words.computed(gr.HTML(), lambda code: {"value": cards.footer(resources, code)})
        footer.value = cards.footer(resources, "en")
    outputs = [*words.components, *(output for part in drawn for output in part.outputs)]

    def rewrite(visit: Visit, arriving: bool = False) -> list[Any]:
        static = words.updates(visit.language)
        if arriving and not visit.results:  # nothing to bring back, nor to write over what is begun meanwhile
            return [*static, *[gr.skip()] * (len(outputs) - len(static))]
        return [*static, *(value for part in drawn for value in part.draw(visit))]

    def arrive(remembered: str, request: gr.Request) -> list[Any]:
        asked = request.query_params.get("lang") if request.query_params else None
        visit = visits.open(remembered, request.session_hash, language_of(request))
        if asked:
            visit.language = language_of(request)
        return [visit.token, gr.update(value=visit.language), *rewrite(visit, arriving=True)]

    def switch(code: str, request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        visit.language = code if code in LANGUAGES else "en"
        return rewrite(visit)

    def leave(request: gr.Request) -> None:
        visits.leave(request)

    with page:
        page.load(
            arrive, token, [token, language, *outputs], api_visibility="private", show_progress="hidden"
        ).then(None, language, None, js=SET_LANGUAGE)
        language.input(
            switch, language, outputs, js=SET_LANGUAGE, api_visibility="private", show_progress="hidden"
        )
        page.unload(leave)
    return page, words.i18n


def build_error_page(reason: str) -> tuple[gr.Blocks, gr.I18n]:
    """What a visitor sees while the model repo is missing, unreachable or broken; it asks again by itself."""
    words = Words()
    with gr.Blocks(title=say("en", "broken_title"), analytics_enabled=False) as page:
        words.html('<h2 class="broken">{}</h2>', "broken_title")
        gr.HTML(f'<p class="bad" role="alert" id="reason">{escape(reason)}</p>')
        words.html('<p class="help">{}</p>', "broken_help")
    return page, words.i18n


def page_title(resources: Resources) -> str:
    """The key of the title: of this project's cells, or of cells of any kind."""
    return "title" if set(resources.classifier.label_names) <= NOTES["en"].keys() else "title_other"


def header(words: Words, title: str, model: str) -> gr.Radio:
    """Title, the one sentence on what this is for, and the language switch, which is returned."""
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


async def broken_off(request: Request, error: ClientDisconnect) -> Response:
    """To an upload whose visitor has left; without it, Gradio 6.31 writes a traceback into the Space's log."""
    return Response(status_code=400)


AGAIN = "<script>setTimeout(() => location.reload(), 15000)</script>"  # of the error page


def launch_arguments(i18n: gr.I18n, head: str = "") -> dict[str, Any]:
    """Everything that `launch` needs to know; fonts are the system's, so that the page asks nobody else."""
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
        "footer_links": [],  # the tab says it, in the visitor's language
        "run_history": False,  # which would keep what visitors send in their browser
        "max_file_size": MAX_BYTES,
        "app_kwargs": {"exception_handlers": {ClientDisconnect: broken_off}},
        "state_session_capacity": SESSIONS,
        "ssr_mode": False,
        "quiet": True,
        "show_error": False,
        "enable_monitoring": False,
        "mcp_server": find_spec("mcp") is not None,
    }
