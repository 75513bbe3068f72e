# SPDX-License-Identifier: Apache-2.0
"""Figures of what was measured. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hf_sam.sharpness.landscape import Interpolation, Landscape
from hf_sam.sharpness.results import Density

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
STYLES = ("-", (0, (5, 2)), (0, (1, 1)), (0, (4, 1, 1, 1)))
GREY = "#6B6B6B"


def spectrum(densities: Mapping[str, Density]) -> Figure:
    """Draw the density of eigenvalues of each model, on a logarithmic scale: most are near zero, few count.

    Args:
        densities: by the model's name.
    """
    figure, axes = _one()
    for i, (name, density) in enumerate(densities.items()):
        at, curve = density.curve()
        axes.plot(at, np.maximum(curve, 1e-30), label=name, **_line(i))
    axes.set_yscale("log")
    axes.set_ylim(bottom=1e-9 * max(max(line.get_ydata()) for line in axes.get_lines()))
    _labelled(axes, "eigenvalue of the Hessian (loss per squared weight)", "density (share per unit)")
    return figure


def landscape_1d(landscapes: Mapping[str, Landscape], loss: str = "loss") -> Figure:
    """Draw the loss along one direction from each model's weights, with a dot where it was measured.

    Args:
        landscapes: by the model's name, in one dimension.
        loss: what the loss is called, with its unit.
    """
    figure, axes = _one()
    for i, (name, found) in enumerate(landscapes.items()):
        axes.plot(found.x, found.losses, label=name, marker="o", ms=3, **_line(i))
    _labelled(axes, "distance (norms of the weights' rows)", loss)
    return figure


def landscape_2d(landscapes: Mapping[str, Landscape], loss: str = "loss") -> Figure:
    """Draw contours of the loss on the square around each model's weights, on one scale of colours.

    Args:
        landscapes: by the model's name, in two dimensions.
        loss: what the loss is called, with its unit.
    """
    figure = Figure(figsize=(3.6 * len(landscapes) + 0.6, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    row = figure.subplots(1, len(landscapes), squeeze=False, sharey=True)[0]
    levels = _levels([np.asarray(found.losses) for found in landscapes.values()])
    drawn: Any = None
    for axes, (name, found) in zip(row, landscapes.items(), strict=True):
        clipped = np.clip(found.losses, levels[0], levels[-1])
        drawn = axes.contourf(found.x, found.y, clipped, levels=levels, cmap="viridis")
        axes.contour(found.x, found.y, clipped, levels=levels, colors="white", linewidths=0.4)
        axes.plot(0, 0, marker="+", color="white", ms=9)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("first direction (row norms)")
        axes.set_aspect("equal")
    row[0].set_ylabel("second direction (row norms)")
    figure.colorbar(drawn, ax=list(row), label=loss, ticks=levels[:: max(1, len(levels) // 6)])
    return figure


def surface(landscapes: Mapping[str, Landscape]) -> Figure:
    """Draw the loss on the square around each model's weights as surfaces with a common height.

    Args:
        landscapes: by the model's name, in two dimensions.
    """
    figure = Figure(figsize=(4.2 * len(landscapes), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    levels = _levels([np.asarray(found.losses) for found in landscapes.values()])
    for i, (name, found) in enumerate(landscapes.items()):
        axes: Any = figure.add_subplot(1, len(landscapes), i + 1, projection="3d")
        x, y = np.meshgrid(found.x, found.y)
        heights = np.clip(found.losses, levels[0], levels[-1])
        axes.plot_surface(x, y, heights, cmap="viridis", vmin=levels[0], vmax=levels[-1], rstride=1, cstride=1)
        axes.set_zlim(levels[0], levels[-1])
        axes.set_title(name, fontsize=10)
        axes.set(xlabel="first direction", ylabel="second direction", zlabel="loss")
    return figure


def interpolation(lines: Mapping[str, Interpolation], metric: str = "metric", loss: str = "loss") -> Figure:
    """Draw loss, and the metric if there is one, on the way from one model to another; a dot where it was measured.

    Args:
        lines: by name, such as "adamw to sam".
        metric: what the metric is called.
        loss: what the loss is called, with its unit.
    """
    figure, axes = _one()
    other: Any = None
    for i, (name, found) in enumerate(lines.items()):
        axes.plot(found.t, found.losses, label=f"{name}: loss", marker="o", ms=3, **_line(i))
        if found.metrics:
            other = other or axes.twinx()
            style = {"color": GREY, "ls": STYLES[i % len(STYLES)], "lw": 1.2, "marker": "s", "ms": 3}
            other.plot(found.t, found.metrics, label=f"{name}: {metric}", **style)
            other.set_ylabel(metric)
            other.spines["top"].set_visible(False)
    _labelled(axes, "share of the way", loss)
    return figure


def over_training(histories: Mapping[str, Sequence[Mapping[str, Any]]], key: str = "sharpness/lambda_max") -> Figure:
    """Draw what `SharpnessCallback` logged, against the step.

    Args:
        histories: `trainer.state.log_history`, by the run's name.
        key: which value.
    """
    figure, axes = _one()
    for i, (name, history) in enumerate(histories.items()):
        points = [(row["step"], row[key]) for row in history if key in row]
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", ms=3, label=name, **_line(i))
    _labelled(axes, "optimizer step", key.removeprefix("sharpness/"))
    return figure


def _one() -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _line(i: int) -> dict[str, Any]:
    """Return a colour and a dash pattern, so that lines differ without colours too."""
    return {"color": COLOURS[i % len(COLOURS)], "ls": STYLES[i % len(STYLES)], "lw": 1.6}


def _labelled(axes: Any, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(color="#E4E4E4", lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)


def _levels(surfaces: Sequence[Any]) -> Any:
    """Return round heights for all surfaces: from the lowest point to where nine tenths of the points are."""
    values = np.concatenate([surface.reshape(-1) for surface in surfaces])
    values = values[np.isfinite(values)]
    low, high = values.min(), np.quantile(values, 0.9)
    return MaxNLocator(nbins=15, steps=(1, 2, 2.5, 5, 10)).tick_values(low, high if high > low else low + 1)
