# SPDX-License-Identifier: Apache-2.0
"""Which columns hold the text and the label? Those named, those with usual names, or the only ones left."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.cli.common.reading.tables import Table

PAIRS = (
    ("sentence1", "sentence2"), ("text1", "text2"), ("question1", "question2"), ("premise", "hypothesis"),
    ("text", "textpair"), ("texta", "textb"), ("sentencea", "sentenceb"), ("query", "passage"), ("query", "document"),
)  # fmt: skip
TEXTS = (
    "text", "texts", "sentence", "review", "reviewtext", "reviewbody", "body", "message", "content", "comment",
    "commenttext", "tweet", "utterance", "question", "query", "post", "document", "description", "summary", "headline",
    "title", "subject", "input", "phrase", "prompt",
)  # fmt: skip
LABELS = (
    "label", "labels", "labeltext", "goldlabel", "class", "classes", "classname", "category", "categories", "target",
    "tags", "tag", "topic", "intent", "sentiment", "emotion", "polarity", "stars", "rating", "score", "similarity",
    "queue", "department", "type", "airlinesentiment", "y",
)  # fmt: skip
_NUMBERING = re.compile(
    r"(|index|level0|indexlevel\d+|idx|id|.*id|uuid|guid|unnamed\d+|column\d+|rownumber|file|date|created(at)?)"
)
_YES_NO = {"0", "1", "true", "false", "0.0", "1.0"}


@dataclass
class Columns:
    """The columns of the training data that matter. Several label columns: one for each class."""

    texts: list[str]
    labels: list[str]
    notes: list[str] = field(default_factory=list)


def find_columns(
    table: Table,
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    label_columns: Sequence[str] | None = None,
    labelled: bool = True,
) -> Columns:
    """Return the columns that were named or found.

    Raises:
        UserError: if a column is missing, or it is open which one is meant.
    """
    _check_named(table, text_column=[text], text_pair_column=[pair])
    _check_named(table, label_column=[label] if labelled else [], label_columns=label_columns or [])
    found = Columns([], [])
    if labelled:
        found.labels = list(label_columns or ([label] if label else _find_labels(table, {text, pair})))
    found.texts = _find_texts(table, text, pair, found, labelled=labelled)
    if labelled and not found.labels:
        found.labels = _left_for_labels(table, found)
    twice = [name for name in found.texts if name in found.labels]
    if twice or len(set(found.texts)) < len(found.texts):
        raise UserError(f"column {(twice or found.texts)[0]!r} cannot be two things: text, its pair or the label.")
    return found


def find_label_columns(
    table: Table, taken: str, *, label: str | None, label_columns: Sequence[str] | None, labelled: bool
) -> list[str]:
    """Return the columns of labels beside an input that is known; "label" where there need not be any."""
    _check_named(table, label_column=[label] if labelled else [], label_columns=label_columns or [])
    found = list(label_columns or ([label] if label else _find_labels(table, {taken})))
    if found or not labelled:
        return found or ["label"]
    return _left_for_labels(table, Columns([taken], []))


def _check_named(table: Table, **named: Sequence[str | None]) -> None:
    for argument, names in named.items():
        for name in names:
            if name is not None and name not in table.names:
                raise UserError(f"--{argument} {name}: {table.where} has the columns {_listed(table)}.")


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def _listed(table: Table) -> str:
    return one_line(", ".join(table.names), 200)


def _find_labels(table: Table, taken: set[str | None]) -> list[str]:
    by_key = {_key(name): name for name in table.names if name not in taken}
    return next(([by_key[key]] for key in LABELS if key in by_key), [])


def _find_texts(table: Table, text: str | None, pair: str | None, found: Columns, *, labelled: bool) -> list[str]:
    if text is not None:
        return [text, *([pair] if pair else [])]
    free = [name for name in table.names if name not in found.labels and name != pair]
    by_key = {_key(name): name for name in free}
    if pair is None:
        for one, two in PAIRS:
            if one in by_key and two in by_key:
                return [by_key[one], by_key[two]]
    usual = [by_key[key] for key in TEXTS if key in by_key and _holds_texts(table, by_key[key])]
    if usual:
        if len(usual) > 1 and pair is None:
            found.notes.append(f"not read: {', '.join(usual[1:])} (--text_pair_column adds one)")
        return [usual[0], *([pair] if pair else [])]
    left = [name for name in free if not _NUMBERING.fullmatch(_key(name)) and _holds_texts(table, name)]
    if len(left) == 1 and (found.labels or not labelled):
        _check_header(table, left[0])
        return [left[0], *([pair] if pair else [])]
    numbers = [by_key[key] for key in TEXTS if key in by_key]
    if numbers:  # a column of that name, of something else: let its rows be named
        return [numbers[0], *([pair] if pair else [])]
    raise UserError(
        f"{table.where}: which column holds the text? It has {_listed(table)}: name it with --text_column "
        "(a csv file needs a first line with the names of its columns)."
    )


def _left_for_labels(table: Table, found: Columns) -> list[str]:
    left = [name for name in table.names if name not in found.texts and not _NUMBERING.fullmatch(_key(name))]
    if len(left) > 1 and all(_yes_no(table.values(name)) for name in left):
        found.notes.append("one column of 0 and 1 for each label")
        return left
    if len(left) == 1:
        _check_header(table, left[0])
        return left
    raise UserError(
        f"{table.where}: no column of labels found; it has {_listed(table)}: name it with --label_column "
        "(or --label_columns, one for each label)."
    )


def _holds_texts(table: Table, name: str) -> bool:
    values = table.values(name)
    filled = [value for value in values[:1000] if value is not None and value != ""]
    return bool(filled) and all(isinstance(value, str) for value in filled)


def _yes_no(values: Sequence[Any]) -> bool:
    return all(str(value).strip().lower() in _YES_NO for value in values)


def _check_header(table: Table, name: str) -> None:
    """Refuse to guess by elimination where the names of the columns are themselves a row."""
    if len(name.split()) > 5 or name in table.values(name):
        raise UserError(
            f"{table.where}: the first line has to name the columns, and {one_line(name, 60)!r} looks like a row of "
            "its own: add a line such as text,label."
        )
