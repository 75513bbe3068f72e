# SPDX-License-Identifier: Apache-2.0
"""A few combinations in which every two answers to two questions occur together, wherever they go together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

Row = dict[str, str]
Pair = frozenset[tuple[str, str]]


def pairs_of(row: Row) -> set[Pair]:
    return {frozenset(pair) for pair in combinations(row.items(), 2)}


def covering_rows(questions: Mapping[str, Sequence[str]], allowed: Callable[[Row], bool]) -> list[Row]:
    """Return rows, one answer to each question, that hold every pair of answers that an allowed row can hold.

    Greedy: a row begins with the first pair that is left, and takes for each other question the allowed answer that
    brings in most of what is left. An answer that no row can hold beside the defaults is in none.
    """
    defaults = {question: answers[0] for question, answers in questions.items()}
    left = [
        {first: a, second: b}
        for first, second in combinations(questions, 2)
        for a in questions[first]
        for b in questions[second]
        if allowed(defaults | {first: a, second: b})
    ]
    rows: list[Row] = []
    while left:
        wanted = {frozenset(pair.items()) for pair in left}
        row = dict(left[0])
        for question in questions:
            if question in row:
                continue
            possible = [a for a in questions[question] if allowed(defaults | row | {question: a})]
            row[question] = max(possible, key=lambda a: len(pairs_of(row | {question: a}) & wanted))
        rows.append({question: row[question] for question in questions})
        found = pairs_of(row)
        left = [pair for pair in left if frozenset(pair.items()) not in found]
    return rows
