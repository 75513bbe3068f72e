# SPDX-License-Identifier: Apache-2.0
"""Make sets of numbered tags out of tables of sentences: checked, held out, and alike in all sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.cli.common.facts import Facts
from hf_sam.cli.common.held_out import held_out_rows
from hf_sam.cli.common.labelled import chosen_rows
from hf_sam.cli.common.reading.conll import LINE
from hf_sam.cli.common.reading.sources import SPLITS, Tables
from hf_sam.cli.common.reading.tables import Table
from hf_sam.cli.common.reading.word_columns import Lists, WordColumns, lists_of, place
from hf_sam.cli.common.tag_schemes import Scheme, find_scheme
from hf_sam.cli.common.trained import agree_on_names, own_names

Rows = list[list[str]]
_FEW, _MANY = 10, 100  # different tags, from where on they look like words


@dataclass
class Tagged:
    """The sets, the number of each word's tag, and what the tags are."""

    tables: Tables
    words: dict[str, Rows]
    tags: dict[str, list[list[int]]]  # none for a set to predict on without tags
    written: dict[str, Rows]
    names: list[str]
    scheme: Scheme
    new_head: bool


def tag_sets(
    args: ScriptArguments, training: Any, tables: Tables, columns: WordColumns, config: Any, facts: Facts
) -> Tagged:
    """Check the sentences, hold some out if there is no evaluation set, and number the tags.

    Raises:
        UserError: if words and tags do not go together, or a set has tags that the training data lack.
    """
    new_head = False
    if "train" in tables:
        first = tables["train"]
        written = tag_values(first, str(columns.tags), word_values(first, columns.words)) or []
        names = _names(args, first, str(columns.tags), written)
        agreed: Any = SimpleNamespace(names=names, kind="classification")
        new_head = agree_on_names(args, config, agreed)
        names, scheme = agreed.names, find_scheme(written)
        if training.do_eval and "validation" not in tables:
            tables = _hold_out(args, tables, written, facts)
    else:
        names = own_names(config) or [str(number) for number in range(config.num_labels)]
        scheme = Scheme(find_scheme([names]).entities, "as the model was trained")
    tables = {split: chosen_rows(args, training, split, tables[split]) for split in SPLITS if split in tables}
    words = {split: word_values(table, columns.words) for split, table in tables.items()}
    shown: dict[str, Rows] = {}
    for split, table in tables.items():
        values = tag_values(table, columns.tags or "", words[split], optional=split == "test")
        if args.tag_names and values is not None:
            _name_numbers(args.tag_names, table, values)
        if split == "test" and values is not None and not {tag for row in values for tag in row} & set(names):
            facts.notes.append(f"{table.where}: column {columns.tags!r} holds no known tag, so nothing is scored on it")
            values = None
        if values is not None:
            shown[split] = values
    numbers = {split: _encode(tables[split], shown[split], names) for split in shown}
    return Tagged(tables, words, numbers, shown, names, scheme, new_head)


def word_values(table: Table, column: str) -> Rows:
    """Return the words of each sentence.

    Raises:
        UserError: if the column is missing, a sentence has no words, or one of them is no text.
    """
    _check_column(table, column, "text_column")
    found = lists_of(table, column)
    for row, words in enumerate(found):
        if not words:
            raise UserError(f"{place(table, row)}: {column!r} has no words: remove it, or add --drop_empty_texts.")
        for number, word in enumerate(words):
            if not isinstance(word, str):
                raise UserError(f"{place(table, row)}: word {number} of {column!r} must be text, got {word!r:.60}.")
    return found


def tag_values(table: Table, column: str, words: Rows, *, optional: bool = False) -> Rows | None:
    """Return the tags of each sentence as texts; None where they are optional and the set has none.

    Raises:
        UserError: if a sentence has not as many tags as words, or one of them is missing.
    """
    if optional and column not in table.names:
        return None
    _check_column(table, column, "label_column")
    if optional and all(value is None for value in table.values(column)):
        return None
    found: Lists = lists_of(table, column)
    for row, (tags, tagged) in enumerate(zip(found, words, strict=True)):
        if len(tags) != len(tagged):
            raise UserError(
                f"{place(table, row)}: {len(tagged)} words ({one_line(' '.join(tagged), 40)}) and {len(tags)} tags in "
                f"{column!r}: each word needs one."
            )
        for number, tag in enumerate(tags):
            if isinstance(tag, bool) or not isinstance(tag, (int, str)) or not str(tag).strip():
                what = "is missing" if tag is None or tag == "" else f"is {tag!r:.40}, which is no name and no number"
                raise UserError(f"{place(table, row)}: the tag of word {number} ({tagged[number]!r:.40}) {what}.")
    return [[str(tag) for tag in tags] for tags in found]


