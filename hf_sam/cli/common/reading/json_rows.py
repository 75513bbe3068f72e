# SPDX-License-Identifier: Apache-2.0
"""How does a json file become columns? Lines of objects, a list of them, a list under one key, or lists by column."""

from __future__ import annotations

import json
from typing import Any

from hf_sam.cli.common.errors import UserError

Columns = dict[str, list[Any]]
_MISSING = None


def read_json(text: str, where: str, *, lines: bool = False) -> tuple[Columns, list[str]]:
    """Return the columns by name, and what there is to say about how they were read.

    Objects inside of a row become columns of their own: {"review": {"text": ...}} is the column review.text.
    """
    if not text.strip():
        raise UserError(f"{where} is empty: at least one row is needed.")
    notes: list[str] = []
    rows: Any
    if lines:
        rows = _lines(text, where)
    else:
        try:
            rows = json.loads(text, object_pairs_hook=_unique)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise UserError(f"{where} cannot be read: {error}.") from error
            rows = _lines(text, where)  # called json, but one object a line
        except ValueError as error:
            raise UserError(f"{where} cannot be read: {error}") from error
    if isinstance(rows, dict):
        rows, notes = _table(rows, where)
    if not rows:
        raise UserError(f"{where} is empty: at least one row is needed.")
    return _columns(rows, where), notes


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name given twice in one object, of which the json module would take the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the field {twice!r} twice.")
    return found


def _lines(text: str, where: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line, object_pairs_hook=_unique))
        except json.JSONDecodeError as error:
            raise UserError(f"{where} cannot be read, line {number}: {error.msg} (column {error.colno}).") from error
        except ValueError as error:
            raise UserError(f"{where} cannot be read, line {number}: {error}") from error
    if len(rows) == 1 and isinstance(rows[0], list):
        return rows[0]
    return rows


def _table(content: dict[str, Any], where: str) -> tuple[list[Any], list[str]]:
    """Return the rows inside of one object: a list of objects under some key, or one list (or object) a column."""
    tables = [key for key, value in content.items() if isinstance(value, list) and value and _is_row(value[0])]
    if len(tables) == 1:
        return content[tables[0]], [f"rows read from its field {tables[0]!r}"]
    if len(tables) > 1:
        raise UserError(f"{where} holds several lists of rows ({', '.join(tables)}): write the one you mean to a file.")
    values = list(content.values())
    if (
        values
        and all(isinstance(value, dict) for value in values)
        and all(v.keys() == values[0].keys() for v in values)
    ):
        values, columns = [list(value.values()) for value in values], "index"  # as pandas writes it
    else:
        columns = "list"
    if values and all(isinstance(value, list) for value in values) and len({len(value) for value in values}) == 1:
        return [dict(zip(content, row, strict=True)) for row in zip(*values, strict=True)], []
    if columns == "list" and not any(isinstance(value, (list, dict)) for value in values):
        return [content], []  # a single row
    raise UserError(f"{where} holds no rows: a list of objects, or one object a line, is needed.")


def _is_row(value: Any) -> bool:
    return isinstance(value, dict)


def _columns(rows: list[Any], where: str) -> Columns:
    columns: Columns = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{where}, row {number}: an object with named fields is needed, got {row!r:.60}.")
        for name, value in _flat(row).items():
            # A field that earlier rows lack is missing there.
            columns.setdefault(name, [_MISSING] * number).append(value)
        for values in columns.values():
            if len(values) == number:
                values.append(_MISSING)
    return columns


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
