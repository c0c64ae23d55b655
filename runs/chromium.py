"""A Chromium for the browser tests: the system's, or one installed by `python -m runs.chromium`.

Playwright's own download comes first; where that is out of reach, root on Debian or Ubuntu gets the package `chromium`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--use-fake-ui-for-media-stream"]


def find_chromium() -> str | None:
    """The path of a Chromium on this machine: the system's, else Playwright's; None without one."""
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return found
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).is_file() else None


def install() -> str | None:
    """Install a Chromium and return its path; None where neither way works."""
    commands = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        commands += [
            ["sh", "-c", "apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium"]
        ]
    for command in commands:
        print("installing a Chromium for the browser tests:", command[-1], flush=True)
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if found := find_chromium():
            return found
    return None


def main() -> int:
    """Find or install a Chromium and print its path."""
    found = find_chromium() or install()
    if found is None:
        print(
            "error: the browser tests need a Chromium, and none could be downloaded: install one (on Debian: apt-get install "
            "chromium), or leave those tests out with make test BROWSER=no",
            file=sys.stderr,
        )
        return 1
    print(f"browser: {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
