"""Every text of the page in each language: static texts in `Words`, composed ones through `say`.

In: `locales/*.yaml`. The language is that of the browser, unless the URL has `?lang=en` or `?lang=id`, until the visitor
switches it at the top of the page, which rewrites the texts in place.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import yaml

from hub_model.inference.appearance import REASONS, SENTENCE, Shift
from hub_model.inference.errors import IMAGE_ERRORS, ImageError

NAMES = {"en": "English", "id": "Bahasa Indonesia"}


class Note(NamedTuple):
    """Full name of a class and what to look for under the microscope."""

    name: str
    text: str


def _read(language: str) -> tuple[dict[str, str], dict[str, Note]]:
    path = Path(__file__).parent / "locales" / f"{language}.yaml"
    texts = yaml.safe_load(path.read_text("utf-8"))
    notes = {label: Note(**note) for label, note in texts.pop("notes").items()}
    return texts, notes


(EN, _EN_NOTES), (ID, _ID_NOTES) = _read("en"), _read("id")
EN |= {f"upload_{reason}": sentence for reason, sentence in IMAGE_ERRORS.items()}
EN |= {"shift": SENTENCE} | {
    f"shift_{cause}_{side}": reason
    for cause, reasons in REASONS.items()
    for side, reason in zip(("above", "below"), reasons, strict=True)
}
LANGUAGES = {"en": EN, "id": ID}
NOTES = {"en": _EN_NOTES, "id": _ID_NOTES}


class Words:
    """The page's static texts: in the browser's language at first (`gr.I18n`), rewritten in place when it is switched."""

    def __init__(self) -> None:
        self.i18n = gr.I18n(**LANGUAGES)
        self._updates: list[tuple[Any, Callable[[str], dict[str, Any]]]] = []

    def put(self, component: type, key: str, attribute: str = "label", **options: Any) -> Any:
        """A component whose `attribute` is the text `key`."""
        options[attribute] = self.i18n(key)
        return self.computed(component(**options), lambda language: {attribute: say(language, key)})

    def html(self, template: str, key: str, **limits: float) -> gr.HTML:
        """The text `key`, with its {placeholders} filled by integers, in a template with one `{}`."""

        def text(language: str) -> str:
            return escape(say(language, key, **{name: number(language, n) for name, n in limits.items()}))

        component = gr.HTML(template.format(text("en") if limits else self.i18n(key)))
        return self.computed(component, lambda language: {"value": template.format(text(language))})

    def computed(self, component: Any, update: Callable[[str], dict[str, Any]]) -> Any:
        """A component that is updated by a function of the language."""
        self._updates.append((component, update))
        return component

    @property
    def components(self) -> list[Any]:
        return [component for component, _ in self._updates]

    def updates(self, language: str) -> list[Any]:
        """The updates of `components` for a language."""
        return [gr.update(**update(language)) for _, update in self._updates]


def say(language: str, key: str, **values: Any) -> str:
    """The text `key` in a language (English for an unknown one), with its {placeholders} filled."""
    return LANGUAGES.get(language, EN)[key].format(**values)


def say_html(language: str, key: str, **values: str) -> str:
    """`say` for HTML: the text is escaped, the values are HTML."""
    return escape(LANGUAGES.get(language, EN)[key]).format(**values)


def say_error(language: str, error: ImageError) -> str:
    """The message of an unusable upload."""
    return say(language, f"upload_{error.reason}", **error.values)


def say_shift(language: str, shift: Shift) -> str:
    """The warning for a batch unlike every training laboratory."""
    reason = say(language, f"shift_{shift.cause}_{'below' if shift.off < 0 else 'above'}")
    off = ("−" if shift.off < 0 else "+") + number(language, abs(shift.off), 1)
    words = [
        say(language, f"shift_in_{word}") if word.isalpha() else word for word in shift.statistic.split("_")
    ]
    return say(language, "shift", reason=reason, statistic=" ".join(words), off=off)


def language_of(request: Any) -> str:
    """The language of a request: that of the URL, else the first that the browser accepts."""
    if request is None:
        return "en"
    asked = request.query_params.get("lang") if request.query_params else None
    accepted = asked or (request.headers or {}).get("accept-language", "en")
    return "id" if accepted.lower().startswith(("id", "in")) else "en"


def note_on(language: str, label: str, description: str) -> Note:
    """Name and morphology note of a class; only the repo's description where its label means another class."""
    if label not in NOTES["en"] or description.lower() not in (NOTES["en"][label].name, label.lower()):
        return Note(description, "")
    return NOTES.get(language, NOTES["en"])[label]


def number(language: str, value: float, digits: int = 0) -> str:
    """A number in the language's format: 1,234.5 or 1.234,5."""
    text = f"{value:,.{digits}f}"
    return text.translate(str.maketrans(",.", ".,")) if language == "id" else text
