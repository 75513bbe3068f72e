# SPDX-License-Identifier: Apache-2.0
"""Are all pairs covered that can be, by fewer rows than the product has, and is nothing in them that cannot be?"""

from __future__ import annotations

from itertools import combinations, product

from tests.conformance.pairwise import Row, covering_rows, pairs_of

QUESTIONS = {"a": "0123", "b": "012", "c": "012", "d": "01"}


def test_every_pair_is_covered_by_few_rows() -> None:
    rows = covering_rows(QUESTIONS, lambda row: True)
    covered = set().union(*map(pairs_of, rows))
    every = [
        frozenset({(p, x), (q, y)})
        for p, q in combinations(QUESTIONS, 2)
        for x, y in product(QUESTIONS[p], QUESTIONS[q])
    ]
    assert covered == set(every)
    assert len(rows) <= 16  # the product has 72, the two longest questions alone need 12


def test_what_cannot_be_is_in_no_row_and_all_else_is() -> None:
    def allowed(row: Row) -> bool:
        return not (row["a"] == "3" and row["b"] == "2") and not (row["c"] == "1" and row["d"] == "1")

    rows = covering_rows(QUESTIONS, allowed)
    assert all(map(allowed, rows))
    covered = set().union(*map(pairs_of, rows))
    assert frozenset({("a", "3"), ("b", "2")}) not in covered
    assert frozenset({("a", "3"), ("b", "1")}) in covered
    assert len(covered) == 4 * 3 + 4 * 3 + 4 * 2 + 3 * 3 + 3 * 2 + 3 * 2 - 2
