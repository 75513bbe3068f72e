# SPDX-License-Identifier: Apache-2.0
"""Which arguments does a grid leave open: as many steps as fit into a time, a radius that is chosen?"""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Any

from hf_sam.cli.common.errors import UserError
from scripts.benchmarks.common.grids import Grid
from scripts.benchmarks.common.one_run import HELD_OUT, run
from scripts.benchmarks.common.runs import Cell, read_run, read_runs, write_run

CHOOSING_SEED = 0
"""Of the runs that choose: none of those whose results are reported."""


class Waiting(Exception):
    """A run needs another one's result first."""


def arguments_of(grid: Grid, cell: Cell, folder: Path, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of a run, and what to note of how they came about.

    Raises:
        Waiting: if a run that has to come before is missing.
    """
    method, wanted = grid.methods[cell.method], grid.arguments(cell.task, cell.method) | given
    arguments = {name: value for name, value in wanted.items() if value != ""}
    how: dict[str, Any] = {}
    if method.length != 1:
        arguments |= longer(arguments, method.length)
    if method.choose:
        how["chosen"] = choose(arguments, cell, folder / "choosing", method.choose)
        arguments |= how["chosen"]
    if method.time_of is not None:
        how["time_of"], how["steps_factor"] = method.time_of, factor(grid, cell, folder)
        arguments |= longer(arguments, how["steps_factor"])
    return arguments, how


def factor(grid: Grid, cell: Cell, folder: Path) -> float:
    """Return how many baseline steps the time of one step of the other method holds, over the seeds there are."""
    other = grid.methods[cell.method].time_of
    times = {
        (row["method"], row["seed"]): row["train_time"]
        for row in read_runs(folder / "runs")
        if row["task"] == cell.task and "train_time" in row
    }
    seeds = [seed for method, seed in times if method == other and (grid.baseline, seed) in times]
    if not seeds:
        raise Waiting(f"it trains for as long as {other!r}, which has not run yet, or {grid.baseline!r} has not")
    return statistics.median(times[str(other), seed] / times[grid.baseline, seed] for seed in seeds)


def longer(arguments: dict[str, Any], by: float) -> dict[str, Any]:
    """Return the arguments that make a run so many times as long.

    Raises:
        UserError: if the run's length is not given.
    """
    if "max_steps" in arguments:
        return {"max_steps": int(by * int(arguments["max_steps"]))}
    if "num_train_epochs" in arguments:
        return {"num_train_epochs": by * float(arguments["num_train_epochs"])}
    raise UserError("time_of and length need max_steps or num_train_epochs in the grid.")


def choose(arguments: dict[str, Any], cell: Cell, folder: Path, values: dict[str, list[Any]]) -> dict[str, Any]:
    """Return the values with the best result on training data that were held out; one run for each combination."""
    results: list[tuple[float, dict[str, Any]]] = []
    for each in itertools.product(*values.values()):
        candidate = dict(zip(values, each, strict=True))
        words = " ".join(f"{name} {value}" for name, value in candidate.items())
        one = Cell(cell.task, f"{cell.method} {words}", CHOOSING_SEED)
        row = read_run(folder, one)
        if row is None:
            row = run(arguments | candidate | {"hold_out": HELD_OUT}, one)
            write_run(folder, one, row)
        results.append((float("-inf") if row["final"] is None else row["final"], candidate))
    return max(results, key=lambda result: result[0])[1]  # the first of equals: the smallest radius
