# SPDX-License-Identifier: Apache-2.0
"""What is gained at which cost, by regime and by the size of the model? Tables for those who decide whether to try."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from scripts.benchmarks.common.runs import read_runs
from scripts.benchmarks.common.summaries import Line
from scripts.benchmarks.evidence.bench_tables import read as read_bench
from scripts.benchmarks.evidence.bench_tables import words
from scripts.benchmarks.evidence.method_tables import loss_by_seed, read
from scripts.benchmarks.evidence.pages import markdown


def regimes(results: Path) -> list[str]:
    """Return the table of scores by regime: AdamW, a variant of one pass, one of two."""
    rows = []
    for regime in words()["regimes"]:
        _, summary = read(results, regime["grid"])
        lines, runs = summary[regime["task"]], read_runs(results / regime["grid"] / "runs")
        plain = lines[regime["plain"]]
        best = f"{plain.best:.1f}" if plain.best is not None else ""
        losses = [loss_by_seed(runs, regime["task"], regime[side]).values() for side in ("plain", "one", "two")]
        rows.append([f"{regime['what']} (n = {len(plain.scores)})", f"{plain.mean:.1f}", best])
        rows[-1] += [_with_time(lines.get(regime[passes])) for passes in ("one", "two")]
        rows[-1].append(", ".join(f"{statistics.fmean(values):.2f}" if values else "-" for values in losses))
    header = ["test accuracy (%)", "AdamW", "its best", "one pass", "two passes", "test loss"]
    return markdown(header, rows)


def _with_time(line: Line | None) -> str:
    if line is None:
        return "not run"
    return f"{line.mean:.1f}" + ("" if line.time is None else f" ({line.time:.2f}x)")


def sizes(results: Path) -> list[str]:
    """Return the table of what a step of one pass and one of two take, for small and large steps."""
    rows = []
    for row in words()["sizes"]:
        found = _of_runs(results, row) if "grid" in row else _of_bench(results, row)
        if found is not None:
            plain, one, two = found
            rows.append([row["what"], f"{1000 * plain:,.0f} ms", f"{one:.2f}x", f"{two:.2f}x"])
    return markdown(["", "plain step", "one pass", "two passes"], rows)


def _of_runs(results: Path, row: dict[str, Any]) -> tuple[float, float, float]:
    """Return the seconds of a plain step and what the others take of it, in runs of a grid."""
    runs = [run for run in read_runs(results / row["grid"] / "runs") if run["task"] == row["task"]]
    _, summary = read(results, row["grid"])
    lines, plain = summary[row["task"]], [r for r in runs if r["method"] == row["plain"] and "train_time" in r]
    seconds = statistics.median(run["train_time"] / run["steps"] for run in plain)
    return seconds, lines[row["one"]].time or 0.0, lines[row["two"]].time or 0.0


def _of_bench(results: Path, row: dict[str, Any]) -> tuple[float, float, float] | None:
    """Return the same of a benchmark; None where it has not been run."""
    path = results / "bench" / row["bench"]
    if not path.exists():
        return None
    found = read_bench(path)["results"]
    return found["plain"]["seconds_per_step"], found[row["one"]]["time_ratio"], found[row["two"]]["time_ratio"]
