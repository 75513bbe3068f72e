# SPDX-License-Identifier: Apache-2.0
"""How does a csv or tsv file become columns? Every record has to have as many fields as the header."""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from dataclasses import dataclass

from hf_sam.cli.common.errors import UserError, one_line

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_NAMED = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "bar": "|", "pipe": "|"}
_NONE = "\x1f"  # separates nothing: for a file of a single column
Columns = dict[str, list[str]]

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # texts of more than 128 KB are texts


@dataclass
class _Reading:
    """One way to read the file."""

    records: list[list[str]]
    fault: str | None  # why it cannot be that one


def read_separated(text: str, where: str, separator: str | None, *, tabs: bool = False) -> tuple[Columns, list[str]]:
    """Return the columns by name, all of them text, and what there is to say about how they were read.

    Args:
        text: The whole file.
        where: How the user named it.
        separator: What separates the fields; found in the header when None.
        tabs: Whether tabs are expected, as in a file called tsv.

    Raises:
        UserError: if a record has more or fewer fields than the header, or two columns have one name.
    """
    first, _, rest = text.partition("\n")
    if first.strip().lower().startswith("sep=") and len(first.strip()) == 5:  # Excel's own way to say it
        separator, text = separator or first.strip()[4], rest
    if not text.strip():
        raise UserError(f"{where} is empty and cannot be read: a header with the names of the columns is needed.")
    readings = {mark: _read(text, mark) for mark in _candidates(text, separator, tabs=tabs)}
    mark = max(readings, key=lambda m: (readings[m].fault is None, len(readings[m].records[0])))
    reading = readings[mark]
    if reading.fault is not None:
        raise UserError(f"{where}, {reading.fault}")
    names = _names(reading.records[0], where)
    columns = {name: [record[i] for record in reading.records[1:]] for i, name in enumerate(names)}
    notes = [f"separated by {SEPARATORS.get(mark, repr(mark))}"] if mark not in (",", _NONE) else []
    return columns, notes


def _candidates(text: str, separator: str | None, *, tabs: bool) -> list[str]:
    if separator is not None:
        mark = _NAMED.get(separator, separator)
        if len(mark) != 1:
            raise UserError(f"--separator must be one character (or tab), got {separator!r}.")
        return [mark]
    header = next(line for line in text.splitlines() if line.strip())
    if tabs and "\t" in header:
        return ["\t"]
    return [mark for mark in SEPARATORS if mark in header] or [_NONE]


def _read(text: str, mark: str) -> _Reading:
    """Read quotes as quotes, unless they are characters of the texts: then each line is a record without them."""
    quoted = _parse(text, mark, quotes=True)
    if '"' not in text:
        return quoted
    plain = _parse(text, mark, quotes=False)
    swallowed = mark != _NONE and len(plain.records) != len(quoted.records)
    if plain.fault is None and (quoted.fault is not None or swallowed):
        return plain
    return quoted


def _parse(text: str, mark: str, *, quotes: bool) -> _Reading:
    lines = io.StringIO(text, newline="")
    if quotes:
        reader = csv.reader(lines, delimiter=mark, strict=True)
    else:
        reader = csv.reader(lines, delimiter=mark, quoting=csv.QUOTE_NONE)
    records: list[list[str]] = []
    fault = None
    try:
        for record in reader:
            if not record:  # a line with nothing in it
                continue
            records.append(record)
            if fault is None and len(record) != len(records[0]):
                fault = (
                    f"line {reader.line_num}: {len(record)} fields, but the header has {len(records[0])} "
                    f"({one_line(', '.join(records[0]), 80)}): put texts that hold the separator in double quotes, "
                    "or name it with --separator."
                )
    except csv.Error as error:
        records = records or [[]]
        fault = f"line {reader.line_num}: {error}: a double quote is not closed, or stands inside of a quoted text."
    return _Reading(records, fault)


def _names(header: list[str], where: str) -> list[str]:
    """Return the names without stray spaces; one that is empty, as over the index of pandas, becomes its place."""
    names = [name.strip() or f"column {place}" for place, name in enumerate(header, 1)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{where} has two columns called {twice[0]!r}: rename or remove one of them.")
    return names
