# SPDX-License-Identifier: Apache-2.0
"""Run finetune.py for every task, method and seed of a grid, and keep one line of JSON per run.

    python scripts/grid.py scripts/grids/rho_auto.yaml --data GLUE_FOLDER --output runs.jsonl
    python scripts/grid.py scripts/grids/rho_auto.yaml --output runs.jsonl --tasks digits --seeds 1 --set max_steps=50

Runs that are in the output already are not repeated, so that an interrupted grid goes on where it was; several
processes share a grid with `--share 1/2` and `--share 2/2`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# `python scripts/grid.py` puts scripts/ on the path, the imports below need the folder above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from scripts.common.environment import environment
from scripts.common.errors import UserError
from scripts.common.grids import Grid, read_grid
from scripts.common.parsing import parse
from scripts.finetune import finetune
from scripts.tasks import TASKS


class Cell(NamedTuple):
    """One run."""

    task: str
    method: str
    seed: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing; wrong input is one line on stderr and status 2."""
    options = options_of(argv)
    try:
        grid = read_grid(options.grid, options.data)
        cells = list(chosen(grid, options))
        run_all(grid, cells, options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path, help="YAML file: seeds, common, tasks, methods")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines; runs are added to it")
    parser.add_argument("--data", type=Path, help="what {data} stands for in the grid")
    parser.add_argument("--tasks", nargs="+", help="only these")
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of the grid's")
    parser.add_argument("--share", default="1/1", help="which part of the runs, such as 1/2: every other one")
    parser.add_argument("--set", nargs="+", default=[], help="more arguments for every run, such as max_steps=50")
    return parser.parse_args(argv)


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
    seeds, methods = options.seeds or grid.seeds, options.methods or grid.methods
    cells = itertools.product(seeds, methods, options.tasks or grid.tasks)
    for seed, method, task in itertools.islice(cells, int(number) - 1, None, int(of)):
        yield Cell(task, method, seed)


def run_all(grid: Grid, cells: list[Cell], options: argparse.Namespace) -> None:
    """Run the cells that have no line yet."""
    console = Console(stderr=True)
    for number, cell in enumerate(cells, start=1):
        if cell in finished(options.output):
            continue
        started = time.perf_counter()
        row = run(grid.arguments(cell.task, cell.method) | given(options.set), cell)
        add(options.output, row)
        seconds = time.perf_counter() - started
        console.print(
            f"{number}/{len(cells)} {cell.task}, {cell.method}, seed {cell.seed}: {score(row)}, {seconds:.0f} s"
        )


def given(pairs: list[str]) -> dict[str, str]:
    """Return `--set`'s arguments by name."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UserError(f"--set takes name=value, got {pair!r}.")
        found[name] = value
    return found


def run(arguments: dict[str, Any], cell: Cell) -> dict[str, Any]:
    """Train and evaluate; return the line to keep."""
    flags = [str(part) for name, value in arguments.items() for part in (f"--{name}", value)]
    defaults = {name: entry.defaults for name, entry in TASKS.items()}
    with tempfile.TemporaryDirectory() as folder, quiet():
        flags += ["--output_dir", folder, "--seed", str(cell.seed), "--disable_tqdm", "True"]
        results = finetune(*parse(flags, defaults))
        state = json.loads((Path(folder) / "trainer_state.json").read_text(encoding="utf-8"))
    kept = {name: value for name, value in results.items() if name.startswith(("eval_", "train_"))}
    radii = [entry["sam/rho"] for entry in state["log_history"] if "sam/rho" in entry]
    radius = {"rho_mean": statistics.mean(radii), "rho_last": radii[-1]} if radii else {}
    setting = {"arguments": shown(arguments), "environment": environment()}
    return {**cell._asdict(), **kept, **radius, **setting}


def shown(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments as another machine would give them: files by their last two names, models by one."""
    return {
        name: str(Path(*Path(value).parts[-2:])) if isinstance(value, str) and Path(value).is_absolute() else value
        for name, value in arguments.items()
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep finetune.py's summary and the Trainer's lines to itself."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def score(row: dict[str, Any]) -> str:
    """Return the accuracy for people to read."""
    return f"{100 * row['eval_accuracy']:.1f} %" if "eval_accuracy" in row else "done"


def finished(path: Path) -> set[Cell]:
    """Return the runs that have a line."""
    return {Cell(row["task"], row["method"], row["seed"]) for row in read_rows(path)}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a results file; none if there is no file.

    Raises:
        UserError: if a line is not a run's.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            Cell(row["task"], row["method"], row["seed"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number} is no run of a grid: remove it, and it is done again.") from error
        rows.append(row)
    return rows


def add(path: Path, row: dict[str, Any]) -> None:
    """Append one line, whole, also where other processes do the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    sys.exit(main())
