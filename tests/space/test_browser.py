"""A visitor with a real browser: every tab, desktop and phone, both languages; no request leaves for
elsewhere."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.space.bad_uploads import PICTURES
from tests.space.running import RunningSpace, running
from tests.space.screenshots import SIZES, TABS, draw_inputs, fill_tab, open_tab, visit

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return draw_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def watched(
    browser: Browser, request: pytest.FixtureRequest
) -> Iterator[tuple[BrowserContext, list[str], list[str]]]:
    """A context that notes every request to elsewhere and every error of the page."""
    width, height = SIZES[getattr(request, "param", "desktop")]
    context = browser.new_context(viewport={"width": width, "height": height}, locale="en-US")
    elsewhere, errors = [], []
    context.on(
        "request",
        lambda r: (
            elsewhere.append(r.url) if not r.url.startswith(("http://127.0.0.1", "data:", "blob:")) else None
        ),
    )
    context.on("weberror", lambda error: errors.append(str(error.error)))
    yield context, elsewhere, errors
    context.close()


@pytest.mark.parametrize("language", ["en", "id"])
@pytest.mark.parametrize("watched", SIZES, indirect=True)
def test_every_tab_answers_in_its_language_and_asks_nobody_else(
    space: RunningSpace, watched: tuple, inputs: dict[str, Path], language: str
) -> None:
    context, elsewhere, errors = watched
    page = context.new_page()
    visit(page, space.address, language)
    expected = {
        "en": {"cell": "promyelocyte", "cells": "Differential count", "field": "nucleated cells found",
               "model": "Balanced accuracy", "data": "images of 7 classes", "learn": "Expert label",
               "api": "Call the Space from a program"},
        "id": {"cell": "promielosit", "cells": "Hitung jenis", "field": "sel berinti ditemukan",
               "model": "Akurasi seimbang", "data": "gambar dari 7 kelas", "learn": "Label ahli",
               "api": "Panggil Space ini dari program"},
    }  # fmt: skip
    for name in TABS:
        fill_tab(page, name, inputs)
        expect(page.locator("body")).to_contain_text(expected[language][name])
        assert "__i18n__" not in page.inner_text("body")
        overflow = page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert overflow <= 1, f"{name} is wider than the page by {overflow} pixels"
    assert page.evaluate("document.documentElement.lang") == language
    assert elsewhere == [] and errors == []


@pytest.mark.parametrize(
    "locale",
    ["en-US", "id-ID"],
)
def test_the_browsers_language_decides_and_the_switch_overrides(
    space: RunningSpace, browser: Browser, locale: str
) -> None:
    titles = {"en": ("Bone-marrow cells", "One cell"), "id": ("Sel sumsum tulang", "Satu sel")}
    names = {"en": "English", "id": "Bahasa Indonesia"}
    own = locale[:2]
    other = {"en": "id", "id": "en"}[own]
    context = browser.new_context(locale=locale)
    page = context.new_page()
    page.goto(space.address)
    for language in (own, other, own):
        if language != own or "lang" in page.url:
            page.get_by_role("link", name=names[language]).click()
        title, tab = titles[language]
        expect(page.locator("h1")).to_have_text(title, timeout=30_000)
        expect(page.get_by_role("tab").first).to_have_text(tab)
        assert page.evaluate("document.documentElement.lang") == language
    context.close()


@pytest.mark.parametrize("asked", ["ID", "in"])
def test_other_spellings_of_indonesian_are_understood_and_the_examples_have_names(
    space: RunningSpace, watched: tuple, asked: str
) -> None:
    page = watched[0].new_page()
    visit(page, space.address, asked)
    expect(page.locator("h1")).to_have_text("Sel sumsum tulang", timeout=30_000)
    page.get_by_role("button", name="Contoh 14", exact=True).click()
    expect(page.locator("#cell-answer .answer")).to_contain_text("%", timeout=30_000)
    nameless = page.locator("#cell-examples button:not([aria-label])").count()
    assert nameless == 0 and page.evaluate("document.documentElement.lang") == "id"


@pytest.mark.parametrize("name", ["text.jpg", "truncated.jpg", "bomb.png", "animated.gif"])
def test_a_bad_picture_gets_its_sentence_on_the_page(
    space: RunningSpace, watched: tuple, tmp_path: Path, name: str
) -> None:
    page = watched[0].new_page()
    visit(page, space.address, "en")
    (tmp_path / name).write_bytes(PICTURES[name][0]())
    page.set_input_files("#cell-picture input[type=file]", tmp_path / name)
    expect(page.locator("#cell-answer .bad")).to_be_visible(timeout=30_000)


def test_an_example_is_one_click(space: RunningSpace, watched: tuple) -> None:
    page = watched[0].new_page()
    visit(page, space.address, "en")
    page.locator("#cell-examples button").first.click()
    expect(page.locator("#cell-answer .answer")).to_be_visible(timeout=30_000)
    expect(page.locator("#cell-similar figure")).to_have_count(6, timeout=30_000)


def test_the_downloads_hold_what_the_page_shows(
    space: RunningSpace, watched: tuple, inputs: dict[str, Path], tmp_path: Path
) -> None:
    page = watched[0].new_page()
    visit(page, space.address, "en")
    fill_tab(page, "cells", inputs)
    texts = {}
    for name in ("cells.csv", "report.html"):
        with page.expect_download() as waiting:
            page.locator(f"a[download='{name}']").click()
        waiting.value.save_as(tmp_path / name)
        texts[name] = (tmp_path / name).read_text()
    assert len(texts["cells.csv"].splitlines()) == 43
    assert "Differential count" in texts["report.html"] and "slide/cut-off.jpg" in texts["report.html"]
    expect(page.locator("#cells-bad li")).to_have_count(2)


def test_the_quiz_keeps_score_for_the_visit(space: RunningSpace, watched: tuple) -> None:
    page = watched[0].new_page()
    visit(page, space.address, "en")
    open_tab(page, "learn")
    page.locator("#learn-cell img").wait_for(timeout=30_000)
    for asked in (1, 2):
        page.locator("#learn-guess label").first.click()
        page.locator("#learn-check").click()
        expect(page.locator("#learn-score")).to_contain_text(f"of {asked} ", timeout=30_000)
        page.locator("#learn-check").click()  # a second check of the same cell does not count
        page.wait_for_timeout(300)
        expect(page.locator("#learn-score")).to_contain_text(f"of {asked} ")
        page.locator("#learn-next").click()
        expect(page.locator("#learn-verdict .answer")).to_have_count(0, timeout=30_000)


def test_the_keyboard_reaches_the_tabs_and_an_answer(space: RunningSpace, watched: tuple) -> None:
    page = watched[0].new_page()
    visit(page, space.address, "en")
    page.locator("#cell-examples button").nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#cell-answer .answer")).to_be_visible(timeout=30_000)
    page.get_by_role("tab", name="API").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#api-page pre").first).to_be_visible(timeout=30_000)


def test_pictures_have_alternative_texts_and_inputs_have_names(
    space: RunningSpace, watched: tuple, inputs: dict[str, Path]
) -> None:
    page = watched[0].new_page()
    visit(page, space.address, "en")
    for name in ("cell", "field", "learn"):
        fill_tab(page, name, inputs)
    nameless = page.locator(".html-container img:not([alt])").count()
    assert nameless == 0 and page.locator("h1").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_their_ground(
    space: RunningSpace, browser: Browser, inputs: dict, scheme: str
) -> None:
    context = browser.new_context(
        color_scheme=scheme, locale="en-US", viewport={"width": 1280, "height": 900}
    )
    page = context.new_page()
    visit(page, space.address, "en")
    fill_tab(page, "cell", inputs)
    for selector in (
        ".lead",
        ".disclaimer",
        ".answer h2",
        ".answer > p",
        ".bars .name",
        ".note",
        "figcaption small",
    ):
        assert contrast(page, selector) >= 4.5, selector
    context.close()


def contrast(page: Page, selector: str) -> float:
    """WCAG 2 contrast ratio of the first such element's text on the nearest opaque ground."""
    colours = page.locator(selector).first.evaluate(
        """element => {
            const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
            let ground = element, found;
            while (ground) {
                found = parse(getComputedStyle(ground).backgroundColor);
                if (found.length === 3 || found[3] === 1) break;
                ground = ground.parentElement;
            }
            return [parse(getComputedStyle(element).color), found];
        }"""
    )
    light, dark = sorted((luminance(colour[:3]) for colour in colours), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: list[float]) -> float:
    linear = [v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_broken_model_repo_is_a_page_that_says_so(
    browser: Browser, small_model: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "<b>broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((small_model / "config.json").read_bytes())
    with running(RunningSpace(["-m", "space", "--model", str(broken)], tmp_path / "space")) as space:
        page = browser.new_page(locale="id-ID")
        page.goto(space.address)
        reason = "<b>broken breaks the contract: it has no model.safetensors"
        expect(page.locator("#reason")).to_contain_text(reason)
        expect(page.locator("body")).to_contain_text("Space ini tidak memiliki model")
        page.close()
