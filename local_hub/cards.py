"""The YAML metadata of repo cards (README.md): read for repo info, and validated before a push as on the Hub.

Rules:
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
MAX_VALUES = 100_000  # of a card, once its aliases are expanded
TEXT_FIELDS = ("tags", "datasets", "metrics", "base_model", "license", "language")


def front_matter(text: str) -> Any:
    """The parsed YAML of a card, None without any; ValueError if it cannot be parsed."""
    match = FRONT_MATTER.match(text)
    try:
        return yaml.safe_load(match[1]) if match else None
    except Exception as error:  # int(), date(), look-ups and deep nesting raise their own inside PyYAML
        raise ValueError(f"the metadata is not YAML: {error}") from None


def read_metadata(text: str) -> dict[str, Any]:
    """The metadata of a card as JSON can represent it; empty if there is none or it cannot be parsed."""
    try:
        encoded = json.dumps(json_ready(front_matter(text), itertools.count()), ensure_ascii=False)
    except (ValueError, RecursionError):
        return {}
    data = json.loads(encoded.encode(errors="replace"), parse_constant=lambda _: None)  # a NaN becomes null
    return data if isinstance(data, dict) else {}


def read_eval_results(text: str) -> list[dict[str, Any]]:
    """The entries of a `.eval_results/*.yaml`; ValueError if the Hub would not show them.

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


def json_ready(value: Any, counter: Iterator[int]) -> Any:
    """Convert what JSON lacks (dates, keys that are not strings); ValueError if aliases expand to too many values."""
    if next(counter) > MAX_VALUES:
        raise ValueError(f"the metadata unfolds to more than {MAX_VALUES:,} values")
    if isinstance(value, dict):
        return {str(key): json_ready(item, counter) for key, item in value.items()}
    if isinstance(value, list):
        return [json_ready(item, counter) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def tags(metadata: dict[str, Any]) -> list[str]:
    """The tags that the Hub derives from a card and filters repos by."""
    values = [*as_list(metadata.get("tags")), metadata.get("library_name"), metadata.get("pipeline_tag")]
    for key, prefix in (("license", "license"), ("datasets", "dataset"), ("base_model", "base_model")):
        values += [f"{prefix}:{value}" for value in as_list(metadata.get(key))]
    return list(dict.fromkeys(str(tag) for tag in values if tag))


def validate(text: str, repo_type: str) -> tuple[list[str], list[str]]:
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
        values = {"sdk": None, "colorFrom": "red", "colorTo": "red", **data}
        for key, choices in SPACE_CHOICES.items():
            if values[key] not in choices:
                errors.append(f'"{key}" must be one of {", ".join(choices)}')
        if len(str(data.get("short_description", ""))) > 60:
            errors.append('"short_description" must be at most 60 characters long')
    return errors + validate_model_index(data.get("model-index")), []


def validate_model_index(index: Any) -> list[str]:
    """`model-index`: [{name, results: [{task: {type}, dataset: {type, name}, metrics: [{type, value}]}]}]."""
    errors = []
    for model in as_list(index):
        if not isinstance(model, dict) or "name" not in model or not isinstance(model.get("results"), list):
            return ['"model-index" must be a list of models, each with a "name" and a list of "results"']
        for number, result in enumerate(model["results"]):
            for field, keys in RESULT_FIELDS.items():
                items = as_list(result.get(field) if isinstance(result, dict) else None) or [{}]
                if any(not isinstance(item, dict) or item.get(key) is None for item in items for key in keys):
                    errors.append(f'"model-index" result {number}: "{field}" needs {" and ".join(keys)}')
    return errors
