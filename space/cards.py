"""Answers as HTML: verdict, probabilities, similar cells, counts, footer.

In: predictions and a language. Out: HTML strings in which every word of a visitor, file or repo is escaped.
Pictures travel inside the page as data URIs, so no file is written for them. Styles are in `style.css`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import gradio as gr
from huggingface_hub.constants import ENDPOINT
from PIL import Image

from hub_model.inference.appearance import Shift
from hub_model.inference.calibration import Verdict
from hub_model.inference.classifier import Classifier, Predictions
from space.dataset_repo import Sample
from space.desk import EXTRA, Row
from space.resources import Resources, public_name
from space.texts import NOTES, Words, note_on, number, say, say_html, say_shift


def name_of(classifier: Classifier, language: str, label: str) -> str:
    """Full name of a class in a language."""
    if label in EXTRA and label not in classifier.label_names:
        return EXTRA[label] if language == "id" else label
    return note_on(language, label, classifier.label_descriptions.get(label, label)).name


def verdict_text(classifier: Classifier, language: str, verdict: Verdict) -> str:
    """The plain verdict in words, with full names."""
    first, *others = (name_of(classifier, language, label) for label in verdict.labels)
    listed = f" {say(language, 'or')} ".join([", ".join(others[:-1])] * (len(others) > 1) + others[-1:])
    return say(language, f"verdict_{verdict.kind}", first=first, others=listed)


def is_no_cell_type(classifier: Classifier, label: str) -> bool:
    """Whether a class stands for cells that an expert would not name."""
    return classifier.label_descriptions.get(label, "").lower() == NOTES["en"]["NIF"].name


def answer_card(
    resources: Resources, predictions: Predictions, language: str, truth: str = "", warning: str = ""
) -> str:
    """Verdict, what it means, the expert's label if there is one, a warning, the likeliest classes, notes on those left open."""
    classifier, verdict = resources.classifier, predictions.verdicts[0]
    told = escape(explanation(resources, language, verdict.kind))
    if truth:
        label = f"{name_of(classifier, language, truth)} ({truth})"
        told += f" <b>{escape(say(language, 'truth', label=label))}</b>"
    left_open = verdict.labels if verdict.kind != "unknown" else ()
    return (
        f'<section class="answer {verdict.kind}" aria-live="polite">'
        f"<h2>{escape(verdict_text(classifier, language, verdict))}</h2><p>{told}</p>"
        f"{warning and message(warning, 'warn')}{probability_bars(classifier, predictions.top(0), language)}"
        f"{notes(classifier, language, left_open)}</section>"
    )


def explanation(resources: Resources, language: str, kind: str) -> str:
    """What a kind of verdict means; how often a sure answer may be wrong is the model repo's own rule."""
    if kind == "sure" and (error := resources.classifier.calibration.sure_error) is not None:
        return say(language, "explain_sure_rule", percent=number(language, 100 * error))
    return say(language, f"explain_{kind}")


