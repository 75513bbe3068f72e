# SPDX-License-Identifier: Apache-2.0
"""Where each example is from: its row in what the user gave, and what stands there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_sam.cli.common.reading.tables import Table


@dataclass
class Origin:
    """Of each example of one set: the row, counted from 0, and its texts or the name of its file."""

    where: str  # how the user named it
    rows: Sequence[int]
    columns: Sequence[Sequence[str]] = ()  # nothing to show for images that are no files
    kind: str = "text"  # or "file"
    truth: Sequence[Any] | None = None  # the labels before --label_noise, where it changed some

    def text(self, place: int) -> str:
        """Return what the example says."""
        return " || ".join(column[place] for column in self.columns)

    def select(self, places: Sequence[int]) -> Origin:
        """Return the origin of these examples."""
        truth = None if self.truth is None else [self.truth[place] for place in places]
        columns = [[column[place] for place in places] for column in self.columns]
        return Origin(self.where, [self.rows[place] for place in places], columns, self.kind, truth)


def origin_of(table: Table, columns: Sequence[Sequence[str]] = (), kind: str = "text", truth: Any = None) -> Origin:
    """Return the origin of the rows of a table."""
    rows = range(len(table)) if table.numbers is None else table.numbers
    return Origin(table.where, rows, columns, kind, truth)
