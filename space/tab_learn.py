"""Tab "Learn": a quiz over held-out cells. The visitor guesses, then sees the truth, the model and the note."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache
from html import escape
from typing import Any

import gradio as gr

from hub_model.inference.images import read_picture
from space import cards
from space.resources import Resources
from space.texts import Words, say
from space.visits import Visit, Visits


@dataclass
class Quiz:
    """`waiting` are the cells still to come, none twice; `scores[label]` counts asked, right and right by the model."""

    waiting: list[int]
    cell: int
    chosen: str | None = None
    scores: dict[str, list[int]] = field(default_factory=dict)


def build(resources: Resources, words: Words, visits: Visits, tab: gr.Tab) -> tuple | None:
    """Lay the tab out and wire it. The score lives as long as the visit."""
    cells = resources.askable
    if not cells:
        words.html('<p class="hint">{}</p>', "learn_none")
        return None
    looked_at = gr.Number(visible=False)  # the cell that the visitor sees, which the answer is meant for
    answer = cache(lambda cell: resources.batcher.predict([read_picture(cells[cell].image)]))
    words.html('<p class="help">{}</p>', "learn_intro")
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=5, min_width=300):
            picture = gr.HTML(elem_id="learn-cell")
        with gr.Column(scale=6, min_width=300):
            guess = words.put(
                gr.Radio, "learn_guess", choices=list(resources.classifier.label_names), elem_id="learn-guess"
            )
            with gr.Row():
                check = words.put(
                    gr.Button, "learn_answer", "value", variant="primary", elem_id="learn-check"
                )
                following = words.put(gr.Button, "learn_next", "value", elem_id="learn-next")
            verdict = gr.HTML(elem_id="learn-verdict")
            total = gr.HTML(elem_id="learn-score")

    def quiz_of(visit: Visit) -> Quiz:
        if "learn" not in visit.results:
            order = random.sample(range(len(cells)), len(cells))
            visit.results["learn"] = Quiz(order[1:], order[0])
        return visit.results["learn"]

    def question(visit: Visit) -> list[Any]:
        quiz, language = quiz_of(visit), visit.language
        image = cards.sample_uri(cells[quiz.cell])
        return [
            quiz.cell,
            f'<img class="quiz" src="{image}" alt="{escape(say(language, "learn_cell"))}">',
            gr.update(choices=choices(resources, language), value=quiz.chosen),
            judgement(resources, cells[quiz.cell].label, quiz.chosen, answer(quiz.cell), language)
            if quiz.chosen
            else "",
            score_table(resources, quiz, language),
        ]

    def ask(request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        quiz = quiz_of(visit)
        if not quiz.waiting:
            quiz.waiting = random.sample(range(len(cells)), len(cells))
        quiz.cell, quiz.chosen = quiz.waiting.pop(), None
        return question(visit)

    def judge(cell: float | None, chosen: str | None, request: gr.Request) -> list[Any]:
        visit = visits.of(request)
        if "learn" not in visit.results:  # this process remembers so many visits only
            *asked, _, score = question(visit)
            return [*asked, cards.message(say(visit.language, "learn_lost")), score]
        quiz = quiz_of(visit)
        if cell != quiz.cell:
            return [gr.skip()] * 5
        if chosen is None:
            return [*[gr.skip()] * 3, cards.message(say(visit.language, "learn_choose")), gr.skip()]
        if quiz.chosen is None:
            truth, quiz.chosen = cells[quiz.cell].label, chosen
            score = quiz.scores.setdefault(truth, [0, 0, 0])
            for i, point in enumerate((True, chosen == truth, answer(quiz.cell).labels[0] == truth)):
                score[i] += point
        return [*[gr.skip()] * 3, *question(visit)[3:]]

    outputs = [looked_at, picture, guess, verdict, total]
    # one after the other: beside "next", a late verdict would show under the new cell
    options = {
        "api_visibility": "private",
        "concurrency_id": "quiz",
        "concurrency_limit": 1,
        "show_progress": "hidden",
    }

    def opened(request: gr.Request) -> list[Any]:
        return question(visits.of(request))

    tab.select(opened, None, outputs, **options)
    following.click(ask, None, outputs, **options)
    check.click(judge, [looked_at, guess], outputs, **options)
    return outputs, lambda visit: question(visit) if "learn" in visit.results else [gr.skip()] * 5


def choices(resources: Resources, language: str) -> list[tuple[str, str]]:
    """Class names in a language, with their codes."""
    return [
        (f"{cards.name_of(resources.classifier, language, label)} ({label})", label)
        for label in resources.classifier.label_names
    ]


def judgement(resources: Resources, truth: str, chosen: str, predictions: Any, language: str) -> str:
    """Right or not, the truth, the model's answer, and what to look for in the class and in the one that was chosen."""
    classifier = resources.classifier
    label, probability = predictions.top(0, 1)[0]
    right = chosen == truth
    name = cards.name_of(classifier, language, truth)
    percent = f"{100 * probability:.0f}"
    model = say(language, "learn_model", label=cards.name_of(classifier, language, label), percent=percent)
    return (
        f'<section class="answer {"sure" if right else "between"}" aria-live="polite">'
        f"<h2>{escape(say(language, 'learn_right' if right else 'learn_wrong'))}</h2>"
        f"<p>{escape(say(language, 'truth', label=f'{name} ({truth})'))} {escape(model)}</p>"
        f"{cards.notes(classifier, language, dict.fromkeys((truth, chosen)))}</section>"
    )


def score_table(resources: Resources, quiz: Quiz, language: str) -> str:
    """The score of this visit, in all and by class."""
    if not quiz.scores:
        return ""
    asked, right, model = (sum(column) for column in zip(*quiz.scores.values(), strict=True))
    line = escape(say(language, "learn_score", right=right, asked=asked, model=model))
    head = [say(language, key) for key in ("table_label", "learn_asked", "learn_you", "learn_model_column")]
    rows = [
        ((label, cards.name_of(resources.classifier, language, label)), *map(str, quiz.scores[label]))
        for label in resources.classifier.label_names
        if label in quiz.scores
    ]
    return f'<p class="score">{line}</p>{cards.table(head, rows)}'
