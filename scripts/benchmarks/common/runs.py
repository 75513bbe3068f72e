# SPDX-License-Identifier: Apache-2.0
"""Where is the result of one run of a grid kept? A JSON file each, written whole."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from hf_sam.cli.common.errors import UserError, one_line


class Cell(NamedTuple):
    """One run."""

    task: str
    method: str
    seed: int

    @property
    def file(self) -> str:
        """The name of its file."""
        words = [re.sub(r"[^A-Za-z0-9.]+", "-", name) for name in (self.task, self.method)]
        return f"{'_'.join(words)}_{self.seed}.json"


def write_run(folder: Path, cell: Cell, row: dict[str, Any]) -> None:
    """Write one file, whole or not at all, also where the process is killed.

    Raises:
        UserError: if it cannot be written.
    """
    path = folder / cell.file
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in row.items()]  # a key a line, for diffs
        partial.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"the result of {cell} cannot be written: {one_line(error)}") from error


def read_run(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """Return one run, None if it has not ended yet."""
    path = folder / cell.file
    return _read(path, cell) if path.exists() else None


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """Return all runs in a folder, none if there is no folder.

    Raises:
        UserError: if a file holds no run, or the runs of one task were scored by different metrics.
    """
    rows = [_read(path) for path in sorted(folder.glob("*.json"))]
    metrics: dict[str, str] = {}
    for row in rows:
        metric = row.get("metric", "")
        if metrics.setdefault(row["task"], metric) != metric:
            raise UserError(f"{folder}: the runs of {row['task']} have both {metrics[row['task']]} and {metric}.")
    return rows


def _read(path: Path, wanted: Cell | None = None) -> dict[str, Any]:
    try:
        row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        cell = Cell(row["task"], row["method"], row["seed"])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no run of a grid: remove it, and it is done again.") from error
    if cell.file != path.name or wanted not in (None, cell):
        raise UserError(f"{path} holds the run {tuple(cell)}: names of a grid must differ by letters or digits.")
    return row
