# SPDX-License-Identifier: Apache-2.0
"""Which method is better, where, at which cost? Tables of what compare.py found."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hf_sam.cli.common.errors import UserError
from scripts.benchmarks.common.grids import Grid, read_grid
from scripts.benchmarks.common.paired import Paired, holm, mean_and_spread, paired
from scripts.benchmarks.common.runs import read_runs
from scripts.benchmarks.common.summaries import Line, Summary, points, score, summarise
from scripts.benchmarks.evidence.pages import markdown

GRIDS = Path(__file__).resolve().parents[1] / "grids"


@cache
def read(results: Path, name: str) -> tuple[Grid, Summary]:
    """Return a grid and the summary of its runs, read once for all tables; not to be changed."""
    parsed = read_grid(GRIDS / f"{name}.yaml", Path())  # the data's folder is of no interest here
    return parsed, summarise(parsed, runs_of(results, name))


@cache
def runs_of(results: Path, name: str) -> list[dict[str, Any]]:
    """Return the runs of a grid, read once for all tables; not to be changed."""
    return read_runs(results / name / "runs")


def lines_of(results: Path, name: str, task: str) -> dict[str, Line]:
    """Return the summary of one task of a grid.

    Raises:
        UserError: if it has no run.
    """
    _, summary = read(results, name)
    if task not in summary:
        raise UserError(f"there is no run of the task {task} in {results / name}.")
    return summary[task]


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
            counts = [max(len(line.scores) for line in task.values()) for task in chosen.values()]
            cells = [reached(line, seeds) for line, seeds in zip(lines, counts, strict=True)]
            rows.append([method, *cells, cost(lines)])
    return markdown(["method", *[heading(grid, task, chosen) for task in chosen], "time"], rows)


def differences(results: Path, name: str, tasks: str = "") -> list[str]:
    """Return the table of differences to the baseline in points, with 95 % intervals and p-values."""
    grid, summary = read(results, name)
    chosen = {task: lines for task, lines in summary.items() if task.startswith(tasks)}
    rows: list[tuple[str, list[Paired | None]]] = []
    for method in list(grid.methods)[1:]:
        lines = [task.get(method) for task in chosen.values()]
        if any(lines):
            rows.append((method, [line.difference if line else None for line in lines]))
        if any(line and line.same_time for line in lines):
            cells = [line.same_time if line else None for line in lines]
            rows.append((f"{method}, against {grid.baseline} in its time", cells))
    header = [f"against {grid.baseline}", *[heading(grid, task, chosen) for task in chosen]]
    return markdown(header, with_p(rows, points))


def versus(results: Path, name: str, method: str, others: str) -> list[str]:
    """Return the table of a method's differences, in points, to the methods whose names start with `others`."""
    grid, summary = read(results, name)
    chosen = {task: lines for task, lines in summary.items() if method in lines}
    rows: list[tuple[str, list[Paired | None]]] = []
    for other in grid.methods:
        lines = [task.get(other) if other.startswith(others) else None for task in chosen.values()]
        if other != method and any(lines):
            own = [task[method].scores for task in chosen.values()]
            rows.append(
                (other, [paired(mine, line.scores) if line else None for mine, line in zip(own, lines, strict=True)])
            )
    header = [f"{method}, against", *[heading(grid, task, chosen) for task in chosen]]
    return markdown(header, with_p(rows, points))


def losses(results: Path, name: str, tasks: str = "") -> list[str]:
    """Return the table of the loss on the evaluation set at the end of a run, and its differences to the baseline."""
    grid, summary = read(results, name)
    chosen = {task: lines for task, lines in summary.items() if task.startswith(tasks)}
    runs = runs_of(results, name)
    found = {(task, method): loss_by_seed(runs, task, method) for task in chosen for method in grid.methods}
    methods = [m for m in grid.methods if any(found[task, m] for task in chosen)]
    rows = [[m, *[mean_text(found[task, m], 3) for task in chosen]] for m in methods]
    pairs = [(m, [paired(found[task, m], found[task, grid.baseline]) for task in chosen]) for m in methods]
    rows += [[f"{row[0]} - {grid.baseline}", *row[1:]] for row in with_p(pairs[1:], thousandths)]
    return markdown(["loss on the test examples", *[heading(grid, task, chosen) for task in chosen]], rows)


def over_cells(results: Path, name: str, methods: Sequence[str]) -> list[str]:
    """Return methods' differences to the baseline in accuracy and loss, a task per line, corrected over each column."""
    grid, summary = read(results, name)
    runs, base = runs_of(results, name), grid.baseline
    columns = []
    for method in methods:
        lines = [(heading(grid, task, summary), found.get(method)) for task, found in summary.items()]
        scores = [(title, [line.difference if line else None]) for title, line in lines]
        losses = [paired(loss_by_seed(runs, task, method), loss_by_seed(runs, task, base)) for task in summary]
        columns += [with_p(scores, points), with_p([("", [each]) for each in losses], thousandths)]
    rows = [[cells[0][0], *[cell[1] for cell in cells]] for cells in zip(*columns, strict=True)]
    titles = [f"{method}, {what}" for method in methods for what in ("accuracy", "test loss")]
    return markdown([f"against {base}", *titles], rows)


def with_p(rows: list[tuple[str, list[Paired | None]]], text: Callable[[Paired | None], str]) -> list[list[str]]:
    """Return the rows of a table of differences with their p-values, as they are and corrected over the table."""
    corrected = iter(holm([cell.p if cell else None for _, cells in rows for cell in cells]))
    written = []
    for name, cells in rows:
        row = [name]
        for cell in cells:
            again = next(corrected)
            p = f", p {cell.p:.2g}, Holm {again:.2g}" if cell and cell.p is not None and again is not None else ""
            row.append(text(cell) + p)
        written.append(row)
    return written


def loss_by_seed(runs: list[dict[str, Any]], task: str, method: str) -> dict[int, float]:
    """Return the loss on the evaluation set at the end of the runs of a method on a task."""
    return {r["seed"]: r["eval_loss"] for r in runs if (r["task"], r["method"]) == (task, method) and "eval_loss" in r}


def mean_text(values: Mapping[int, float], digits: int) -> str:
    """Return mean and standard deviation over the seeds, with so many digits; nothing where there is none."""
    if not values:
        return ""
    mean, spread = mean_and_spread(values)
    return f"{mean:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def thousandths(difference: Paired | None) -> str:
    """Return a difference of losses and its 95 % interval."""
    if difference is None:
        return ""
    ends = [f"{end:+.3f}" for end in (difference.low, difference.high) if end is not None]
    return f"{difference.mean:+.3f}" + (f" ({' to '.join(ends)})" if ends else "")


def heading(grid: Grid, task: str, summary: Summary) -> str:
    """Return a column's title: task, seeds."""
    seeds = max(len(line.scores) for line in summary[task].values())
    return f"{grid.titles[task]} (n = {seeds})"


def reached(line: Line | None, seeds: int) -> str:
    """Return a score and, in brackets, the best on the way where that is higher, and the seeds where they are fewer."""
    if line is None:
        return ""
    more = line.best is not None and round(line.best, 1) > round(line.mean, 1)
    fewer = f" (n = {len(line.scores)})" if len(line.scores) < seeds else ""
    return score(line) + (f" ({line.best:.1f})" if more else "") + fewer


def cost(lines: list[Line | None]) -> str:
    """Return the median of a method's time against the baseline's, over the tasks."""
    ratios = [line.time for line in lines if line and line.time]
    return f"{statistics.median(ratios):.2f}x" if ratios else ""
