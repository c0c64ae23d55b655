"""A real Chromium: the system's if there is one, else Playwright's own download."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, expect, sync_playwright

from runs.chromium import FLAGS, find_chromium

TIMEOUT_MS = 120_000  # timeout in milliseconds, for loaded machines
expect.set_options(timeout=TIMEOUT_MS)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Launch Chromium headless. Fails if there is none: `python -m runs.chromium` installs it."""
    path = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
