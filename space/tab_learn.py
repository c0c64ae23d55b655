"""Tab "Learn": a quiz on held-out cells. The visitor guesses, then sees the expert label, the model's answer and a note."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache
from html import escape
from typing import Any

import gradio as gr

from hub_model.inference.classifier import Classifier, Predictions
from hub_model.inference.images import read_image
from space import cards
from space.desk_view import QUIET
from space.resources import Resources
from space.texts import Words, say
from space.visits import Visit, Visits


@dataclass
class Quiz:
    """`remaining` are the cells not yet asked; `scores[label]` counts asked, right, and right by the model."""

    remaining: list[int]
    cell: int
    chosen: str | None = None
    scores: dict[str, list[int]] = field(default_factory=dict)


def build(resources: Resources, words: Words, visits: Visits, tab: gr.Tab) -> tuple | None:
    """Lay out the tab and register its events. The score is kept until the visit ends."""
    cells, classifier = resources.quiz_samples, resources.classifier
    if not cells:
        words.html('<p class="hint">{}</p>', "learn_none")
        return None
    current = gr.Number(visible=False)  # the cell on the page, which an answer refers to
    answer = cache(lambda cell: resources.batcher.predict([read_image(cells[cell].image)]))
    words.html('<p class="help">{}</p>', "learn_intro")
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=5, min_width=300):
            picture = gr.HTML(elem_id="learn-cell")
        with gr.Column(scale=6, min_width=300):
            guess = words.put(
                gr.Radio, "learn_guess", choices=list(classifier.label_names), elem_id="learn-guess"
            )
            with gr.Row():
                check = words.put(
                    gr.Button, "learn_answer", "value", variant="primary", elem_id="learn-check"
                )
                next_button = words.put(gr.Button, "learn_next", "value", elem_id="learn-next")
            verdict = gr.HTML(elem_id="learn-verdict")
            total = gr.HTML(elem_id="learn-score")

    def quiz_of(visit: Visit) -> Quiz:
        if "learn" not in visit.results:
            order = random.sample(range(len(cells)), len(cells))
            visit.results["learn"] = Quiz(order[1:], order[0])
        return visit.results["learn"]

    def question(visit: Visit) -> list[Any]:
        quiz, language = quiz_of(visit), visit.language
        sample, feedback = cells[quiz.cell], ""
        if quiz.chosen:
            feedback = feedback_card(classifier, sample.label, quiz.chosen, answer(quiz.cell), language)
        alt = escape(say(language, "learn_cell"))
        choices = [(f"{cards.name_of(classifier, language, x)} ({x})", x) for x in classifier.label_names]
        return [
            quiz.cell,
            f'<img class="quiz" src="{cards.sample_uri(sample)}" alt="{alt}">',
            gr.update(choices=choices, value=quiz.chosen),
            feedback,
            score_table(classifier, quiz, language),
        ]

    def ask(request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        quiz = quiz_of(visit)
        if not quiz.remaining:
            quiz.remaining = random.sample(range(len(cells)), len(cells))
        quiz.cell, quiz.chosen = quiz.remaining.pop(), None
        return question(visit)

    def judge(cell: float | None, chosen: str | None, request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        if "learn" not in visit.results:  # the visit has expired
            *new, _, score = question(visit)
            return [*new, cards.message(say(visit.language, "learn_lost")), score]
        quiz = quiz_of(visit)
        if cell != quiz.cell:
            return [gr.skip()] * 5
        if chosen is None:
            return [*[gr.skip()] * 3, cards.message(say(visit.language, "learn_choose")), gr.skip()]
        if quiz.chosen is None:
            truth, quiz.chosen = cells[quiz.cell].label, chosen
            points = (True, chosen == truth, answer(quiz.cell).labels[0] == truth)
            score = quiz.scores.get(truth, [0, 0, 0])
            quiz.scores[truth] = [n + point for n, point in zip(score, points, strict=True)]
        return [*[gr.skip()] * 3, *question(visit)[3:]]

    outputs = [current, picture, guess, verdict, total]
    # one at a time: a late verdict would appear under the next cell
    options = {**QUIET, "concurrency_id": "quiz", "concurrency_limit": 1}

    def opened(request: gr.Request) -> list[Any]:
        return question(visits.of(request))

    tab.select(opened, None, outputs, **options)
    next_button.click(ask, None, outputs, **options)
    check.click(judge, [current, guess], outputs, **options)
    return outputs, lambda visit: question(visit) if "learn" in visit.results else [gr.skip()] * 5


def feedback_card(
    classifier: Classifier, truth: str, chosen: str, predictions: Predictions, language: str
) -> str:
    """Right or wrong, the expert label, the model's answer, and notes on the true and the chosen class."""
    label, probability = predictions.top(0, 1)[0]
    kind, title = ("sure", "learn_right") if chosen == truth else ("between", "learn_wrong")
    expert = say(language, "truth", label=f"{cards.name_of(classifier, language, truth)} ({truth})")
    percent = f"{100 * probability:.0f}"
    model = say(language, "learn_model", label=cards.name_of(classifier, language, label), percent=percent)
    return (
        f'<section class="answer {kind}" aria-live="polite">'
        f"<h2>{escape(say(language, title))}</h2>"
        f"<p>{escape(expert)} {escape(model)}</p>"
        f"{cards.notes(classifier, language, dict.fromkeys((truth, chosen)))}</section>"
    )


def score_table(classifier: Classifier, quiz: Quiz, language: str) -> str:
    """The score of this visit, in total and by class."""
    if not quiz.scores:
        return ""
    asked, right, model = (sum(column) for column in zip(*quiz.scores.values(), strict=True))
    line = escape(say(language, "learn_score", right=right, asked=asked, model=model))
    head = [say(language, key) for key in ("table_label", "learn_asked", "learn_you", "learn_model_column")]
    rows = [
        ((label, cards.name_of(classifier, language, label)), *map(str, quiz.scores[label]))
        for label in classifier.label_names
        if label in quiz.scores
    ]
    return f'<p class="score">{line}</p>{cards.table(head, rows)}'
