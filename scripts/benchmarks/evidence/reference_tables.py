# SPDX-License-Identifier: Apache-2.0
"""Which settings does SAM have, and which arguments do the scripts take? Tables made from the dataclasses."""

from __future__ import annotations

import html
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
    default = "" if field.default in (None, MISSING) else f"<code>{_in_cell(str(field.default))}</code>"
    return [f"`{name}`", default, _in_cell(field.metadata["help"])]


def _in_cell(text: str) -> str:
    """Return a text that neither ends the cell of a table nor begins a tag."""
    return html.escape(text, quote=False).replace("|", "&#124;")
