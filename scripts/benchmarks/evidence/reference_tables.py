# SPDX-License-Identifier: Apache-2.0
"""Which settings does SAM have, and which arguments do the scripts take? Tables made from the dataclasses."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from hf_sam import SAMConfig
from scripts.benchmarks.evidence.pages import markdown
from scripts.common.arguments import ScriptArguments


def settings(results: Path) -> list[str]:
    """Return the fields of `SAMConfig`; `results` is not used."""
    del results
    return markdown(["field", "default", "meaning"], [_row(field, field.name) for field in fields(SAMConfig)])


def arguments(results: Path) -> list[str]:
    """Return the arguments of `finetune.py` beside those of `SAMTrainingArguments`; `results` is not used."""
    del results
    rows = [_row(field, f"--{field.name}") for field in fields(ScriptArguments)]
    return markdown(["argument", "default", "meaning"], rows)


def _row(field: Field[Any], name: str) -> list[str]:
    default = "" if field.default in (None, MISSING) else f"`{field.default}`"
    return [f"`{name}`", _escaped(default), _escaped(field.metadata["help"])]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
