"""Sentences of the model card."""

from __future__ import annotations

from hub_model.card import confusions_text, recipe

METRICS = {
    "dataset": {"id": None, "revision": "abc", "splits": {"train": 10}},
    "model": {"best_epoch": 0},
    "training": {"epochs_trained": 1, "pretrained": None, "init_from": None, "teachers": [], "recipe": {}},
}


def test_the_confusion_matrix_is_summarized_most_frequent_first():
    part = {"confusion_matrix": [[8, 2, 0], [0, 10, 0], [3, 1, 6]]}
    assert confusions_text(part, ["A", "B", "<C>"]) == (
        "Most frequent confusions: 3 of 10 &lt;C> are classified as A; 2 of 10 A are classified as B; "
        "1 of 10 &lt;C> are classified as B."
    )
    assert confusions_text(part, ["A", "B", "C"], top=1) == (
        "Most frequent confusions: 3 of 10 C are classified as A."
    )


def test_a_model_without_confusions_is_described_as_such():
    assert confusions_text({"confusion_matrix": [[2, 0], [0, 3]]}, ["A", "B"]).startswith("No image")


def test_the_recipe_names_start_and_teacher_so_that_a_reader_can_find_them():
    assert "- Initialization: random weights." in recipe(METRICS)
    teachers = [
        {"name": "teacher", "architecture": "efficientnet_lite0"},
        {"name": "someone/theirs", "architecture": "vit_small"},
    ]
    text = recipe(METRICS | {"training": METRICS["training"] | {"init_from": "run", "teachers": teachers}})
    assert "- Initialization: the unpublished run `run`." in text
    assert (
        "- Teachers (knowledge distillation): efficientnet_lite0 (the unpublished run `teacher`), "
        "vit_small ([someone/theirs](https://huggingface.co/someone/theirs))."
    ) in text
