# SPDX-License-Identifier: Apache-2.0
"""What is left of the accuracy where labels are wrong? One picture: a data set per panel, a method per line."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scripts.benchmarks.common.grids import Grid
from scripts.benchmarks.common.summaries import Summary

STYLES = {
    "adamw": ("#6B6B6B", "s", "--"),
    "adamw, time of full": ("#6B6B6B", "x", ":"),
    "sam": ("#0072B2", "o", "-"),
    "asam": ("#56B4E9", "^", "-"),
    "full": ("#D55E00", "o", "-"),
    "fast": ("#E69F00", "v", "-"),
    "free": ("#009E73", "D", "-"),
}
"""Colour (Okabe and Ito), marker and line, by method."""


def draw(grid: Grid, summary: Summary, path: Path) -> None:
    """Write the picture; the suffix of `path` says in which format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure_of(grid, summary).savefig(path, dpi=150)


def figure_of(grid: Grid, summary: Summary) -> Figure:
    """Return the picture. Tasks are called NAME_PERCENT, of wrong labels."""
    names = list(dict.fromkeys(task.rpartition("_")[0] for task in summary))
    figure = Figure(figsize=(3.4 * len(names) + 1.6, 3.3), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        shares = sorted(int(task.rpartition("_")[2]) for task in summary if task.rpartition("_")[0] == name)
        for method in grid.methods:
            lines = [(share, summary[f"{name}_{share}"].get(method)) for share in shares]
            there = [(share, line.mean, line.spread or 0.0) for share, line in lines if line]
            if there:
                colour, marker, dash = STYLES[method]
                x, means, spreads = zip(*there, strict=True)
                axes.errorbar(
                    x, means, spreads, color=colour, marker=marker, ls=dash, ms=4, lw=1.4, capsize=2, label=method
                )
        axes.set_title(grid.titles[f"{name}_{shares[0]}"].rpartition(",")[0], fontsize=10)
        axes.set_xlabel("wrong training labels (%)")
        axes.set_xticks(shares)
        axes.grid(color="#E4E4E4", lw=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.axes[0].set_ylabel("clean test accuracy (%), mean ± sd")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    return figure
