# SPDX-License-Identifier: Apache-2.0
"""How does accuracy depend on rho, and where does rho="auto" end? One picture, a task per column."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6B6B6B"  # Okabe and Ito
Scores = dict[str, dict[int, float]]


def draw(titles: dict[str, str], results: dict[str, Scores], path: Path) -> None:
    """Write the picture; the suffix of `path` says in which format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure_of(titles, results).savefig(path, dpi=150)


def figure_of(titles: dict[str, str], results: dict[str, Scores]) -> Figure:
    """Return the picture: a direction per row."""
    names = [name.rpartition(" ")[0] for scores in results.values() for name in scores]
    rows = [name for name in dict.fromkeys(names) if name]  # a baseline has no radius in its name
    figure = Figure(figsize=(2.6 * len(results), 2.4 * len(rows) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), len(results), squeeze=False, sharey="col", sharex="row")
    for line, direction in zip(grid, rows, strict=True):
        for axes, (task, scores) in zip(line, results.items(), strict=True):
            _panel(axes, scores, direction)
            if direction == rows[0]:
                axes.set_title(titles[task].replace(", ", ",\n", 1), fontsize=9)
            axes.set_xlabel("rho")
        line[0].set_ylabel(f"{direction}\naccuracy (%)")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _panel(axes: Any, scores: Scores, direction: str) -> None:
    baselines = [name for name in list(scores)[:1] if " " not in name]
    fixed = sorted(
        (float(name.split()[1]), list(values.values()))
        for name, values in scores.items()
        if name.startswith(f"{direction} ") and not name.endswith(" auto")
    )
    if fixed:
        means, spreads = zip(*(_mean_and_spread(values) for _, values in fixed), strict=True)
        axes.errorbar(
            [rho for rho, _ in fixed], means, yerr=spreads, color=BLUE, marker="o", ms=4, lw=1.4, capsize=2,
            label="fixed rho, mean and standard deviation over seeds",
        )  # fmt: skip
    auto = list(scores.get(f"{direction} auto", {}).values())
    if auto:
        mean, spread = _mean_and_spread(auto)
        axes.axhline(mean, color=ORANGE, lw=2, label='rho="auto"')
        axes.axhspan(mean - spread, mean + spread, color=ORANGE, alpha=0.18, lw=0)
    for name in baselines:
        axes.axhline(_mean_and_spread(list(scores[name].values()))[0], color=GREY, ls=(0, (4, 3)), lw=1.2, label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks([rho for rho, _ in fixed])
    axes.grid(color="#E4E4E4", lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _mean_and_spread(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
