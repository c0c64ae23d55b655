"""A repo of its own for every test of the local Hub."""

import uuid

import pytest
from huggingface_hub import HfApi


@pytest.fixture
def name(owner: str) -> str:
    return HfApi().create_repo(f"{owner}/repo-{uuid.uuid4().hex[:8]}").repo_id
