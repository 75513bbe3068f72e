# SPDX-License-Identifier: Apache-2.0
"""Print the measurements: one table of all checkpoints, and one of their differences."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from hf_sam.cli.common.flatness import COLUMNS, SCRIPT_NAMES, cell, interval
from hf_sam.cli.common.robustness import Robustness, difference_of, shown_rows, value_of


def values(found: dict[str, Any], names: list[str]) -> Table:
    """Return the table of the checkpoints: flatness, then robustness."""
    flat, robust = found["models"], found["robustness"]
    what = [f"flatness on {found['task']}, training examples"] if flat else []
    what += [f"robustness on {robust.data}"] if robust is not None else []
    text = "; ".join(what)
    table = Table(title=text[:1].upper() + text[1:])
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in COLUMNS if flat else ():
        cells = [cell(each.report, row.key) for each in flat.values()]
        if any(cells):
            table.add_row(row.title, *cells)
    if robust is not None:
        _add_robustness(table, robust)
    return table


def _add_robustness(table: Table, found: Robustness) -> None:
    for title, condition, metric in shown_rows(found):
        if condition:
            table.add_row(title, *[value_of(reports, condition, metric) for reports in found.reports.values()])
        else:
            table.add_section()
            table.add_row(f"[bold]{title}[/bold]")


def flatness_differences(comparison: Any) -> Table:
    """Return the table of the differences in flatness."""
    table = Table(title=f"Against {comparison.baseline}, over {len(comparison.folds)} folds of the examples")
    table.add_column("")
    others = [name for name in next(iter(comparison.values.values())) if name != comparison.baseline]
    for name in others:
        table.add_column(f"{name}: difference, 95 % interval", justify="right", no_wrap=True)
    for measure_, differences in comparison.differences.items():
        table.add_row(SCRIPT_NAMES[measure_].title, *[interval(differences[name]) for name in others])
    return table


def robustness_differences(found: Robustness) -> Table:
    """Return the table of the differences in robustness."""
    baseline = found.comparison.baseline if found.comparison else ""
    over = found.comparison.over if found.comparison else ""
    table = Table(title=f"Against {baseline}, intervals over {over}; shares in points of percent")
    table.add_column("")
    others = [name for name in found.reports if name != baseline]
    for name in others:
        table.add_column(f"{name}: difference, 95 % interval", justify="right", no_wrap=True)
    for title, condition, metric in shown_rows(found):
        if not condition:
            table.add_section()
            table.add_row(f"[bold]{title}[/bold]")
            continue
        marked = [difference_of(found, name, condition, metric) for name in others]
        if any(text for text, _ in marked):
            table.add_row(title, *[f"{text} *" if sure else f"{text}  " for text, sure in marked])
    table.caption = "* zero is not in the interval"
    return table
