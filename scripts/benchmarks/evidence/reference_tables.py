# SPDX-License-Identifier: Apache-2.0
"""Which settings does SAM have, and which arguments do the scripts take? Tables made from the dataclasses."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from functools import partial
from pathlib import Path
from typing import Any

from hf_sam import SAMConfig
from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.help_text import SAM, group_names
from scripts.benchmarks.evidence.pages import markdown


def settings(results: Path) -> list[str]:
    """Return the fields of `SAMConfig`; `results` is not used."""
    del results
    return markdown(["field", "default", "meaning"], [_row(field, field.name) for field in fields(SAMConfig)])


def arguments() -> dict[str, Callable[[Path], list[str]]]:
    """Return the tables of `hf-sam finetune`'s arguments beside the Trainer's and SAM's, a group of its help each."""
    return {
        f"arguments {title}": partial(_arguments, names=names) for title, names in group_names().items() if title != SAM
    }


def _arguments(results: Path, *, names: list[str]) -> list[str]:
    del results
    rows = [_row(field, f"--{field.name}") for field in fields(ScriptArguments) if field.name in names]
    return markdown(["argument", "default", "meaning"], rows)


def _row(field: Field[Any], name: str) -> list[str]:
    default = "" if field.default in (None, MISSING) else f"<code>{_in_cell(str(field.default))}</code>"
    return [f"`{name}`", default, _in_cell(field.metadata["help"])]


def _in_cell(text: str) -> str:
    """Return a text that neither ends the cell of a table nor begins a tag."""
    return html.escape(text, quote=False).replace("|", "&#124;")
