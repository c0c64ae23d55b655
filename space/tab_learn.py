"""Tab "Learn": a quiz over held-out cells. The visitor guesses, then sees the truth, the model and the
note."""

from __future__ import annotations

import random
from functools import cache
from html import escape
from typing import Any

import gradio as gr

from hub_model.inference.images import read_picture
from space import cards
from space.resources import Resources
from space.texts import language_of, note_on, say

FRESH = {"right": 0, "asked": 0, "model": 0, "cell": None, "answered": False}


def build(resources: Resources, i18n: gr.I18n, tab: gr.Tab) -> None:
    """Lay the tab out and wire it. The score lives as long as the visit."""
    if not resources.held_out:
        gr.HTML(f'<p class="hint">{i18n("learn_none")}</p>')
        return
    score = gr.State(dict(FRESH))
    shown = gr.Number(visible=False)  # the cell that the visitor looks at, which the answer is meant for
    answer = cache(lambda cell: resources.batcher.predict([read_picture(resources.held_out[cell].image)]))
    gr.HTML(f'<p class="help">{i18n("learn_intro")}</p>')
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=5, min_width=300):
            cell = gr.HTML(elem_id="learn-cell")
        with gr.Column(scale=6, min_width=300):
            guess = gr.Radio(
                list(resources.classifier.label_names), label=i18n("learn_guess"), elem_id="learn-guess"
            )
            with gr.Row():
                check = gr.Button(i18n("learn_answer"), variant="primary", elem_id="learn-check")
                following = gr.Button(i18n("learn_next"), elem_id="learn-next")
            verdict = gr.HTML(elem_id="learn-verdict")
            total = gr.HTML(elem_id="learn-score")

    def ask(state: dict[str, Any], request: gr.Request) -> list[Any]:
        language = language_of(request)
        state = {**state, "cell": random.randrange(len(resources.held_out)), "answered": False}
        sample = resources.held_out[state["cell"]]
        picture = (
            f'<img class="quiz" src="{cards.sample_uri(sample)}" alt="{escape(say(language, "learn_cell"))}">'
        )
        guesses = gr.update(choices=choices(resources, language), value=None)
        return [state, state["cell"], picture, guesses, ""]

    def open_tab(state: dict[str, Any], request: gr.Request) -> list[Any]:
        if state["cell"] is None:
            return ask(state, request)
        return [state, *[gr.update()] * 4]

    def judge(
        state: dict[str, Any], looked_at: float | None, chosen: str | None, request: gr.Request
    ) -> list[Any]:
        language = language_of(request)
        if state["cell"] is None:  # Gradio remembers so many visits only
            *asked, _ = ask(state, request)
            return [*asked, cards.message(say(language, "learn_lost")), score_line(state, language)]
        if looked_at != state["cell"]:
            return [state, *[gr.update()] * 5]
        if chosen is None:
            sentence = cards.message(say(language, "learn_choose"))
            return [state, *[gr.update()] * 3, sentence, score_line(state, language)]
        sample = resources.held_out[state["cell"]]
        predictions = answer(state["cell"])
        if not state["answered"]:
            state = {
                **state,
                "answered": True,
                "asked": state["asked"] + 1,
                "right": state["right"] + (chosen == sample.label),
                "model": state["model"] + (predictions.labels[0] == sample.label),
            }
        return [
            state,
            *[gr.update()] * 3,
            judgement(resources, sample.label, chosen, predictions, language),
            score_line(state, language),
        ]

    question = [score, shown, cell, guess, verdict]
    # one after the other: beside "next", a late verdict would show under the new cell
    options = {"api_visibility": "private", "concurrency_id": "quiz", "concurrency_limit": 1}
    tab.select(open_tab, score, question, **options)
    following.click(ask, score, question, show_progress="hidden", **options)
    check.click(judge, [score, shown, guess], [*question, total], show_progress="hidden", **options)


def choices(resources: Resources, language: str) -> list[tuple[str, str]]:
    """Class names in a language, with their codes."""
    return [
        (f"{cards.name_of(resources.classifier, language, label)} ({label})", label)
        for label in resources.classifier.label_names
    ]


def judgement(resources: Resources, truth: str, chosen: str, predictions: Any, language: str) -> str:
    """Right or not, the truth, the model's answer and the note."""
    classifier = resources.classifier
    label, probability = predictions.top(0, 1)[0]
    right = chosen == truth
    name = cards.name_of(classifier, language, truth)
    percent = f"{100 * probability:.0f}"
    model = say(language, "learn_model", label=cards.name_of(classifier, language, label), percent=percent)
    return (
        f'<section class="answer {"sure" if right else "between"}" aria-live="polite">'
        f"<h2>{escape(say(language, 'learn_right' if right else 'learn_wrong'))}</h2>"
        f"<p>{escape(say(language, 'learn_truth', label=f'{name} ({truth})'))} {escape(model)}</p>"
        f'<p class="note">{escape(note_on(language, truth, name).text)}</p></section>'
    )


def score_line(state: dict[str, Any], language: str) -> str:
    """The score of this visit."""
    return f'<p class="score">{escape(say(language, "learn_score", **{k: state[k] for k in ("right", "asked", "model")}))}</p>'
