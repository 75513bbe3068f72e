# SPDX-License-Identifier: Apache-2.0
"""Which model cards would the Hub refuse? Its rules for the front matter, without the network.

The rules are those of `hub-docs`' modelcard.md and of huggingface_hub's own classes, which read a card strictly.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")  # of a model or a data set on the Hub
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")


def card_errors(text: str) -> list[str]:
    """Return what is wrong with a card, nothing for one that the Hub takes."""
    found = _FRONT.match(text)
    if found is None:
        return ["no front matter"]
    try:
        data = yaml.safe_load(found[1])
        ModelCard(text, ignore_metadata_errors=False)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        return [f"the front matter cannot be read: {error}"]
    errors = [*_lists(data), *_names(data)]
    for entry in data.get("model-index") or []:
        errors += _entry(entry)
    return errors


def _lists(data: dict[str, Any]) -> list[str]:
    errors = []
    for key in ("tags", "metrics", "datasets", "language"):
        value = data.get(key)
        if value is not None and not (isinstance(value, list) and value and all(isinstance(v, str) for v in value)):
            errors.append(f"{key} must be a list of texts, got {value!r}")
    for key in ("license", "pipeline_tag", "library_name"):
        if key in data and not isinstance(data[key], str):
            errors.append(f"{key} must be a text, got {data[key]!r}")
    return errors


def _names(data: dict[str, Any]) -> list[str]:
    base = data.get("base_model")
    names = [("base_model", name) for name in (base if isinstance(base, list) else [base] if base else [])]
    names += [("datasets", name) for name in data.get("datasets") or []]
    errors = [f"{key}: {name!r} is no name on the Hub" for key, name in names if not _NAME.fullmatch(str(name))]
    return errors + [f"language: {name!r}" for name in data.get("language") or [] if not _LANGUAGE.fullmatch(str(name))]


def _entry(entry: dict[str, Any]) -> list[str]:
    if not isinstance(entry.get("name"), str) or not entry["name"]:
        return ["model-index: name is required"]
    if not isinstance(entry.get("results"), list):
        return ["model-index: results must be a list"]
    errors = [error for result in entry["results"] for error in _result(result)]
    if entry["results"] and not errors:
        model_index_to_eval_results([entry])
    return errors


def _result(result: dict[str, Any]) -> list[str]:
    errors = []
    for part, key in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
        if not isinstance(result.get(part, {}).get(key), str):
            errors.append(f"model-index: {part}.{key} is required and a text")
    if "args" in result.get("dataset", {}) and not isinstance(result["dataset"]["args"], dict):
        errors.append("model-index: dataset.args must be an object")
    if not result.get("metrics"):
        errors.append("model-index: metrics are required")
    for metric in result.get("metrics", []):
        value = metric.get("value")
        if not isinstance(metric.get("type"), str):
            errors.append("model-index: metric.type is required")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            errors.append(f"model-index: {metric.get('type')} has the value {value!r}")
    return errors
