"""HTML of the answers: verdict, probabilities, similar cells, counts, footer.

In: predictions and a language. Out: HTML in which all text from visitors, files and repos is escaped. Pictures are embedded as
data URIs, so that no files are written. Styles are in `style.css`.
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
from space.desk import EXTRA_CLASSES, Row
from space.resources import Resources, public_name
from space.texts import NOTES, Words, note_on, number, say, say_html, say_shift

JPEG_URI = "data:image/jpeg;base64,"


def name_of(classifier: Classifier, language: str, label: str) -> str:
    """Full name of a class in a language."""
    if label in EXTRA_CLASSES and label not in classifier.label_names:
        return EXTRA_CLASSES[label] if language == "id" else label
    return note_on(language, label, classifier.label_descriptions.get(label, label)).name


def verdict_text(classifier: Classifier, language: str, verdict: Verdict) -> str:
    """The verdict as a sentence, with full names."""
    first, *others = (name_of(classifier, language, label) for label in verdict.labels)
    if len(others) > 1:
        others = [", ".join(others[:-1]), others[-1]]
    listed = f" {say(language, 'or')} ".join(others)
    return say(language, f"verdict_{verdict.kind}", first=first, others=listed)


def is_no_cell_type(classifier: Classifier, label: str) -> bool:
    """Whether a class stands for cells that cannot be identified, rather than for a cell type."""
    return classifier.label_descriptions.get(label, "").lower() == NOTES["en"]["NIF"].name


def answer_card(
    resources: Resources, predictions: Predictions, language: str, truth: str = "", warning: str = ""
) -> str:
    """Verdict with its explanation, expert label and warning if any, top classes, and notes on the classes of the verdict."""
    classifier, verdict = resources.classifier, predictions.verdicts[0]
    text = escape(explanation(resources, language, verdict.kind))
    if truth:
        label = f"{name_of(classifier, language, truth)} ({truth})"
        text += f" <b>{escape(say(language, 'truth', label=label))}</b>"
    noted = verdict.labels if verdict.kind != "unknown" else ()
    return (
        f'<section class="answer {verdict.kind}" aria-live="polite">'
        f"<h2>{escape(verdict_text(classifier, language, verdict))}</h2><p>{text}</p>"
        f"{warning and message(warning, 'warn')}{probability_bars(classifier, predictions.top(0), language)}"
        f"{notes(classifier, language, noted)}</section>"
    )


def explanation(resources: Resources, language: str, kind: str) -> str:
    """The meaning of a verdict; the error rate of a sure answer is the one in the model repo's `calibration.json`."""
    if kind == "sure" and (error := resources.classifier.calibration.sure_error) is not None:
        return say(language, "explain_sure_rule", percent=number(language, 100 * error))
    return say(language, f"explain_{kind}")


def notes(classifier: Classifier, language: str, labels: Iterable[str]) -> str:
    """Morphology notes on the classes."""
    texts = [note_on(language, label, classifier.label_descriptions.get(label, label)) for label in labels]
    return "".join(
        f'<p class="note"><b>{escape(note.name)}</b> {escape(note.text)}</p>' for note in texts if note.text
    )


def probability_bars(classifier: Classifier, top: Sequence[tuple[str, float]], language: str) -> str:
    """One labelled bar per class."""
    rows = "".join(
        f'<li><span class="code">{escape(label)}</span>'
        f'<span class="name">{escape(name_of(classifier, language, label))}</span>'
        f'<span class="percent">{percent(p)}</span>'
        f'<span class="bar" aria-hidden="true"><i style="width:{100 * p:.1f}%"></i></span></li>'
        for label, p in top
    )
    return f'<ol class="bars">{rows}</ol>'


def percent(probability: float) -> str:
    """A probability as an HTML percentage that is never 0% or 100%."""
    value = 100 * probability
    if value > 99.5:
        return "&gt;99%"
    return "&lt;1%" if value < 0.5 else f"{value:.0f}%"


def message(text: str, kind: str = "hint") -> str:
    """A paragraph with one sentence."""
    return f'<p class="{kind}" role="status">{escape(text)}</p>'


def shift_warning(language: str, shift: Shift | None) -> str:
    """The warning above the results of a batch that looks unlike the training images; empty without a shift."""
    return message(say_shift(language, shift), "shift") if shift else ""


def similar_card(
    classifier: Classifier, language: str, own: Image.Image, neighbours: Sequence[tuple[Sample, float]]
) -> str:
    """The visitor's cell, then labelled training cells, nearest first."""
    title, caption = escape(say(language, "similar")), escape(say(language, "similar_own"))
    figures = (
        f'<figure class="own"><img src="{data_uri(own)}" alt="{caption}">'
        f"<figcaption><b>{caption}</b></figcaption></figure>"
    )
    for sample, similarity in neighbours:
        name = name_of(classifier, language, sample.label)
        figures += (
            f'<figure><img src="{sample_uri(sample)}" alt="{escape(name)}">'
            f"<figcaption><b>{escape(sample.label)}</b> {escape(name)}"
            f"<small>{escape(say(language, 'similarity'))} {number(language, similarity, 2)}</small></figcaption></figure>"
        )
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
    """The differential count as a table: cells by model and visitor, as counted and corrected, with 95% intervals."""
    keys = ("table_label", "count_by_model", "count_you", "count_flat", "count_corrected")
    rows = []
    for row in counts:
        name = name_of(classifier, language, row.label)
        rows.append((
            (row.label, name if name != row.label else ""), number(language, row.by_model), number(language, row.by_you),
            with_interval(language, row.share, row.interval),
            "" if row.corrected is None else with_interval(language, row.corrected, row.corrected_interval),
        ))  # fmt: skip
    return table([say(language, key) for key in keys], rows)