def without_empty(table: Table, column: str) -> Table:
    """Return the table without sentences that have no words."""
    if column not in table.names:
        return table
    kept = [row for row, words in enumerate(lists_of(table, column)) if words]
    return table if len(kept) in (0, len(table)) else table.select(kept)


def _check_column(table: Table, column: str, argument: str) -> None:
    if column not in table.names:
        raise UserError(
            f"{table.where} has no column {column!r}; it has "
            f"{one_line(', '.join(name for name in table.names if name != LINE), 200)} (--{argument} names another)."
        )


def _names(args: ScriptArguments, table: Table, column: str, written: Rows) -> list[str]:
    """Return the names of the tags: those given, those that the data set declares, or those that are there."""
    there = {tag for tags in written for tag in tags}
    if args.tag_names:
        if len(set(args.tag_names)) < len(args.tag_names):
            raise UserError(f"--tag_names must all be different, got {' '.join(args.tag_names)}.")
        _name_numbers(args.tag_names, table, written)
        return list(args.tag_names)
    names = table.class_names(column)
    if names is not None:
        return names
    if len(there) < 2:
        raise UserError(
            f"{table.where}, {column!r} has one tag only ({', '.join(there)}): at least 2 are needed "
            "(--label_column names another column)."
        )
    count = sum(map(len, written))
    if len(there) == count > _FEW or len(there) > max(_MANY, count / 4):
        raise UserError(
            f"{table.where}, {column!r} has {len(there):,} different tags for {count:,} words, so they are no tags: "
            "--label_column names another column."
        )
    if all(tag.isdecimal() for tag in there):
        return sorted(there, key=int)
    return sorted(there, key=lambda tag: (tag != "O", tag))


def _name_numbers(names: Sequence[str], table: Table, written: Rows) -> None:
    """Give tags that are numbers the names that were given for them, in place."""
    if not all(tag.isdecimal() for tags in written for tag in tags) or any(name.isdecimal() for name in names):
        return
    for row, tags in enumerate(written):
        for number, tag in enumerate(tags):
            if int(tag) >= len(names):
                raise UserError(f"{place(table, row)}: tag {tag} has no name: --tag_names gives {len(names)}, from 0.")
            tags[number] = names[int(tag)]


def _hold_out(args: ScriptArguments, tables: Tables, written: Rows, facts: Facts) -> Tables:
    table = tables["train"]
    keys = [sorted(set(tags)) for tags in written]
    train, held = held_out_rows(keys, len(table), args.validation_share, table.where)
    facts.notes.append(f"{len(held):,} training sentences are held out for evaluation, the same in every run")
    evaluation = table.select(held)
    evaluation.where, evaluation.notes = f"held out of {table.where} (--validation_share)", []
    return {**tables, "train": table.select(train), "validation": evaluation}


def _encode(table: Table, written: Rows, names: Sequence[str]) -> list[list[int]]:
    """Return the number of each tag.

    Raises:
        UserError: if there are tags that the training data lack.
    """
    numbers = {name: number for number, name in enumerate(names)}
    unknown = Counter(tag for tag in _all(written) if tag not in numbers)
    if unknown:
        row = next(row for row, tags in enumerate(written) if any(tag not in numbers for tag in tags))
        listed = one_line(", ".join(f"{tag!r} ({count:,})" for tag, count in unknown.most_common(8)), 150)
        raise UserError(
            f"{place(table, row)}: tags that the training data lack: {listed}; there are "
            f"{one_line(', '.join(names), 150)}: correct them, remove the sentences, or name all with --tag_names."
        )
    return [[numbers[tag] for tag in tags] for tags in written]


def _all(written: Iterable[Iterable[str]]) -> Iterable[str]:
    return (tag for tags in written for tag in tags)
