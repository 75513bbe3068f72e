# SPDX-License-Identifier: Apache-2.0
"""What do the runs of a grid say of its methods, against the first one?"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hf_sam.cli.common.errors import UserError, one_line
from scripts.benchmarks.common.grids import Grid
from scripts.benchmarks.common.paired import Paired, mean_and_spread, paired, percent


@dataclass(frozen=True)
class Line:
    """One method on one task; scores in %, differences in points.

    Attributes:
        metric: of the scores.
        scores: at the end of the run, by seed.
        mean, spread: of these; the spread is the standard deviation, None for a single seed.
        best: mean of the best evaluation of each run. It is chosen on the reported set, and so flatters.
        difference: to the baseline at as many steps.
        same_time: to the baseline trained for as long as this method; None if the grid has no such run.
        time: a run's, divided by the baseline's at the same seed and commit, median.
        memory: a run's peak in bytes, median.
    """

    metric: str
    scores: dict[int, float]
    mean: float
    spread: float | None
    best: float | None
    difference: Paired | None
    same_time: Paired | None
    time: float | None
    memory: int | None


Summary = dict[str, dict[str, Line]]
"""By task and method, in the grid's order."""


def summarise(grid: Grid, rows: list[dict[str, Any]]) -> Summary:
    """Return what there is; tasks and methods without a run are left out."""
    found: Summary = {}
    longer = {method.time_of: name for name, method in grid.methods.items() if method.time_of}
    for task in grid.tasks:
        by_method = {m: [r for r in rows if (r["task"], r["method"]) == (task, m)] for m in grid.methods}
        scores = {method: percent(runs, "final") for method, runs in by_method.items()}
        lines = {
            method: _line(
                runs, by_method[grid.baseline], scores[grid.baseline] if method != grid.baseline else {},
                scores.get(longer.get(method, ""), {}),
            )
            for method, runs in by_method.items()
            if scores[method]
        }  # fmt: skip
        if lines:
            found[task] = lines
    return found


def _line(runs: list[dict[str, Any]], base: list[dict[str, Any]], plain: dict[int, float], longer: Any) -> Line:
    scores, best = percent(runs, "final"), percent(runs, "best")
    mean, spread = mean_and_spread(scores)
    return Line(
        runs[0]["metric"].removeprefix("eval_"),
        dict(sorted(scores.items())),
        mean,
        spread,
        statistics.fmean(best.values()) if best else None,
        paired(scores, plain),
        paired(scores, longer),
        _ratio(runs, base),
        int(statistics.median(sizes)) if (sizes := [r["peak_memory"] for r in runs if "peak_memory" in r]) else None,
    )


def _ratio(runs: list[dict[str, Any]], base: list[dict[str, Any]]) -> float | None:
    """Return the median ratio of times, of runs of one commit alone: others had another machine or other neighbours."""
    times = {_timed_as(row): row["train_time"] for row in base if "train_time" in row}
    ratios = [
        row["train_time"] / times[_timed_as(row)] for row in runs if "train_time" in row and _timed_as(row) in times
    ]
    return statistics.median(ratios) if ratios else None


def _timed_as(row: dict[str, Any]) -> tuple[int, str | None]:
    return row["seed"], row.get("environment", {}).get("commit")


def write_summary(grid: Grid, rows: list[dict[str, Any]], path: Path) -> None:
    """Write it as JSON.

    Raises:
        UserError: if it cannot be written.
    """
    summary = {
        "baseline": grid.baseline,
        "tasks": {
            task: {"title": grid.titles[task], "methods": {name: asdict(line) for name, line in lines.items()}}
            for task, lines in summarise(grid, rows).items()
        },
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"the summary cannot be written: {one_line(error)}") from error


def show_summary(grid: Grid, rows: list[dict[str, Any]], console: Console) -> None:
    """Print a table for each task.

    Raises:
        UserError: if nothing was run.
    """
    summary = summarise(grid, rows)
    if not summary:
        raise UserError("none of the grid's runs is there.")
    for task, lines in summary.items():
        metric = next(iter(lines.values())).metric
        table = Table(title=f"{grid.titles[task]}: {metric} (%)")
        table.add_column("")
        columns = ("end", "best", f"against {grid.baseline}", "p", "in the same time", "time")
        for column in columns:
            table.add_column(column, justify="right", no_wrap=True)
        for name, line in lines.items():
            table.add_row(name, *cells_of(line))
        console.print(table)


def cells_of(line: Line) -> list[str]:
    """Return the numbers of a line for people."""
    p = line.difference.p if line.difference else None
    return [
        score(line),
        "" if line.best is None else f"{line.best:.1f}",
        points(line.difference),
        "" if p is None else f"{p:.2g}",
        points(line.same_time),
        "" if line.time is None else f"{line.time:.2f}x",
    ]


def score(line: Line) -> str:
    """Return mean and standard deviation."""
    spread = "" if line.spread is None else f" ± {line.spread:.1f}"
    return f"{line.mean:.1f}{spread}"


def points(difference: Paired | None) -> str:
    """Return a difference and its 95 % interval."""
    if difference is None:
        return ""
    interval = "" if difference.low is None else f" ({difference.low:+.1f} to {difference.high:+.1f})"
    return f"{difference.mean:+.1f}{interval}"
