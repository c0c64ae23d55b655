"""What the browser tests need, a Chromium and npm: the system's, or installed by `python -m runs.chromium`.

Of Chromium, Playwright's own download comes first; what is out of reach, root on Debian or Ubuntu gets as a package.
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


def install_chromium() -> str | None:
    """Install a Chromium and return its path; None where neither way works."""
    run("-m", "playwright", "install", "chromium", program=sys.executable)
    return find_chromium() or (apt("chromium") and find_chromium())


def apt(package: str) -> bool:
    """Install a package with apt, as root; whether that was tried."""
    possible = os.geteuid() == 0 and shutil.which("apt-get") is not None
    if possible:
        run("-c", APT + package, program="sh")
    return possible


def run(*arguments: str, program: str) -> None:
    print("installing for the browser tests:", Path(program).name, *arguments, flush=True)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([program, *arguments], env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, **quiet)


def main() -> int:
    """Find or install both and print the browser's path."""
    browser = find_chromium() or install_chromium()
    npm = shutil.which("npm") or (apt("npm") and shutil.which("npm"))
    for package, found in (("chromium", browser), ("npm", npm)):
        if not found:
            print(MISSING.format(package), file=sys.stderr)
            return 1
    print(f"browser: {browser}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
