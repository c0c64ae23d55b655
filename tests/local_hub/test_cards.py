"""Odd card metadata never breaks the info of its repo, or a list of repos."""

import pytest
from huggingface_hub import HfApi

from local_hub.cards import read_metadata
from tests.local_hub.raw_requests import add, http, post_commit

api = HfApi()


@pytest.mark.parametrize(
    "line",
    [
        "score: .nan",
        "library_name: 2024-01-01",
        'x: "\\ud800"',
        "d: 2024-99-99",
        "x: !!bool maybe",
        "x: 1" + ":1" * 300 + ".5",
        "x: " + "9" * 5000,
        "x: 0x" + "f" * 5000,
        "x: " + "[" * 1000,
        "x:\n" + "- " * 600 + "y",
        "x: &x [*x]",
    ],
)
def test_no_card_breaks_its_repo_or_a_list(hub, owner, name, line):
    card = f"---\n{line}\n---\n"
    assert post_commit(hub.endpoint, name, add("README.md", card)).status_code == 200
    assert api.model_info(name).id == name
    assert name in [model.id for model in api.list_models(author=owner)]
    assert "errors" in http.post(f"{hub.endpoint}/api/validate-yaml", json={"content": card}).json()


def test_metadata_is_converted_to_json():
    card = '---\na: [.nan, -.inf, 1.5]\n2024-01-01: 2024-01-02\nb: "\\ud800"\n---\n'
    assert read_metadata(card) == {"a": [None, None, 1.5], "2024-01-01": "2024-01-02", "b": "?"}


def test_a_card_whose_aliases_expand_to_billions_of_values_has_no_metadata():
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 1}]" for i in range(12))
    assert read_metadata(f"---\n{levels}\n---\n") == {}
    assert read_metadata("---\na: &a [1]\nb: *a\n---\n") == {"a": [1], "b": [1]}
