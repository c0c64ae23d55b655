"""Every word of the page, by language: static ones through `gr.I18n`, composed ones through `say`.

In: `locales/*.yaml`. The browser's language decides; `?lang=en` or `?lang=id` in the address, which the switch at the
top sets, overrides it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hub_model.inference.errors import IMAGE_ERRORS, ImageError

NAMES = {"en": "English", "id": "Bahasa Indonesia"}


class Note(NamedTuple):
    """Full name of a class and what to look for under the microscope."""

    name: str
    text: str


def _read(code: str) -> tuple[dict[str, str], dict[str, Note]]:
    path = Path(__file__).parent / "locales" / f"{code}.yaml"
    texts = yaml.safe_load(path.read_text("utf-8"))
    notes = {label: Note(**note) for label, note in texts.pop("notes").items()}
    return texts, notes


(EN, _EN_NOTES), (ID, _ID_NOTES) = _read("en"), _read("id")
EN |= {f"upload_{reason}": sentence for reason, sentence in IMAGE_ERRORS.items()}
LANGUAGES = {"en": EN, "id": ID}
NOTES = {"en": _EN_NOTES, "id": _ID_NOTES}

# Gradio takes the browser's language and has no switch of its own in the page. Its Settings panel changes the language
# through `changeLocale` of the module `core`; this does the same for `?lang=`. What still loads may set the browser's
# language afterwards, which shows in the page's `lang`: then it is changed once more. (sdk_version is pinned; a test watches.)
# A picture that is a button has no name of its own either: the examples are numbered for those who cannot see them.
HEAD = """
<script>
(() => {
  const page = document.documentElement;
  const asked = new URLSearchParams(location.search).get("lang");
  const language = /^i[dn]/i.test(asked || navigator.language) ? "id" : "en";
  const core = performance.getEntriesByType("resource").find(entry => /\\/assets\\/core-[^/]*\\.js/.test(entry.name));
  const change = () => { import(core.name).then(module => module.changeLocale(language)); };
  const example = EXAMPLES[language];
  page.lang = language;
  new MutationObserver(() => document.querySelectorAll("#cell-examples button:has(img)").forEach((button, i) => {
    const name = example.replace("{number}", i + 1);
    if (button.ariaLabel !== name) button.ariaLabel = name;
  })).observe(page, { childList: true, subtree: true });
  if (!asked || !core) return;
  change();
  new MutationObserver(() => { if (!page.lang.startsWith(language)) change(); })
    .observe(page, { attributeFilter: ["lang"] });
})();
</script>
""".replace("EXAMPLES", json.dumps({code: texts["cell_example"] for code, texts in LANGUAGES.items()}))


def say(language: str, key: str, **values: Any) -> str:
    """The text `key` in a language (English when it has no such language), with its {placeholders} filled."""
    return LANGUAGES.get(language, EN)[key].format(**values)


def say_error(language: str, error: ImageError) -> str:
    """The sentence of an unusable upload in a language."""
    return say(language, f"upload_{error.reason}", **error.values)


def language_of(request: Any) -> str:
    """The language of a visitor's request: of the page's address, else the first that the browser accepts."""
    if request is None:
        return "en"
    asked = request.query_params.get("lang") if request.query_params else None
    accepted = asked or (request.headers or {}).get("accept-language", "en")
    return "id" if accepted.lower().startswith(("id", "in")) else "en"


def note_on(language: str, label: str, description: str) -> Note:
    """Name and morphology note of a class; for a class without a teaching text the repo's description
    alone."""
    return NOTES.get(language, NOTES["en"]).get(label, Note(description, ""))
