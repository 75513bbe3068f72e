# SPDX-License-Identifier: Apache-2.0
"""Which training rows are kept for evaluation when there is no evaluation set? The same in every run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_sam.cli.common.errors import UserError


def held_out_rows(labels: Sequence[Any] | None, count: int, share: float, where: str) -> tuple[list[int], list[int]]:
    """Return the rows to train on and those to evaluate on, both in their order.

    Of each class the same share is kept, of every class with two examples or more at least one, and of a class with a
    single example none. They are the same rows whatever the seed, so that runs can be compared.

    Args:
        labels: One class a row; None, or lists of classes, or numbers: the rows are taken at random.
        count: Number of rows.
        share: What part of them to keep, in (0, 1).
        where: How the user named them.

    Raises:
        UserError: if one of the two sets would be empty.
    """
    generator = np.random.default_rng(0)
    order = generator.permutation(count).tolist()
    total = round(share * count)
    if not 0 < total < count:
        raise UserError(f"{where} has {count} rows: --validation_share {share} leaves a set empty.")
    if labels is None or any(isinstance(label, (list, float)) for label in labels):
        held = set(order[:total])
    else:
        held = _of_each_class(labels, order, total, share)
    if isinstance(next(iter(labels or []), None), list):
        _give_back(labels or [], held)
    if not held or len(held) == count:
        raise UserError(
            f"{where}: no class has two examples, so none can be kept for evaluation: give --validation_file."
        )
    return [row for row in range(count) if row not in held], sorted(held)


def _of_each_class(labels: Sequence[Any], order: list[int], total: int, share: float) -> set[int]:
    members: dict[Any, list[int]] = {}
    for row in order:
        members.setdefault(labels[row], []).append(row)
    wanted = {label: share * len(rows) for label, rows in members.items()}
    counts = {label: int(value) for label, value in wanted.items()}
    by_rest = sorted(members, key=lambda label: (counts[label] - wanted[label], str(label)))
    for label in by_rest[: total - sum(counts.values())]:
        counts[label] += 1
    held: set[int] = set()
    for label, rows in members.items():
        held.update(rows[: min(max(counts[label], 1), len(rows) - 1)])
    return held


def _give_back(labels: Sequence[Any], held: set[int]) -> None:
    """Leave at least one example of each label of a multi-label set in the training data."""
    left: dict[Any, int] = {}
    for row, entries in enumerate(labels):
        for entry in entries:
            left[entry] = left.get(entry, 0) + (row not in held)
    for row in sorted(held):
        if any(left[entry] == 0 for entry in labels[row]):
            held.remove(row)
            for entry in labels[row]:
                left[entry] += 1
