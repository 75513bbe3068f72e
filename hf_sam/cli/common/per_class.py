# SPDX-License-Identifier: Apache-2.0
"""Which classes are told apart well, and which are not? A line for each of the last set that was scored."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_SHOWN = 20  # of more classes those with the lowest F1


def show_per_class(compute_metrics: Any, *, console: Console | None = None) -> None:
    """Print precision, recall and F1 of each class; nothing for numbers and for tasks with scores of their own."""
    rows: list[dict[str, Any]] = getattr(compute_metrics, "per_class", [])
    if not rows:
        return
    chosen = rows if len(rows) <= _SHOWN else sorted(rows, key=lambda row: row["f1"])[:_SHOWN]
    title = "classes" if chosen is rows else f"the {_SHOWN} of {len(rows):,} classes with the lowest F1"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "class" else "right")
    for row in chosen:
        numbers = [f"{row[name]:.3f}" for name in ("precision", "recall", "f1")]
        table.add_row(Text(row["class"]), *numbers, f"{row['support']:,.0f}")
    (console or Console()).print(table)
