"""A real Chromium: the system's when there is one, else Playwright's own download."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

from runs.chromium import FLAGS, find_chromium


@contextmanager
def chromium() -> Iterator[Browser]:
    """Launch it headless. Fails, never skips, when there is none: `python -m runs.chromium` installs one."""
    found = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
