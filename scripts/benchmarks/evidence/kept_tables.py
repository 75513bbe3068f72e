# SPDX-License-Identifier: Apache-2.0
"""What is left of the models of a grid after rounding and typos, and how sure are they? Tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_sam.robustness.metrics import metric_of
from scripts.benchmarks.common.paired import Paired, mean_and_spread, paired
from scripts.benchmarks.evidence.method_tables import read, runs_of, with_p
from scripts.benchmarks.evidence.pages import markdown

COLUMNS = {
    "NLL": ("as trained", "nll"),
    "NLL, scaled": ("as trained", "nll_scaled"),
    "ECE (%)": ("as trained", "ece"),
    "accuracy (%)": ("as trained", "accuracy"),
    "int8 (%)": ("int8 dynamic", "accuracy"),
    "3 bits (%)": ("int3 weights", "accuracy"),
    "typos (%)": ("typos, severity 3", "accuracy"),
}
"""Condition and metric of each column."""
Found = dict[int, float]


def kept(results: Path, name: str) -> list[str]:
    """Return the table of scores under each condition: a task and a method per line, means over the seeds."""
    grid, _ = read(results, name)
    rows = []
    for task in grid.tasks:
        for method in grid.methods:
            cells = [scores_by_seed(runs_of(results, name), task, method, *column) for column in COLUMNS.values()]
            if any(cells):
                title = f"{grid.titles[task]} (n = {max(map(len, cells))})"
                rows.append(
                    [title, method, *[_mean(found, column) for found, column in zip(cells, COLUMNS, strict=True)]]
                )
    return markdown(["task", "method", *COLUMNS], rows)


def kept_differences(results: Path, name: str, method: str, other: str | None = None) -> list[str]:
    """Return the table of a method's differences to another (the baseline), with p-values corrected over the table."""
    grid, _ = read(results, name)
    other = other or grid.baseline
    rows: list[tuple[str, list[Paired | None]]] = []
    for task in grid.tasks:
        pairs = []
        for column in COLUMNS.values():
            sides = (scores_by_seed(runs_of(results, name), task, side, *column) for side in (method, other))
            pairs.append(paired(*sides))
        if any(pairs):
            rows.append((grid.titles[task], pairs))
    return markdown([f"{method} - {other}", *COLUMNS], with_p(rows, _signed))


def scores_by_seed(runs: list[dict[str, Any]], task: str, method: str, condition: str, metric: str) -> Found:
    """Return a score of the runs of a method on a task, shares in percent."""
    scale = 100.0 if metric_of(metric).percent else 1.0
    chosen = [run for run in runs if (run["task"], run["method"]) == (task, method)]
    found = {run["seed"]: run.get("robustness", {}).get(condition, {}).get(metric) for run in chosen}
    return {seed: scale * value for seed, value in found.items() if value is not None}


def _mean(found: Found, column: str) -> str:
    if not found:
        return ""
    return format(mean_and_spread(found)[0], ".1f" if column.endswith("(%)") else ".2f")


def _signed(difference: Paired | None) -> str:
    return "" if difference is None else f"{difference.mean:+.2f}"
