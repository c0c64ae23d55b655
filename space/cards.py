"""Answers as HTML: verdict, probabilities, heat map, similar cells, counts.

In: predictions and a language. Out: HTML strings in which every word of a visitor, file or repo is escaped.
Pictures travel inside the page as data URIs, so no file is written for them. Styles are in `style.css`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import gradio as gr
from PIL import Image

from hub_model.inference.calibration import VERDICT_LEVEL, Verdict
from hub_model.inference.classifier import Classifier, Predictions
from hub_model.inference.counts import Count
from space.dataset_repo import Sample
from space.texts import note_on, say


def name_of(classifier: Classifier, language: str, label: str) -> str:
    """Full name of a class in a language."""
    return note_on(language, label, classifier.label_descriptions.get(label, label)).name


def verdict_text(classifier: Classifier, language: str, verdict: Verdict) -> str:
    """The plain verdict in words, with full names."""
    names = [name_of(classifier, language, label) for label in verdict.labels]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {say(language, 'and')} {names[-1]}"
    return say(language, f"verdict_{verdict.kind}", first=names[0], names=listed)


def answer_card(classifier: Classifier, predictions: Predictions, row: int, language: str) -> str:
    """Verdict, what it means, the three likeliest classes and the note on the first."""
    verdict = predictions.verdicts[row]
    top = predictions.top(row)
    level = round(100 * float(VERDICT_LEVEL))
    note = note_on(language, top[0][0], classifier.label_descriptions[top[0][0]])
    about = f'<p class="note"><b>{escape(note.name)}</b> {escape(note.text)}</p>' if note.text else ""
    if verdict.kind == "unknown":
        about = ""
    return (
        f'<section class="answer {verdict.kind}" aria-live="polite">'
        f"<h2>{escape(verdict_text(classifier, language, verdict))}</h2>"
        f"<p>{escape(say(language, f'explain_{verdict.kind}', level=level))}</p>"
        f"{probability_bars(classifier, top, language)}{about}</section>"
    )


def probability_bars(classifier: Classifier, top: Sequence[tuple[str, float]], language: str) -> str:
    """One labelled bar a class."""
    rows = "".join(
        f'<li><span class="code">{escape(label)}</span>'
        f'<span class="name">{escape(name_of(classifier, language, label))}</span>'
        f'<span class="percent">{percent(p)}</span>'
        f'<span class="bar" aria-hidden="true"><i style="width:{100 * p:.1f}%"></i></span></li>'
        for label, p in top
    )
    return f'<ol class="bars">{rows}</ol>'


def percent(share: float) -> str:
    """A share as a percentage that never claims certainty."""
    value = 100 * share
    if value > 99.5:
        return "&gt;99%"
    return "&lt;1%" if value < 0.5 else f"{value:.0f}%"


def message(text: str, kind: str = "hint") -> str:
    """A sentence on its own."""
    return f'<p class="{kind}" role="status">{escape(text)}</p>'


def heat_card(language: str, seen: Image.Image, heated: Image.Image | None, name: str) -> str:
    """What the model saw, plain and with the heat map."""
    title = f"<h3>{escape(say(language, 'looked'))}</h3>"
    if heated is None:
        return f'<section class="looked">{title}{message(say(language, "looked_none"))}</section>'
    pairs = [(seen, say(language, "looked_seen")), (heated, say(language, "looked_heat", label=name))]
    figures = "".join(
        f'<figure><img src="{data_uri(picture)}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for picture, caption in pairs
    )
    return f'<section class="looked">{title}<div class="pair">{figures}</div></section>'


def similar_card(classifier: Classifier, language: str, neighbours: Sequence[tuple[Sample, float]]) -> str:
    """Labelled training cells beside one another, nearest first."""
    named = [(sample, value, name_of(classifier, language, sample.label)) for sample, value in neighbours]
    figures = "".join(
        f'<figure><img src="{sample_uri(sample)}" alt="{escape(name)}">'
        f"<figcaption><b>{escape(sample.label)}</b> {escape(name)}"
        f"<small>{escape(say(language, 'similarity'))} {similarity:.2f}</small></figcaption></figure>"
        for sample, similarity, name in named
    )
    title = escape(say(language, "similar"))
    return f'<section class="similar"><h3>{title}</h3><div class="strip">{figures}</div></section>'


def sample_grid(samples: Sequence[Sample]) -> str:
    """A plain grid of labelled images."""
    figures = "".join(
        f'<figure><img src="{sample_uri(sample)}" alt="{escape(sample.label)}, {escape(sample.file_name)}" '
        f'loading="lazy"><figcaption><small>{escape(sample.file_name)}</small></figcaption></figure>'
        for sample in samples
    )
    return f'<div class="grid">{figures}</div>'


def count_table(classifier: Classifier, language: str, counts: Sequence[Count]) -> str:
    """The differential count as a table, flat and corrected, with intervals."""
    keys = ("table_label", "cells", "count_flat", "interval", "count_corrected", "interval")
    rows = [
        (
            (c.label, name_of(classifier, language, c.label)),
            str(c.cells),
            f"{100 * c.share:.1f}%",
            interval(c.share_interval),
            f"{100 * c.corrected:.1f}%",
            interval(c.corrected_interval),
        )
        for c in counts
    ]
    return table([say(language, key) for key in keys], rows)


def table(head: Sequence[str], rows: Iterable[tuple[tuple[str, str], *tuple[str, ...]]]) -> str:
    """A table of numbers; each row begins with the code and the name of its class."""
    header = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join(
        f'<tr><th scope="row"><b>{escape(label)}</b> {escape(name)}</th>'
        f"{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for (label, name), *cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def interval(pair: tuple[float, float]) -> str:
    return f"{100 * pair[0]:.1f}–{100 * pair[1]:.1f}"


def plot_panel(i18n: gr.I18n, key: str, min_width: int = 320) -> gr.Plot:
    """Heading and plot in one panel (Gradio's label would lie on the plot); `elem_id` is the key with dashes."""
    with gr.Column(elem_classes="plot", min_width=min_width):
        gr.HTML(f'<h3 class="plot-title">{i18n(key)}</h3>')
        return gr.Plot(show_label=False, label=i18n(key), elem_id=key.replace("_", "-"))


def data_uri(picture: Image.Image, quality: int = 88) -> str:
    """A picture inside the page."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def sample_uri(sample: Sample) -> str:
    """A sample's own bytes when a browser shows them, else re-encoded."""
    if sample.image.startswith(b"\xff\xd8"):
        return "data:image/jpeg;base64," + base64.b64encode(sample.image).decode()
    return data_uri(Image.open(io.BytesIO(sample.image)).convert("RGB"))
