# SPDX-License-Identifier: Apache-2.0
"""Does rho="auto" find what a search over rho finds? A table of a grid whose methods are called "DIRECTION RHO".

Other names are baselines. Numbers are means and standard deviations over seeds, in % of the evaluation set.
"auto - best" compares, seed by seed, with the fixed radius whose mean is highest on the same examples: choosing it
there flatters it.
"""

from __future__ import annotations

import math
import re
import statistics
from pathlib import Path
from typing import Any

from hf_sam.cli.common.errors import UserError
from scripts.benchmarks.common.grids import Grid, read_grid
from scripts.benchmarks.common.paired import percent
from scripts.benchmarks.common.runs import read_runs

GRID = Path(__file__).resolve().parents[1] / "grids" / "rho_auto.yaml"

Scores = dict[int, float]
"""Accuracy in % by seed."""
Results = dict[str, dict[str, Scores]]
"""By task and method."""

NUMBER = re.compile(r"[0-9.]+(e-?[0-9]+)?")


def read(results: Path) -> tuple[Grid, Results]:
    """Return the grid of radii and what it found."""
    grid = read_grid(GRID, Path())  # the data's folder is of no interest here
    return grid, results_of(grid, read_runs(results / "rho_auto" / "runs"))


def results_of(grid: Grid, rows: list[dict[str, Any]]) -> Results:
    """Return the accuracies, in the grid's order; what has no run yet is left out.

    Raises:
        UserError: if nothing was run.
    """
    found: Results = {}
    for task in grid.tasks:
        for method in grid.methods:
            chosen = percent([r for r in rows if (r["task"], r["method"]) == (task, method)], "final")
            if chosen:
                found.setdefault(task, {})[method] = dict(sorted(chosen.items()))
    if not found:
        raise UserError("none of the grid's runs is there: run scripts/benchmarks/compare.py first.")
    return found


def table(grid: Grid, results: Results) -> list[str]:
    """Return the lines of a Markdown table: a method per line, a task per column."""
    lines = ["| method | " + " | ".join(grid.titles[task] for task in results) + " |"]
    lines.append("|---" * (len(results) + 1) + "|")
    there = {method for scores in results.values() for method in scores}
    for method in sorted(there, key=in_order):
        lines.append(f"| {method} | " + " | ".join(mean_and_spread(r.get(method, {})) for r in results.values()) + " |")
    for direction in directions([method for method in grid.methods if method in there]):
        cells = [difference(scores, direction) for scores in results.values()]
        lines.append(f"| {direction}: auto - best | " + " | ".join(cells) + " |")
    return lines


def in_order(method: str) -> tuple[str, float]:
    """Sort baselines first, then each direction by radius, auto at its end."""
    direction, rho = split(method)
    return ("" if rho is None else direction, math.inf if rho in (None, "auto") else float(rho))


def split(method: str) -> tuple[str, str | None]:
    """Return direction and radius; no radius where the name does not end in one."""
    direction, space, rho = method.rpartition(" ")
    return (direction, rho) if space and (rho == "auto" or NUMBER.fullmatch(rho)) else (method, None)


def directions(methods: list[str]) -> list[str]:
    """Return the directions that have an auto."""
    return [split(method)[0] for method in methods if split(method)[1] == "auto"]


def best(scores: dict[str, Scores], direction: str) -> str | None:
    """Return the fixed radius's method with the highest mean, among those with the most seeds."""
    fixed = [m for m in scores if split(m)[0] == direction and split(m)[1] not in (None, "auto")]
    return max(fixed, key=lambda m: (len(scores[m]), statistics.mean(scores[m].values())), default=None)


def difference(scores: dict[str, Scores], direction: str) -> str:
    """Return the mean difference over the seeds that both have, and its standard error."""
    auto, other = scores.get(f"{direction} auto", {}), scores.get(best(scores, direction) or "", {})
    pairs = [auto[seed] - other[seed] for seed in auto if seed in other]
    if not pairs:
        return ""
    error = f" ± {statistics.stdev(pairs) / math.sqrt(len(pairs)):.1f}" if len(pairs) > 1 else ""
    return f"{statistics.mean(pairs):+.1f}{error} ({split(best(scores, direction) or '')[1]})"


def mean_and_spread(scores: Scores) -> str:
    """Return a cell; the number of seeds where it is not three."""
    if not scores:
        return ""
    spread = f" ± {statistics.stdev(scores.values()):.1f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores.values()):.1f}{spread}" + ("" if len(scores) == 3 else f" (n = {len(scores)})")
