"""One small model, one small dataset and one running Space for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from dataset_script.synthetic_cells import draw_cell
from tests.space.browser import chromium
from tests.space.running import RunningSpace, of_repos, running
from tests.space.small_dataset_repo import build


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dataset repo of synthetic cells: 42 train, 14 validation, 28 test."""
    return build(tmp_path_factory.mktemp("dataset") / "repo", {"train": 6, "validation": 2, "test": 4})


@pytest.fixture(scope="session")
def space(
    small_model: Path, small_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningSpace]:
    """The running Space over both."""
    with running(of_repos(small_model, small_dataset, tmp_path_factory.mktemp("space"))) as space:
        yield space


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def cell_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn promyelocyte as a JPEG."""
    path = tmp_path_factory.mktemp("cell") / "cell.jpg"
    draw_cell("PMO", 77).save(path, quality=90)
    return path
