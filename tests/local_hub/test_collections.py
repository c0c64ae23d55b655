"""Collections and evaluation results, through the real client."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from huggingface_hub import EvalResultEntry, HfApi, eval_result_entries_to_yaml
from huggingface_hub.errors import HfHubHTTPError

api = HfApi()


@pytest.fixture
def title() -> str:
    return f"Cells {uuid.uuid4().hex[:8]}"


def test_a_collection_is_created_filled_and_read_without_duplicates(owner, name, title):
    created = api.create_collection(title, description="three repos", private=True)
    assert created.slug.startswith(f"{owner}/cells-")
    api.add_collection_item(created.slug, name, "model", note="the model")
    for again in (
        lambda **options: api.create_collection(title, **options),
        lambda **options: api.add_collection_item(created.slug, name, "model", **options),
    ):
        with pytest.raises(HfHubHTTPError, match="409"):
            again()
        assert again(exists_ok=True).slug == created.slug
    with pytest.raises(HfHubHTTPError, match="404"):
        api.add_collection_item(created.slug, f"{name}-missing", "model")
    collection = api.get_collection(created.slug)
    assert (collection.title, collection.private, collection.description) == (title, True, "three repos")
    items = [(item.item_id, item.item_type, item.note) for item in collection.items]
    assert items == [(name, "model", "the model")]


def test_no_item_is_lost_when_many_are_added_at_once(owner, title):
    slug = api.create_collection(title).slug
    names = [api.create_repo(f"{owner}/item-{uuid.uuid4().hex[:8]}").repo_id for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: api.add_collection_item(slug, name, "model"), names))
    assert {item.item_id for item in api.get_collection(slug).items} == set(names)


def test_a_private_collection_or_item_is_hidden_from_others(users):
    anna, budi, _ = users
    anna.create_repo("anna/secret", private=True)
    budi.create_repo("budi/open")
    hidden = anna.create_collection("hidden", private=True).slug
    shown = anna.create_collection("shown", private=False).slug
    anna.add_collection_item(shown, "anna/secret", "model")
    with pytest.raises(HfHubHTTPError, match="404"):
        budi.get_collection(hidden)
    assert budi.get_collection(shown).items == []
    for attempt in (
        lambda: budi.create_collection("Mine", namespace="anna"),
        lambda: budi.add_collection_item(shown, "budi/open", "model"),
    ):
        with pytest.raises(HfHubHTTPError, match="403"):
            attempt()
    assert len(anna.get_collection(shown).items) == 1


def test_evaluation_results_of_a_model_are_read_by_the_client(name):
    entry = EvalResultEntry("a/cells", "image-classification", 0.856, notes="macro-F1 0.851")
    files = {"right": yaml.dump(eval_result_entries_to_yaml([entry])), "wrong": "- value: 1\n"}
    for file, text in files.items():
        path = f".eval_results/{file}.yaml"
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo=path, repo_id=name)
    assert api.model_info(name, expand=["evalResults"]).eval_results == [entry]
