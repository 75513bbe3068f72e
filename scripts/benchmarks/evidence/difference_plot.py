# SPDX-License-Identifier: Apache-2.0
"""How do methods differ from the baseline on every task of a grid? One picture: accuracy left, loss right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scripts.benchmarks.common.paired import Paired, paired
from scripts.benchmarks.evidence.method_tables import loss_by_seed, read, runs_of

MARKERS = ("o", "D", "s", "^", "v", "P", "X")
COLOURS = ("#D55E00", "#009E73", "#6B6B6B", "#0072B2", "#56B4E9", "#E69F00", "#CC79A7")  # Okabe and Ito


def draw(results: Path, path: Path, name: str, methods: tuple[str, ...]) -> None:
    """Write the picture of some methods of a grid; the suffix of `path` says in which format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure_of(results, name, methods).savefig(path, dpi=150)


def figure_of(results: Path, name: str, methods: tuple[str, ...]) -> Figure:
    """Return the picture: a task per line, a method per marker, with 95 % intervals."""
    grid, summary = read(results, name)
    runs, tasks = runs_of(results, name), list(summary)
    figure = Figure(figsize=(8.4, 0.62 * len(tasks) + 1.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for i, method in enumerate(methods):
        lines = [summary[task].get(method) for task in tasks]
        scores = [line.difference if line else None for line in lines]
        losses = [paired(*(loss_by_seed(runs, task, side) for side in (method, grid.baseline))) for task in tasks]
        offset = 0.6 * ((i + 0.5) / len(methods) - 0.5)
        _markers(left, scores, i, method, offset)
        _markers(right, losses, i, method, offset)
    _finish(left, f"accuracy: points against {grid.baseline}")
    _finish(right, f"test loss (nats) against {grid.baseline}")
    left.set_yticks(range(len(tasks)), [grid.titles[task].replace(", ", ",\n", 1) for task in tasks], fontsize=8)
    left.invert_yaxis()
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _markers(axes: Any, found: list[Paired | None], i: int, method: str, offset: float) -> None:
    there = [(at + offset, each) for at, each in enumerate(found) if each is not None]
    bars = [[each.mean - (each.mean if each.low is None else each.low) for _, each in there]] * 2
    axes.errorbar(
        [each.mean for _, each in there], [at for at, _ in there], xerr=bars, ls="none", label=method, ms=5, capsize=2,
        marker=MARKERS[i % len(MARKERS)], color=COLOURS[i % len(COLOURS)], elinewidth=1,
        fillstyle="full" if i % 2 == 0 else "none",
    )  # fmt: skip


def _finish(axes: Any, label: str) -> None:
    axes.axvline(0, color="#6B6B6B", lw=1, ls=(0, (4, 3)))
    axes.set_xlabel(label, fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="#E4E4E4", lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
