# SPDX-License-Identifier: Apache-2.0
"""Which wrong labels does a trained model point at? Digits with 40 % wrong training labels, AdamW against SAM.

python scripts/benchmarks/suspects.py                    # seeds 1, 2 and 3; a run that is there is not repeated
python scripts/benchmarks/suspects.py --seeds 1 --output_dir outputs/suspects --max_steps 100

Each run is one of `scripts/recipes/digits_noise_*.yaml`, and the list is its suspects.csv: the training labels that the
model contradicts at the end. Precision is the share of the list that is wrong, recall that of the wrong labels in it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.benchmarks.common.one_run import run  # noqa: E402
from scripts.benchmarks.common.runs import Cell, read_run, write_run  # noqa: E402

METHODS = ("adamw", "sam", "asam")
COLUMNS = {
    "suspects": "in the list",
    "suspects_precision": "precision",
    "suspects_recall": "recall",
    "eval_accuracy": "test accuracy",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, and print the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--max_steps", type=int, help="of each run, to try the program")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "scripts" / "benchmarks" / "results" / "suspects")
    args = parser.parse_args(argv)
    rows = []
    for seed in args.seeds:
        for method in args.methods:
            cell = Cell("digits_noise", method, seed)
            row = read_run(args.output_dir, cell)
            if row is None:
                row = run(_arguments(method, args.max_steps), cell)
                write_run(args.output_dir, cell, row)
            rows.append(row)
    Console().print(_table(rows))
    return 0


def _arguments(method: str, max_steps: int | None) -> dict[str, Any]:
    recipe = ROOT / "scripts" / "recipes" / f"digits_noise_{method}.yaml"
    found = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    for name in ("output_dir", "do_predict"):
        del found[name]
    return found | {"suspects": True, "use_cpu": True} | ({"max_steps": max_steps} if max_steps else {})


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Digits, 575 of 1,437 training labels wrong: mean ± standard deviation")
    for name in ("method", "runs", *COLUMNS.values()):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for method in dict.fromkeys(row["method"] for row in rows):
        runs = [row for row in rows if row["method"] == method]
        table.add_row(method, str(len(runs)), *(_spread([row.get(name) for row in runs]) for name in COLUMNS))
    return table


def _spread(values: list[float | None]) -> str:
    there = [value for value in values if value is not None]  # a list of none has no precision
    if not there:
        return ""
    digits = 0 if max(there) > 1 else 3
    spread = f" ± {statistics.stdev(there):.{digits}f}" if len(there) > 1 else ""
    return f"{statistics.mean(there):.{digits}f}{spread}"


if __name__ == "__main__":
    sys.exit(main())
