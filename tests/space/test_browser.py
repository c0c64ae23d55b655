"""The Space in a real browser: every tab, on desktop and phone, in both languages, without requests to other hosts."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect

from tests.space.axe import violations
from tests.space.bad_uploads import PICTURES
from tests.space.browser import TIMEOUT_MS
from tests.space.running import RunningSpace, running
from tests.space.screenshots import SIZES, TABS, draw_inputs, fill_tab, open_tab, visit

pytestmark = pytest.mark.browser
THIRD_PARTY = [
    "footer:not(.credits)",
    ".js-plotly-plot",
    ".modebar",
    "input[type=file]",
    ".upload-container",
    "[role=tablist]",
    ".icon-button",
]  # elements of Gradio and plotly


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return draw_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def watched(
    browser: Browser, request: pytest.FixtureRequest
) -> Iterator[tuple[BrowserContext, list[str], list[str]]]:
    """A context with the requests it sends to other hosts and the errors of its pages."""
    width, height = SIZES[getattr(request, "param", "desktop")]
    context = browser.new_context(viewport={"width": width, "height": height}, locale="en-US")
    external, errors = [], []

    def note(request: Request) -> None:
        if not request.url.startswith(("http://127.0.0.1", "data:", "blob:")):
            external.append(request.url)

    context.on("request", note)
    context.on("weberror", lambda error: errors.append(str(error.error)))
    yield context, external, errors
    context.close()


@pytest.fixture
def page(space: RunningSpace, watched: tuple) -> Page:
    """A page of the Space in English."""
    page = watched[0].new_page()
    visit(page, space.address, "en")
    return page


@pytest.mark.parametrize("language", ["en", "id"])
@pytest.mark.parametrize("watched", SIZES, indirect=True)
def test_every_tab_answers_in_its_language_without_requests_to_other_hosts(
    space: RunningSpace, watched: tuple, inputs: dict[str, Path], language: str
) -> None:
    context, external, errors = watched
    page = context.new_page()
    visit(page, space.address, language)
    expected = {
        "en": {"cell": "promyelocyte", "cells": "Differential count", "field": "nucleated cells found",
               "model": "Balanced accuracy", "data": "images of 7 classes", "learn": "Expert label",
               "api": "Call this Space from your own code"},
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
    assert external == [] and errors == []


@pytest.mark.parametrize("locale", ["en-US", "id-ID"])
def test_the_browsers_language_decides_and_the_switch_rewrites_the_page_in_place(
    space: RunningSpace, browser: Browser, inputs: dict[str, Path], locale: str
) -> None:
    titles = {
        "en": ("Bone-marrow cells", "Many cells", "promyelocyte"),
        "id": ("Sel sumsum tulang", "Banyak sel", "promielosit"),
    }
    names = {"en": "English", "id": "Bahasa Indonesia"}
    context = browser.new_context(locale=locale)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(space.address)
    page.locator(f"html[lang={locale[:2]}]").wait_for()
    page.set_input_files("#cell-picture input[type=file]", inputs["cell"])
    for language in (locale[:2], {"en": "id", "id": "en"}[locale[:2]]):
        if language != locale[:2]:
            page.get_by_label(names[language]).check()
        title, tab, verdict = titles[language]
        expect(page.locator("h1")).to_have_text(title)
        expect(page.get_by_role("tab").nth(1)).to_have_text(tab)
        expect(page.locator("#cell-answer")).to_contain_text(verdict)
        assert page.evaluate("document.documentElement.lang") == language
    context.close()


def test_examples_have_names_and_are_one_click(page: Page) -> None:
    page.get_by_role("button", name="Example 14", exact=True).click()
    expect(page.locator("#cell-answer .answer")).to_contain_text("%")
    expect(page.locator("#cell-similar figure")).to_have_count(7)


def numbers(page: Page) -> list[list[str]]:
    """Rows of the count table: class, by the model, by you."""
    return [
        [cell.split()[0] for cell in row.locator("th, td").all_inner_texts()[:3]]
        for row in page.locator("#cells-numbers tbody tr").all()
    ]


def test_cells_are_reviewed_by_keyboard_and_corrections_survive(
    page: Page, inputs: dict[str, Path], tmp_path: Path
) -> None:
    fill_tab(page, "cells", inputs)
    tiles = page.locator("#cells-desk .tile")
    expect(tiles).to_have_count(42)
    expect(page.locator("#cells-bad li")).to_have_count(2)
    tiles.first.click()
    page.keyboard.press("3")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("7")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("u")
    page.keyboard.press("z")
    expect(page.locator("#cells-result")).to_contain_text("2 corrected")
    you = {code: by_you for code, _, by_you in numbers(page)}
    assert you["LYT"] == you["PMO"] == "1"
    page.locator("#cells-run").click()  # a second click changes nothing
    page.wait_for_timeout(1500)
    expect(page.locator("#cells-result")).to_contain_text("2 corrected")
    expect(tiles).to_have_count(42)
    page.get_by_label("Bahasa Indonesia").check()
    expect(page.locator("#cells-result")).to_contain_text("2 dikoreksi")
    page.reload()
    open_tab(page, "cells")
    expect(page.locator("#cells-result")).to_contain_text("2")
    expect(tiles).to_have_count(42)
    expect(page.locator("#cells-desk .tile b", has_text="✓")).to_have_count(2)
    page.locator("#cells-export").click()
    links = page.locator("#cells-exported a")
    expect(links.first).to_be_visible()
    with page.expect_download() as waiting:
        links.first.click()
    waiting.value.save_as(tmp_path / "cells.csv")
    rows = list(csv.DictReader((tmp_path / "cells.csv").open(encoding="utf-8-sig", newline="")))
    assert len(rows) == 44 and sum(bool(row["correction"]) for row in rows) == 2


def test_classes_that_the_model_lacks_are_counted_by_hand_and_by_correction(
    page: Page, inputs: dict[str, Path]
) -> None:
    fill_tab(page, "cells", inputs)
    page.get_by_role("button", name="Counted by hand").click()
    page.locator("#cells-hand").get_by_label("erythroblast", exact=True).fill("3")
    expect(page.locator("#cells-numbers tbody tr", has_text="erythroblast")).to_contain_text("3")
    page.locator("#cells-desk .large select").select_option("plasma cell")
    badge = page.locator("#cells-desk .tile b", has_text="plasma cell")
    expect(badge).to_have_css("background-color", "rgb(85, 85, 85)")
    expect(page.locator("#cells-numbers tbody tr", has_text="plasma cell")).to_contain_text("1")


def test_the_desk_filters_by_verdict_and_sorts_by_file(page: Page, inputs: dict[str, Path]) -> None:
    fill_tab(page, "cells", inputs)
    page.locator("#cells-desk").get_by_role("button", name="file").click()
    names = page.locator("#cells-desk .tile").evaluate_all("tiles => tiles.map(tile => tile.title)")
    assert names == sorted(names) and len(names) == 42
    page.locator("#cells-desk select[name=label]").select_option("EOS")
    shown = page.locator("#cells-desk .tile b").all_text_contents()  # rendered or not yet
    assert shown and set(shown) == {"EOS"} and len(shown) < 42


def test_a_missed_cell_of_a_field_is_added_by_a_click_and_by_keys_alone(
    page: Page, inputs: dict[str, Path]
) -> None:
    fill_tab(page, "field", inputs)
    tiles = page.locator("#field-desk .tile")
    before = tiles.count()
    page.locator("#field-desk .add").click()
    page.locator("#field-desk .canvas > img").click(position={"x": 30, "y": 30}, force=True)
    expect(tiles).to_have_count(before + 1)
    size = tiles.first.locator("b").evaluate("badge => parseFloat(getComputedStyle(badge).fontSize)")
    assert size >= 12
    tiles.first.focus()
    page.keyboard.press("a")
    frame, current = page.locator("#field-desk .spot"), page.locator("#field-desk .tile[aria-current]")
    expect(frame).to_be_focused()
    position = "e => [e.offsetLeft + e.offsetWidth / 2, e.offsetTop + e.offsetHeight / 2, e.offsetWidth]"
    x, y, side = frame.evaluate(position)
    for key in ("ArrowRight", "Shift+ArrowUp"):
        page.keyboard.press(key)
    moved = frame.evaluate(position)
    assert moved[:2] == pytest.approx([x + 0.1 * side, y - side], abs=2)
    page.keyboard.press("Enter")
    expect(tiles).to_have_count(before + 2)
    expect(current).to_be_focused()
    assert current.evaluate(position)[:2] == pytest.approx(moved[:2], abs=3)
    page.keyboard.press("3")
    expect(current.locator("b")).to_contain_text("LYT")
    page.locator("#field-merge").click()
    open_tab(page, "cells")
    expect(page.locator("#cells-desk .tile")).to_have_count(before + 2)


@pytest.mark.parametrize("watched", ["phone"], indirect=True)
def test_the_verdict_is_above_the_fold_on_a_phone(page: Page, inputs: dict[str, Path]) -> None:
    page.set_input_files("#cell-picture input[type=file]", inputs["cell"])
    verdict = page.locator("#cell-answer .answer h2")
    verdict.wait_for()
    page.evaluate("window.scrollTo(0, 0)")
    box = verdict.bounding_box()
    assert box["y"] + box["height"] <= SIZES["phone"][1]


@pytest.mark.parametrize("watched", SIZES, indirect=True)
def test_a_cell_is_cropped_out_of_a_photograph_by_keyboard_and_by_touch(
    page: Page, inputs: dict[str, Path]
) -> None:
    page.set_input_files("#cell-picture input[type=file]", inputs["field"])
    frame, answer = page.locator("#cell-crop .frame"), page.locator("#cell-answer .answer")
    frame.wait_for()
    expect(answer).to_contain_text("larger than one cell")
    frame.focus()
    start = frame.bounding_box()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "-"):
        page.keyboard.press(key)
    moved = frame.bounding_box()
    assert moved["x"] > start["x"] and moved["width"] < start["width"]
    page.keyboard.press("Enter")
    expect(answer).not_to_contain_text("larger than one cell")
    page.locator("#cell-crop .whole").click()
    expect(answer).to_contain_text("larger than one cell")
    ground = page.locator("#cell-crop .ground").bounding_box()
    page.locator("#cell-crop .ground").click(
        position={"x": 0.2 * ground["width"], "y": 0.2 * ground["height"]}
    )
    placed = frame.bounding_box()
    assert placed["x"] + placed["width"] / 2 == pytest.approx(ground["x"] + 0.2 * ground["width"], abs=3)
    page.locator("#cell-crop .cut").click()
    expect(answer).not_to_contain_text("larger than one cell")
    expect(page.locator("#cell-similar figure")).to_have_count(7)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violations(
    space: RunningSpace, browser: Browser, inputs: dict[str, Path], scheme: str
) -> None:
    context = browser.new_context(
        color_scheme=scheme, locale="en-US", viewport={"width": 1280, "height": 900}
    )
    page = context.new_page()
    visit(page, space.address, "en")
    found = {}
    for name in TABS:
        fill_tab(page, name, inputs)
        for _ in range(6):  # until the tab has settled: Gradio fades outputs that are being computed
            page.wait_for_timeout(1000)
            if not (rules := violations(page, THIRD_PARTY)):
                break
        else:
            found[name] = rules
    context.close()
    assert found == {}


@pytest.mark.parametrize("name", ["text.jpg", "truncated.jpg", "bomb.png", "animated.gif"])
def test_a_bad_picture_gets_its_sentence_on_the_page(page: Page, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(PICTURES[name][0]())
    page.set_input_files("#cell-picture input[type=file]", tmp_path / name)
    expect(page.locator("#cell-answer .bad")).to_be_visible()


def test_the_quiz_keeps_score_for_the_visit(page: Page) -> None:
    open_tab(page, "learn")
    page.locator("#learn-cell img").wait_for()
    for asked in (1, 2):
        page.locator("#learn-guess label").first.click()
        page.locator("#learn-check").click()
        expect(page.locator("#learn-score")).to_contain_text(f"of {asked} ")
        page.locator("#learn-check").click()  # a second check of the same cell does not count
        page.wait_for_timeout(300)
        expect(page.locator("#learn-score")).to_contain_text(f"of {asked} ")
        page.locator("#learn-next").click()
        expect(page.locator("#learn-verdict .answer")).to_have_count(0)


def test_the_keyboard_reaches_the_tabs_and_an_answer(page: Page) -> None:
    page.locator("#cell-examples button").nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#cell-answer .answer")).to_be_visible()
    page.get_by_role("tab", name="API").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#api-page summary").first).to_be_visible()


def test_a_broken_model_repo_is_a_page_that_says_so(
    browser: Browser, small_model: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "<b>broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((small_model / "config.json").read_bytes())
    with running(RunningSpace(["-m", "space", "--model", str(broken)], tmp_path / "space")) as space:
        page = browser.new_page(locale="id-ID")
        page.goto(space.address)
        reason = "<b>broken has no model.safetensors"
        expect(page.locator("#reason")).to_contain_text(reason)
        expect(page.locator("body")).to_contain_text("Space ini tidak memiliki model")
        page.close()
