"""The YAML front matter of a README.md: read for repo information, and validated before a push as on the Hub.

In: the text of a README.md. Out: its metadata, or what the Hub would refuse, one sentence each. Rules:
https://huggingface.co/docs/hub/model-cards, https://huggingface.co/docs/hub/spaces-config-reference.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

FRONT_MATTER = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
SPACE_CHOICES = {"sdk": ("gradio", "docker", "static", "streamlit"), "colorFrom": COLORS, "colorTo": COLORS}
RESULT_FIELDS = {"task": ("type",), "dataset": ("type", "name"), "metrics": ("type", "value")}
MOST_VALUES = 100_000  # of a card whose aliases are written out
TEXT_FIELDS = ("tags", "datasets", "metrics", "base_model", "license", "language")


def front_matter(text: str) -> Any:
    """What the YAML of a card says, None without any; ValueError when it cannot be read."""
    match = FRONT_MATTER.match(text)
    try:
        return yaml.safe_load(match[1]) if match else None
    except Exception as error:  # PyYAML passes on what int(), date(), a look-up or deep nesting raise
        raise ValueError(f"the metadata is not YAML: {error}") from None


def read_metadata(text: str) -> dict[str, Any]:
    """Metadata of a card as JSON can hold it; empty when there is none or it cannot be read."""
    try:
        ready = json.dumps(json_ready(front_matter(text), itertools.count()), ensure_ascii=False)
    except (ValueError, RecursionError):
        return {}
    data = json.loads(ready.encode(errors="replace"), parse_constant=lambda _: None)  # a NaN becomes null
    return data if isinstance(data, dict) else {}


def read_eval_results(text: str) -> list[dict[str, Any]]:
    """The entries of a `.eval_results/*.yaml`; ValueError for what the Hub would not show.

    https://github.com/huggingface/hub-docs/blob/main/eval_results.yaml
    """
    try:
        entries = json_ready(yaml.safe_load(text), itertools.count())
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from None
    for entry in entries if isinstance(entries, list) else [None]:
        dataset = entry.get("dataset") if isinstance(entry, dict) else None
        if not isinstance(dataset, dict) or not {"id", "task_id"} <= set(dataset) or "value" not in entry:
            raise ValueError("each entry needs dataset.id, dataset.task_id and value")
    return entries


def json_ready(value: Any, seen: Iterator[int]) -> Any:
    """YAML has dates and aliases, which JSON has not; ValueError when these unfold to too much."""
    if next(seen) > MOST_VALUES:
        raise ValueError(f"the metadata unfolds to more than {MOST_VALUES:,} values")
    if isinstance(value, dict):
        return {str(key): json_ready(item, seen) for key, item in value.items()}
    if isinstance(value, list):
        return [json_ready(item, seen) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def tags(metadata: dict[str, Any]) -> list[str]:
    """The tags that the Hub derives from a card, by which repos are found."""
    found = [*as_list(metadata.get("tags")), metadata.get("library_name"), metadata.get("pipeline_tag")]
    for key, prefix in (("license", "license"), ("datasets", "dataset"), ("base_model", "base_model")):
        found += [f"{prefix}:{value}" for value in as_list(metadata.get(key))]
    return list(dict.fromkeys(str(tag) for tag in found if tag))


def check(text: str, repo_type: str) -> tuple[list[str], list[str]]:
    """(errors, warnings) for the card of a `model`, `dataset` or `space`."""
    try:
        data = front_matter(text)
    except ValueError as error:
        return [str(error)], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ["the metadata must be a mapping of names to values"], []
    wrong = [key for key in TEXT_FIELDS if not all(isinstance(item, str) for item in as_list(data.get(key)))]
    errors = [f'"{key}" must be a string or a list of strings' for key in wrong]
    if repo_type == "space":
        given = {"sdk": None, "colorFrom": "red", "colorTo": "red", **data}
        wrong = [key for key, known in SPACE_CHOICES.items() if given[key] not in known]
        errors += [f'"{key}" must be one of {", ".join(SPACE_CHOICES[key])}' for key in wrong]
        if len(str(data.get("short_description", ""))) > 60:
            errors.append('"short_description" must be at most 60 characters long')
    return errors + check_model_index(data.get("model-index")), []


def check_model_index(index: Any) -> list[str]:
    """`model-index`: [{name, results: [{task: {type}, dataset: {type, name}, metrics: [{type, value}]}]}]."""
    errors = []
    for model in as_list(index):
        if not isinstance(model, dict) or "name" not in model or not isinstance(model.get("results"), list):
            return ['"model-index" must be a list of models, each with a "name" and a list of "results"']
        for number, result in enumerate(model["results"]):
            for part, keys in RESULT_FIELDS.items():
                items = as_list(result.get(part) if isinstance(result, dict) else None) or [{}]
                given = [item if isinstance(item, dict) else {} for item in items]
                if any(item.get(key) is None for item in given for key in keys):
                    errors.append(f'"model-index" result {number}: "{part}" needs {" and ".join(keys)}')
    return errors
