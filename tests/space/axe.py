"""axe-core, the accessibility rules of the browser tests: from the npm registry, pinned, kept in the user's cache."""

from __future__ import annotations

import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

from playwright.sync_api import Page

VERSION = "4.14.1"
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}


def script() -> str:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / f"axe-core-{VERSION}.js"
    if not cache.is_file():
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            command = ["npm", "pack", "--silent", f"axe-core@{VERSION}", "--pack-destination", folder]
            subprocess.run(command, check=True, capture_output=True)
            with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
                cache.write_bytes(archive.extractfile("package/axe.min.js").read())
    return cache.read_text("utf-8")


def violations(page: Page, outside: list[str]) -> list[str]:
    """What axe finds on the page: rule, element. `outside` are selectors of what is not ours."""
    if not page.evaluate("typeof window.axe === 'object'"):
        page.evaluate(script())
    found = page.evaluate(
        "([rules, outside]) => axe.run({exclude: outside.map(one => [one])}, rules)", [RULES, outside]
    )
    return [f"{rule['id']}: {node['html'][:160]}" for rule in found["violations"] for node in rule["nodes"]]
