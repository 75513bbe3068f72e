# SPDX-License-Identifier: Apache-2.0
"""Which method is better, on which task, at which cost? Run a grid of tasks, methods and seeds, and compare.

    python scripts/benchmarks/compare.py scripts/benchmarks/grids/small.yaml
    python scripts/benchmarks/compare.py GRID.yaml --data DATA_FOLDER --output scripts/benchmarks/results/GRID
    python scripts/benchmarks/compare.py GRID.yaml --data DATA_FOLDER --output DIR --tasks sst2 --seeds 1 2

Each run is one JSON file in `--output`; runs that are there are not repeated, so that an interrupted grid goes on where
it was. Several processes share a grid with `--share 1/2` and `--share 2/2`. At the end, and with `--summary` at once,
a table shows every method's mean and its difference to the grid's first method, seed by seed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# `python scripts/benchmarks/compare.py` puts its folder on the path, the imports below need the repository's.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.parsing import PlainParser
from scripts.benchmarks.common.choosing import Waiting, arguments_of
from scripts.benchmarks.common.grids import Grid, read_grid
from scripts.benchmarks.common.one_run import run
from scripts.benchmarks.common.runs import Cell, read_run, read_runs, write_run
from scripts.benchmarks.common.summaries import show_summary, write_summary


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing; wrong input is one line on stderr and status 2."""
    try:
        options = options_of(argv)
        grid = read_grid(options.grid, options.data)
        cells = list(chosen(grid, options))
        given = given_arguments(options.set)
        left = [] if options.summary else run_all(grid, cells, options, given)
        rows = read_runs(options.output / "runs")
        write_summary(grid, rows, options.output / "summary.json")
        show_summary(grid, rows, Console(width=None if sys.stdout.isatty() else 120))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for cell, reason in left:
        print(f"not run: {cell.task}, {cell.method}, seed {cell.seed}: {reason}", file=sys.stderr)
    return 1 if left else 0


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = PlainParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("grid", type=Path, help="YAML file: seeds, common, tasks, methods")
    parser.add_argument("--output", type=Path, help="folder of the results (outputs/compare/GRID)")
    parser.add_argument("--data", type=Path, help="what {data} stands for in the grid")
    parser.add_argument("--tasks", nargs="+", help="only these")
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of the grid's")
    parser.add_argument("--share", default="1/1", help="which part of the runs, such as 1/2: every other one")
    parser.add_argument(
        "--set", nargs="+", default=[], help="arguments for every run: max_steps=50; NAME= takes one away"
    )
    parser.add_argument("--keep", type=Path, help="keep the models, each in a folder of its own in this one")
    parser.add_argument("--minutes", type=float, help="start no run after so many")
    parser.add_argument("--summary", action="store_true", help="run nothing, only compare")
    options = parser.parse_args(argv)
    options.output = options.output or Path("outputs/compare") / options.grid.stem
    return options


def chosen(grid: Grid, options: argparse.Namespace) -> Iterator[Cell]:
    """Yield the runs that were asked for, task by task within a method, so that a part of a grid compares.

    Raises:
        UserError: if there is no such task, method or share.
    """
    for what, wanted, known in (("tasks", options.tasks, grid.tasks), ("methods", options.methods, grid.methods)):
        foreign = [name for name in wanted or () if name not in known]
        if foreign:
            raise UserError(f"--{what}: no {foreign[0]!r} in {options.grid}. It has: {', '.join(known) or 'none'}.")
    number, _, of = options.share.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise UserError(f"--share must be like 1/2, a part of so many, got {options.share!r}.")
    seeds, methods = options.seeds or grid.seeds, options.methods or list(grid.methods)
    tasks = options.tasks or list(grid.tasks)
    # one process takes a seed and a task whole: runs that are compared in time then had the same neighbours
    pairs = list(itertools.product(seeds, tasks))[int(number) - 1 :: int(of)]
    for seed, together in itertools.groupby(pairs, key=lambda pair: pair[0]):
        for method, (_, task) in itertools.product(methods, list(together)):
            yield Cell(task, method, seed)


def given_arguments(pairs: list[str]) -> dict[str, str]:
    """Return `--set`'s arguments by name."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UserError(f"--set takes name=value, got {pair!r}.")
        found[name] = value
    return found


def run_all(
    grid: Grid, cells: list[Cell], options: argparse.Namespace, given: dict[str, str]
) -> list[tuple[Cell, str]]:
    """Run the cells that have no result yet; return those that cannot be run, with the reason."""
    left: list[tuple[Cell, str]] = []
    started = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        todo = bar.add_task("runs", total=len(cells))
        for cell in cells:
            if options.minutes is not None and time.perf_counter() - started > 60 * options.minutes:
                left.append((cell, "out of --minutes, start again"))
                continue
            bar.update(todo, description=f"{cell.task}, {cell.method}, seed {cell.seed}")
            try:
                line = run_one(grid, cell, options, given)
            except Waiting as reason:
                left.append((cell, str(reason)))
                continue
            if line:
                bar.console.print(line, highlight=False)
            bar.update(todo, advance=1)
    return left


def run_one(grid: Grid, cell: Cell, options: argparse.Namespace, given: dict[str, str]) -> str:
    """Run one cell if it has no result; return a line for people, empty if there was nothing to do."""
    if read_run(options.output / "runs", cell) is not None:
        return ""
    started = time.perf_counter()
    arguments, how = arguments_of(grid, cell, options.output, given)
    keep = options.keep / Path(cell.file).stem if options.keep else None
    row = run(arguments, cell, keep) | how
    write_run(options.output / "runs", cell, row)
    score = "" if row["final"] is None else f"{100 * row['final']:.1f}, "
    return f"{cell.task}, {cell.method}, seed {cell.seed}: {score}{time.perf_counter() - started:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
