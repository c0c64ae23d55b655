"""A separate repo for each test of the local Hub, and a Hub with two users."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from local_hub import LocalHub
from tests.local_hub.raw_requests import authorization


@pytest.fixture
def name(owner: str) -> str:
    return HfApi().create_repo(f"{owner}/repo-{uuid.uuid4().hex[:8]}").repo_id


@pytest.fixture
def headers(hub: LocalHub) -> dict[str, str]:
    return authorization(hub.token)


@pytest.fixture
def users(tmp_path: Path) -> Iterator[tuple[HfApi, HfApi, HfApi]]:
    """The clients of anna, of budi and of someone without a token, on a Hub of their own."""
    with LocalHub(tmp_path / "hub", tokens={"hf_anna": "anna", "hf_budi": "budi"}) as hub:
        yield tuple(HfApi(hub.endpoint, token=token) for token in ("hf_anna", "hf_budi", False))
