# SPDX-License-Identifier: Apache-2.0
"""Which method is better, where, at which cost? Tables of what compare.py found."""

from __future__ import annotations

import statistics
from pathlib import Path

from scripts.benchmarks.common.grids import Grid, read_grid
from scripts.benchmarks.common.runs import read_runs
from scripts.benchmarks.common.summaries import Line, Summary, points, score, summarise
from scripts.benchmarks.evidence.readme import markdown

GRIDS = Path(__file__).resolve().parents[1] / "grids"


def read(results: Path, name: str) -> tuple[Grid, Summary]:
    """Return a grid and the summary of its runs."""
    parsed = read_grid(GRIDS / f"{name}.yaml", Path())  # the data's folder is of no interest here
    return parsed, summarise(parsed, read_runs(results / name / "runs"))


def scores(results: Path, name: str, tasks: str = "") -> list[str]:
    """Return the table of scores: a method per line, a task per column, its cost and seeds at the end.

    In brackets what a run reached on its way, if more: early stopping, flattered by being chosen on the reported set.

    Args:
        results: folder.
        name: of the grid and of its results.
        tasks: only those whose names start with this.
    """
    grid, summary = read(results, name)
    chosen = {task: lines for task, lines in summary.items() if task.startswith(tasks)}
    rows = []
    for method in grid.methods:
        lines = [task.get(method) for task in chosen.values()]
        if any(lines):
            rows.append([method, *[reached(line) for line in lines], cost(lines)])
    return markdown(["method", *[heading(grid, task, chosen) for task in chosen], "time"], rows)


def differences(results: Path, name: str, tasks: str = "") -> list[str]:
    """Return the table of differences to the baseline in points, with 95 % intervals and p-values."""
    grid, summary = read(results, name)
    chosen = {task: lines for task, lines in summary.items() if task.startswith(tasks)}
    rows = []
    for method in list(grid.methods)[1:]:
        lines = [task.get(method) for task in chosen.values()]
        if any(lines):
            rows.append([method, *[difference(line) for line in lines]])
        if any(line and line.same_time for line in lines):
            cells = [points(line.same_time) if line else "" for line in lines]
            rows.append([f"{method}, against {grid.baseline} in its time", *cells])
    return markdown([f"against {grid.baseline}", *[heading(grid, task, chosen) for task in chosen]], rows)


def heading(grid: Grid, task: str, summary: Summary) -> str:
    """Return a column's title: task, seeds."""
    seeds = max(len(line.scores) for line in summary[task].values())
    return f"{grid.titles[task]} (n = {seeds})"


def reached(line: Line | None) -> str:
    """Return a score and, in brackets, the best on the way where that is higher."""
    if line is None:
        return ""
    more = line.best is not None and round(line.best, 1) > round(line.mean, 1)
    return score(line) + (f" ({line.best:.1f})" if more else "")


def difference(line: Line | None) -> str:
    """Return a difference in points, with interval and p-value."""
    if line is None or line.difference is None:
        return ""
    p = "" if line.difference.p is None else f", p {line.difference.p:.2g}"
    return points(line.difference) + p


def cost(lines: list[Line | None]) -> str:
    """Return the median of a method's time against the baseline's, over the tasks."""
    ratios = [line.time for line in lines if line and line.time]
    return f"{statistics.median(ratios):.2f}x" if ratios else ""