def notes(classifier: Classifier, language: str, labels: Iterable[str]) -> str:
    """What to look for under the microscope in each of these classes."""
    found = [note_on(language, label, classifier.label_descriptions.get(label, label)) for label in labels]
    return "".join(
        f'<p class="note"><b>{escape(note.name)}</b> {escape(note.text)}</p>' for note in found if note.text
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


def shift_warning(language: str, shift: Shift | None) -> str:
    """What stands above the results of a batch unlike every training laboratory; empty otherwise."""
    return message(say_shift(language, shift), "shift") if shift else ""


def similar_card(
    classifier: Classifier, language: str, own: Image.Image, neighbours: Sequence[tuple[Sample, float]]
) -> str:
    """The visitor's cell, then labelled training cells, nearest first."""
    figures = (
        f'<figure class="own"><img src="{data_uri(own)}" alt="{escape(say(language, "similar_own"))}">'
        f"<figcaption><b>{escape(say(language, 'similar_own'))}</b></figcaption></figure>"
    )
    for sample, similarity in neighbours:
        name = name_of(classifier, language, sample.label)
        figures += (
            f'<figure><img src="{sample_uri(sample)}" alt="{escape(name)}">'
            f"<figcaption><b>{escape(sample.label)}</b> {escape(name)}"
            f"<small>{escape(say(language, 'similarity'))} {number(language, similarity, 2)}</small></figcaption></figure>"
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


def count_table(classifier: Classifier, language: str, counts: Sequence[Row]) -> str:
    """The differential count as a table: whose answers, as counted and corrected, with 95% intervals."""
    keys = ("table_label", "count_by_model", "count_you", "count_flat", "count_corrected")
    rows = []
    for c in counts:
        name = name_of(classifier, language, c.label)
        rows.append(
            ((c.label, name if name != c.label else ""), number(language, c.by_model), number(language, c.by_you),
             with_interval(language, c.share, c.interval),
             with_interval(language, c.corrected, c.corrected_interval) if c.corrected is not None else "")
        )  # fmt: skip
    return table([say(language, key) for key in keys], rows)


def with_interval(language: str, share: float, interval: tuple[float, float]) -> tuple[str, str]:
    ends = "–".join(number(language, 100 * end, 1) for end in interval)
    return f"{number(language, 100 * share, 1)}%", ends


def table(head: Sequence[str], rows: Iterable[tuple[tuple[str, str], *tuple[Any, ...]]]) -> str:
    """A table of numbers; each row begins with the code and the name of its class. A pair has a small second text."""

    def written(cell: str | tuple[str, str]) -> str:
        text, small = (cell, "") if isinstance(cell, str) else cell
        return f"<td>{escape(text)}{small and f'<small>{escape(small)}</small>'}</td>"

    header = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join(
        f'<tr><th scope="row"><b>{escape(label)}</b> {escape(name)}</th>{"".join(map(written, cells))}</tr>'
        for (label, name), *cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def plot_panel(words: Words, key: str, min_width: int = 320) -> gr.Plot:
    """Heading and plot in one panel (Gradio's label would lie on the plot); `elem_id` is the key with dashes."""
    with gr.Column(elem_classes="plot", min_width=min_width):
        words.html('<h3 class="plot-title">{}</h3>', key)
        return gr.Plot(show_label=False, label=words.i18n(key), elem_id=key.replace("_", "-"))


PICK = """
element.addEventListener("click", event => {
  const button = event.target.closest("[data-pick]");
  if (button) trigger("pick", {number: Number(button.dataset.pick)});
});
"""


def picks(pictures: Sequence[tuple[str, str]], elem_id: str) -> gr.HTML:
    """Pictures that are buttons, each with its name; `.pick(fn)` gets their number as `event.number`."""
    buttons = "".join(
        f'<button type="button" data-pick="{i}" aria-label="{escape(name)}"><img src="{uri}" alt=""></button>'
        for i, (name, uri) in enumerate(pictures)
    )
    return gr.HTML(f'<div class="picks">{buttons}</div>', js_on_load=PICK, elem_id=elem_id)


CREDITS = {  # by what a dataset's card cites
    "10.7937/TCIA.AXH3-T579": "Matek et al. (2021), Bone-Marrow-Cytomorphology_MLL_Helmholtz_Fraunhofer, TCIA",
    "10.17632/snkd93bnjr.1": "Acevedo et al. (2020), A dataset of microscopic peripheral blood cell images, Mendeley Data",
}


def footer(resources: Resources, language: str) -> str:
    """On every tab: what the classes leave out, whose pictures these are, and where model, data and limits are written up."""
    dataset, model = resources.dataset, resources.classifier.repo
    parts = []
    if set(resources.classifier.label_names) <= NOTES["en"].keys():
        parts.append(escape(say(language, "footer_left_out")))
    if dataset is not None:
        name = str(dataset.card.get("pretty_name") or public_name(dataset.name))
        licence = escape(str(dataset.card.get("license") or say(language, "footer_no_licence")))
        whose = "; ".join(
            f'<a href="https://doi.org/{doi}">{escape(credit)}</a>'
            for doi, credit in CREDITS.items()
            if doi.lower() in dataset.about.lower()
        ) or escape(name)
        parts.append(say_html(language, "footer_credit", whose=whose, licence=licence))
    links = [
        (say(language, "tab_model"), model.name, ""),
        (say(language, "footer_limits"), model.name, "#limitations"),
    ]
    links = [(text, repo, mark) for text, repo, mark in links if model.commit]
    if dataset is not None and dataset.on_hub:
        links.append((say(language, "footer_dataset"), f"datasets/{dataset.name}", ""))
    linked = " · ".join(
        f'<a href="{ENDPOINT}/{escape(repo)}{mark}">{escape(text)}</a>' for text, repo, mark in links
    )
    body = "".join(f"<p>{part}</p>" for part in [*parts, linked] if part)
    return f'<footer class="credits">{body}</footer>'


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
