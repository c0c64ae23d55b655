"""A Chromium for the browser tests: the system's, or one installed by `python -m runs.chromium`.

Playwright's own download comes first; where that is out of reach, root on Debian or Ubuntu gets the package `chromium`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--use-fake-ui-for-media-stream"]
APT = "apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium"
MISSING = (
    "error: the browser tests need a Chromium, and none could be installed: install one (on Debian: apt-get install chromium), "
    "or leave those tests out with make test BROWSER=no"
)


def find_chromium() -> str | None:
    """The path of a Chromium that starts on this machine: the system's, else Playwright's; None without one."""
    for path in filter(None, map(shutil.which, NAMES)):
        if starts(path):
            return path
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if starts(path) else None


def starts(path: str) -> bool:
    """Whether a program runs here: Ubuntu's `chromium-browser` may stand for a snap, Playwright's lack shared libraries."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def install() -> str | None:
    """Install a Chromium and return its path; None where neither way works."""
    commands = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        commands.append(["sh", "-c", APT])
    for command in commands:
        print("installing a Chromium for the browser tests:", " ".join(command[1:]), flush=True)
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if found := find_chromium():
            return found
    return None


def main() -> int:
    """Find or install a Chromium and print its path."""
    found = find_chromium() or install()
    print(f"browser: {found}" if found else MISSING, file=sys.stdout if found else sys.stderr)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