def with_interval(language: str, share: float, interval: tuple[float, float]) -> tuple[str, str]:
    """A fraction and its interval in percent, as a cell of `table`."""
    ends = "–".join(number(language, 100 * end, 1) for end in interval)
    return f"{number(language, 100 * share, 1)}%", ends


def table(head: Sequence[str], rows: Iterable[tuple[tuple[str, str], *tuple[Any, ...]]]) -> str:
    """A table; each row starts with a pair of code and name. A cell that is a pair shows its second text in small print."""

    def td(cell: str | tuple[str, str]) -> str:
        text, small = (cell, "") if isinstance(cell, str) else cell
        return f"<td>{escape(text)}{small and f'<small>{escape(small)}</small>'}</td>"

    header = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join(
        f'<tr><th scope="row"><b>{escape(label)}</b> {escape(name)}</th>{"".join(map(td, cells))}</tr>'
        for (label, name), *cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def plot_panel(words: Words, key: str, min_width: int = 320) -> gr.Plot:
    """A plot under a heading (Gradio's own label would cover the plot); `elem_id` is the key with dashes."""
    with gr.Column(elem_classes="plot", min_width=min_width):
        words.html('<h3 class="plot-title">{}</h3>', key)
        return gr.Plot(show_label=False, label=words.i18n(key), elem_id=key.replace("_", "-"))


PICK = """
element.addEventListener("click", event => {
  const button = event.target.closest("[data-pick]");
  if (button) trigger("pick", {number: Number(button.dataset.pick)});
});
"""


def picture_buttons(pictures: Sequence[tuple[str, str]], elem_id: str) -> gr.HTML:
    """One button per picture (name, URI); `.pick(fn)` is called with its index as `event.number`."""
    buttons = "".join(
        f'<button type="button" data-pick="{i}" aria-label="{escape(name)}"><img src="{uri}" alt=""></button>'
        for i, (name, uri) in enumerate(pictures)
    )
    return gr.HTML(f'<div class="picks">{buttons}</div>', js_on_load=PICK, elem_id=elem_id)


CREDITS = {  # by the DOI that a dataset card cites
    "10.7937/TCIA.AXH3-T579": "Matek et al. (2021), Bone-Marrow-Cytomorphology_MLL_Helmholtz_Fraunhofer, TCIA",
    "10.17632/snkd93bnjr.1": "Acevedo et al. (2020), A dataset of microscopic peripheral blood cell images, Mendeley Data",
}


def footer(resources: Resources, language: str) -> str:
    """Footer of every tab: classes the model lacks, credit for the example images, links to model, limitations and dataset."""
    dataset, model = resources.dataset, resources.classifier.repo
    paragraphs = []
    if set(resources.classifier.label_names) <= NOTES["en"].keys():
        paragraphs.append(escape(say(language, "footer_left_out")))
    if dataset is not None:
        name = str(dataset.card.get("pretty_name") or public_name(dataset.name))
        licence = escape(str(dataset.card.get("license") or say(language, "footer_no_licence")))
        whose = "; ".join(
            f'<a href="https://doi.org/{doi}">{escape(credit)}</a>'
            for doi, credit in CREDITS.items()
            if doi.lower() in dataset.about.lower()
        ) or escape(name)
        paragraphs.append(say_html(language, "footer_credit", whose=whose, licence=licence))
    links = []
    if model.commit:
        links.append((say(language, "tab_model"), model.name, ""))
        links.append((say(language, "footer_limits"), model.name, "#limitations"))
    if dataset is not None and dataset.on_hub:
        links.append((say(language, "footer_dataset"), f"datasets/{dataset.name}", ""))
    linked = " · ".join(
        f'<a href="{ENDPOINT}/{escape(repo)}{anchor}">{escape(text)}</a>' for text, repo, anchor in links
    )
    body = "".join(f"<p>{paragraph}</p>" for paragraph in [*paragraphs, linked] if paragraph)
    return f'<footer class="credits">{body}</footer>'


def data_uri(picture: Image.Image) -> str:
    """A picture as a JPEG data URI."""
    picture.save(buffer := io.BytesIO(), "JPEG", quality=88)
    return JPEG_URI + base64.b64encode(buffer.getvalue()).decode()


def sample_uri(sample: Sample) -> str:
    """A sample as a data URI: its own bytes if they are JPEG, else re-encoded."""
    if sample.image.startswith(b"\xff\xd8"):
        return JPEG_URI + base64.b64encode(sample.image).decode()
    return data_uri(Image.open(io.BytesIO(sample.image)).convert("RGB"))
