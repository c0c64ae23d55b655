"""A Chromium and npm for the browser tests: the system's, or installed by `python -m runs.chromium`.

Chromium comes from Playwright's own download or, if that fails, from a package (as root on Debian or Ubuntu).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--use-fake-ui-for-media-stream"]
APT = "apt-get -qq update && apt-get -qq install -y --no-install-recommends "
MISSING = (
    "error: the browser tests need {0}, which could not be installed: install it (on Debian: apt-get install {0}), "
    "or skip those tests with make test BROWSER=no"
)


def find_chromium() -> str | None:
    """The path of a Chromium that starts: the system's, else Playwright's; None without one."""
    for path in filter(None, map(shutil.which, NAMES)):
        if starts(path):
            return path
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if starts(path) else None


def starts(path: str) -> bool:
    """False for Ubuntu's `chromium-browser` without its snap, or Playwright's browser without its shared libraries."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def apt(package: str) -> bool:
    """Try to install a package with apt; False if that needs root or there is no apt."""
    possible = os.geteuid() == 0 and shutil.which("apt-get") is not None
    if possible:
        run("sh", "-c", APT + package)
    return possible


def run(program: str, *arguments: str) -> None:
    print("installing for the browser tests:", Path(program).name, *arguments, flush=True)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([program, *arguments], env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, **quiet)


def main() -> int:
    """Find or install both and print the browser's path."""
    browser = find_chromium()
    if not browser:
        run(sys.executable, "-m", "playwright", "install", "chromium")
        browser = find_chromium() or (apt("chromium") and find_chromium())
    npm = shutil.which("npm") or (apt("npm") and shutil.which("npm"))
    for package, path in (("chromium", browser), ("npm", npm)):
        if not path:
            print(MISSING.format(package), file=sys.stderr)
            return 1
    print(f"browser: {browser}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
