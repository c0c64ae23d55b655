"""README.md and bench/README.md: generated figures, files that exist, and limits on their size."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runs.readme import BENCH, README, ROOT, filled

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), BENCH, ROOT / "tests" / "FAULTS.md"]


@pytest.mark.parametrize(("page", "lines"), [(README, 180), (BENCH, 120)], ids=["README", "bench"])
def test_figures_are_those_of_their_files_and_the_page_stays_short(page: Path, lines: int) -> None:
    text = page.read_text()
    assert filled(text) == text, "run python -m runs.readme"
    assert len(text.splitlines()) <= lines


def test_every_relative_link_leads_to_a_file() -> None:
    links = [
        (page, link) for page in PAGES for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    ]
    assert len(links) > 15
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []


def test_the_screenshot_is_small() -> None:
    assert 10_000 < (ROOT / "docs" / "screenshot.png").stat().st_size <= 200_000
