"""axe-core, the accessibility rules of the browser tests."""

from __future__ import annotations

from playwright.sync_api import Page

from space.static_space import fetch_npm

VERSION = "4.14.1"
SHA256 = {"axe.min.js": "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"}
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}


def violations(page: Page, outside: list[str]) -> list[str]:
    """The violations that axe finds on the page, "rule: element". `outside`: selectors of elements to leave out."""
    if not page.evaluate("typeof window.axe === 'object'"):
        page.evaluate((fetch_npm("axe-core", VERSION, SHA256) / "axe.min.js").read_text("utf-8"))
    found = page.evaluate(
        "([rules, outside]) => axe.run({exclude: outside.map(one => [one])}, rules)", [RULES, outside]
    )
    return [f"{rule['id']}: {node['html'][:160]}" for rule in found["violations"] for node in rule["nodes"]]
