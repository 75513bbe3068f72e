# SPDX-License-Identifier: Apache-2.0
"""Find the columns of words and of their tags: those named, those with usual names, or the only lists."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass, field
from typing import Any

from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.cli.common.reading.conll import LINE
from hf_sam.cli.common.reading.tables import Table

WORDS = ("tokens", "words", "token", "word", "form", "forms", "texts", "text", "sentence")
TAGS = (
    "nertags", "tags", "labels", "ner", "nerlabels", "entities", "bio", "iob", "iobtags", "targets", "tag", "label",
    "postags", "pos", "upos", "upostags", "xpos", "chunktags",
)  # fmt: skip
SENTENCES = ("sentence#", "sentenceid", "sentid", "sentenceno", "sentenceidx", "sentenceindex", "sentence")
_WITHOUT_COMMAS = re.compile(r"\w['\"]\s+['\"]\w")
Lists = list[list[Any]]


@dataclass
class WordColumns:
    """The columns that matter; no tags where none are needed and none were found."""

    words: str
    tags: str | None
    notes: list[str] = field(default_factory=list)


def find_word_columns(table: Table, *, words: str | None, tags: str | None, tagged: bool) -> WordColumns:
    """Return the columns that were named or found.

    Args:
        table: The first set.
        words: What `--text_column` says.
        tags: What `--label_column` says.
        tagged: Whether there have to be tags.

    Raises:
        UserError: if a column is missing, or it is open which one is meant.
    """
    for argument, name in (("text_column", words), ("label_column", tags)):
        if name is not None and name not in table.names and (tagged or argument == "text_column"):
            raise UserError(f"--{argument} {name}: {table.where} has the columns {_listed(table)}.")
    lists = [name for name in table.names if name != LINE and _holds_lists(table, name)]
    if LINE in table.names:  # CoNLL: the words first and the tags last, or as CoNLL-U names them
        last = "upos" if "upos" in lists else lists[-1] if len(lists) > 1 else None
        found = WordColumns(words or ("form" if "form" in lists else lists[0]), tags or last)
    else:
        found = WordColumns(words or _first(lists, WORDS) or "", tags or _first(lists, TAGS))
    left = [name for name in lists if name not in (found.words, found.tags)]
    if not found.words and len(left) == 1:
        found.words, left = left[0], []
    if found.tags is None and len(left) == 1:
        found.tags, left = left[0], []
    if not found.words or (tagged and found.tags is None):
        what, argument = ("words", "text_column") if not found.words else ("tags", "label_column")
        raise UserError(
            f"{table.where}: which column holds the {what}? It has {_listed(table)}: name it with --{argument} (each "
            "row has a list of words and a list of tags; CoNLL files have a word a line)."
        )
    if found.words == found.tags:
        raise UserError(f"column {found.words!r} cannot be two things: words and their tags.")
    others = [name for name in left if LINE in table.names or _key(name) in TAGS]
    if others and found.tags is not None:
        found.notes.append(f"not read: {', '.join(others)} (--label_column names another)")
    return found


def lists_of(table: Table, column: str) -> Lists:
    """Return a column of lists; a text that is one, as in a csv file, is read as such.

    Raises:
        UserError: if a row holds no list.
    """
    values = table.values(column)
    found: Lists = []
    for row, value in enumerate(values):
        as_list = _as_list(value)
        if as_list is None:
            raise UserError(f"{place(table, row)}: {column!r} must be a list, one entry a word, got {value!r:.60}.")
        found.append(as_list)
    return found


def place(table: Table, row: int) -> str:
    """Return where a row stands, by its line, too, if the table has them."""
    line = f" (line {table.values(LINE)[row]})" if LINE in table.names else ""
    return f"{table.where}, row {row}{line}"


def with_sentences(table: Table, words: str | None) -> Table:
    """Return the table with a row a sentence, if it has a row a word and a column that says which sentence."""
    by_key = {_key(name, keep="#"): name for name in table.names}
    sentence = next((by_key[key] for key in SENTENCES if key in by_key), None)
    plain = {name for name in table.names if not _holds_lists(table, name)}
    word = words or _first([name for name in table.names if name in plain and name != sentence], WORDS)
    if LINE in table.names or sentence not in plain or word not in plain or len(set(table.values(sentence))) < 2:
        return table
    columns: dict[str, list[Any]] = {name: [] for name in table.names if name != sentence}
    rows = {name: table.values(name) for name in columns}
    before: Any = None
    for row, value in enumerate(table.values(sentence)):
        if row == 0 or (value not in (None, "", before) and value == value):  # named at its first word alone, or at all
            before = value
            for lists in columns.values():
                lists.append([])
        for name, lists in columns.items():
            lists[-1].append(rows[name][row])
    note = f"a row is a word: sentences by the column {sentence}"
    return Table(table.where, columns, [*table.notes, note], table.folder)


def _holds_lists(table: Table, name: str) -> bool:
    filled = [value for value in table.values(name)[:100] if value is not None and value != ""]
    return bool(filled) and all(_as_list(value) is not None for value in filled)


def _as_list(value: Any) -> list[Any] | None:
    if isinstance(value, (list, tuple)):
        return list(value)
    if not isinstance(value, str) or not (value.strip().startswith("[") and value.strip().endswith("]")):
        return None
    if _WITHOUT_COMMAS.search(value) and "," not in value:
        return None  # as numpy prints it, which Python would read as one word
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return found if isinstance(found, list) else None


def _first(names: list[str], known: tuple[str, ...]) -> str | None:
    by_key = {_key(name): name for name in names}
    return next((by_key[key] for key in known if key in by_key), None)


def _key(name: str, keep: str = "") -> str:
    return re.sub(rf"[^\w{keep}]|_", "", name).lower()


def _listed(table: Table) -> str:
    return one_line(", ".join(name for name in table.names if name != LINE), 200)
