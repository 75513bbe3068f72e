# SPDX-License-Identifier: Apache-2.0
"""What number does the model see for each label? And which rows have none?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hf_sam.cli.common.data import rows_text
from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.cli.common.problem import Problem, describe
from hf_sam.cli.common.reading.tables import Table

_TRUE, _FALSE = {"1", "true", "1.0"}, {"0", "false", "0.0", ""}


def label_values(
    table: Table, columns: Sequence[str], *, optional: bool = False, empty: bool = False
) -> list[Any] | None:
    """Return the labels as they stand in the rows; with several columns the names of those that are 1.

    None where labels are optional, as in a set to predict on, and no row has one. With `empty` a row may have no label
    of several that it could have.

    Raises:
        UserError: if rows lack their label.
    """
    missing = [name for name in columns if name not in table.names]
    if missing and optional:
        return None
    if missing:
        raise UserError(
            f"{table.where} has no column {missing[0]!r}; it has {one_line(', '.join(table.names), 200)} "
            "(--label_column names another)."
        )
    if len(columns) > 1:
        return _from_columns(table, columns)
    values = table.values(columns[0])
    without = [row for row, value in enumerate(values) if _is_missing(value)]
    if optional and len(without) == len(values):
        return None
    if empty:
        return [[] if _is_missing(value) else value for value in values]
    if without:
        raise UserError(
            f"{table.where}, {rows_text(without)}: {columns[0]!r} is missing or NaN: fill it in or remove the row "
            "(--problem multilabel: a row may have no label)."
        )
    return list(values)


def _from_columns(table: Table, columns: Sequence[str]) -> list[list[str]]:
    labels: list[list[str]] = [[] for _ in range(len(table))]
    for name in columns:
        for row, value in enumerate(table.values(name)):
            text = str(value).strip().lower()
            if text not in _TRUE | _FALSE or value is None:
                raise UserError(f"{table.where}, row {row}: {name!r} must be 0 or 1 (or true, false), got {value!r}.")
            if text in _TRUE:
                labels[row].append(name)
    return labels


def encode(values: Sequence[Any], problem: Problem, where: str) -> list[Any]:
    """Return class numbers, rows of 0 and 1, or numbers, for the classes of the training data.

    Raises:
        UserError: if there are classes that the training data lack, or a number is none.
    """
    if problem.kind == "regression":
        return _numbers(values, problem, where)
    numbers = {name: number for number, name in enumerate(problem.names)}
    entries = [_entries(value, problem) for value in values]
    unknown = Counter(name for names in entries for name in names if name not in numbers)
    if unknown:
        row = next(row for row, names in enumerate(entries) if any(name not in numbers for name in names))
        listed = one_line(", ".join(f"{name!r} ({count:,})" for name, count in unknown.most_common(8)), 150)
        known = one_line(", ".join(problem.names), 150)
        raise UserError(
            f"{where}, row {row}: labels that the training data lack: {listed}; there are {known}: "
            "correct them, remove the rows, or add such rows to the training data."
        )
    if problem.kind == "classification":
        return [numbers[names[0]] for names in entries]
    rows = [[0.0] * len(numbers) for _ in entries]
    for there, names in zip(rows, entries, strict=True):
        for name in names:
            there[numbers[name]] = 1.0
    return rows


def _entries(value: Any, problem: Problem) -> list[str]:
    try:
        return problem.entries(value)
    except (ValueError, TypeError, OverflowError):  # a name where the training data have numbers
        return [describe(value)]


def _numbers(values: Sequence[Any], problem: Problem, where: str) -> list[float]:
    found = [problem.number(value) for value in values]
    for row, number in enumerate(found):
        if not abs(number) < float("inf"):
            raise UserError(f"{where}, row {row}: a number is needed for regression, got {describe(values[row])!r}.")
    return found


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value != value
