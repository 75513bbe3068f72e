# SPDX-License-Identifier: Apache-2.0
"""What is gained at which cost, by regime and by the size of the model? Tables for those who decide whether to try."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from scripts.benchmarks.common.summaries import Line
from scripts.benchmarks.evidence.bench_tables import read as read_bench
from scripts.benchmarks.evidence.bench_tables import words
from scripts.benchmarks.evidence.method_tables import lines_of, loss_by_seed, runs_of
from scripts.benchmarks.evidence.pages import markdown

HEADER = ["training data", "AdamW", "AdamW, best shorter run", "SAM, one pass", "SAM, two passes"]
Times = tuple[float, str, str]
"""Seconds of a plain step, and what a step of one pass and one of two take of it, for people."""


def regimes(results: Path) -> list[str]:
    """Return the table of accuracy, test loss and time by regime: AdamW, its best shorter run, one pass, two passes.

    Best shorter run: that with fewer epochs where there is one, else the best evaluation on the way if it was better,
    without its loss.
    """
    rows = []
    for regime in words()["regimes"]:
        lines, runs = lines_of(results, regime["grid"], regime["task"]), runs_of(results, regime["grid"])
        cells = {
            side: _cell(lines.get(regime[side]), loss_by_seed(runs, regime["task"], regime[side]))
            for side in ("plain", "short", "one", "two")
            if side in regime
        }
        plain = lines[regime["plain"]]
        best = "-" if plain.best in (None, plain.mean) else f"{plain.best:.1f}"
        row = [f"{regime['what']} (n = {len(plain.scores)})", cells["plain"].removesuffix(" (1.00x)")]
        rows.append([*row, cells.get("short", best), cells["one"], cells["two"]])
    return markdown(HEADER, rows)


def _cell(line: Line | None, losses: dict[int, float]) -> str:
    """Return mean accuracy, mean loss and time."""
    if line is None:
        return "-"
    loss = f", {statistics.fmean(losses.values()):.2f}" if losses else ""
    return f"{line.mean:.1f}{loss}" + ("" if line.time is None else f" ({line.time:.2f}x)")


def sizes(results: Path) -> list[str]:
    """Return the table of what a step of one pass and one of two take, for small and large steps."""
    rows = []
    for row in words()["sizes"]:
        found = _of_runs(results, row) if "grid" in row else _of_bench(results, row)
        if found is not None:
            plain, one, two = found
            rows.append([row["what"], f"{1000 * plain:,.0f} ms", one, two])
    return markdown(["", "plain step", "one pass", "two passes"], rows)


def _of_runs(results: Path, row: dict[str, Any]) -> Times:
    """Return the seconds of a plain step and what the others take of it, in runs of a grid."""
    lines, cell = lines_of(results, row["grid"], row["task"]), (row["task"], row["plain"])
    plain = [r for r in runs_of(results, row["grid"]) if (r["task"], r["method"]) == cell and "train_time" in r]
    seconds = statistics.median(run["train_time"] / run["steps"] for run in plain)
    one, two = (lines[row[side]].time if row[side] in lines else None for side in ("one", "two"))
    return seconds, *("not timed" if ratio is None else f"{ratio:.2f}x" for ratio in (one, two))


def _of_bench(results: Path, row: dict[str, Any]) -> Times | None:
    """Return the same of a benchmark; None where it has not been run."""
    path = results / "bench" / row["bench"]
    if not path.exists():
        return None
    found = read_bench(path)["results"]
    return found["plain"]["seconds_per_step"], *(with_interval(found[row[side]]) for side in ("one", "two"))


def with_interval(case: dict[str, Any]) -> str:
    """Return a ratio of times with its 95 % interval, where the benchmark has one."""
    ends = [f"{end:.2f}" for end in case.get("time_ratio_interval", ())]
    return f"{case['time_ratio']:.2f}x" + (f" ({' to '.join(ends)})" if ends else "")
