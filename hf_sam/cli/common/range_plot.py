# SPDX-License-Identifier: Apache-2.0
"""How does the loss rise with the radius, and where is the recommendation? One picture."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from hf_sam import VARIANTS, RangeTest

# Two of Okabe and Ito's colours, which the colour-blind can tell apart; in a grey print lines and a dot stay apart too.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6B6B6B"
WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}


def draw(result: RangeTest, path: Path) -> None:
    """Write the picture; the suffix of `path` says in which format.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if there is no such format.
    """
    figure_of(result).savefig(path, dpi=160)


def figure_of(result: RangeTest) -> Figure:
    """Return the picture."""
    figure = Figure(figsize=(6.8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (loss, row) in enumerate(zip(result.losses, result.rises, strict=True)):
        label = f"each of {len(result.losses)} batches" if number == 0 else None
        axes.plot(result.rhos, _drawable(rise / loss for rise in row), color=BLUE, alpha=0.45, lw=0.9, label=label)
    axes.plot(result.rhos, _drawable(result.relative_rises), color=BLUE, lw=2.8, label="their mean")
    _dress(axes, result)
    _mark(axes, result)
    return figure


def _dress(axes: Any, result: RangeTest) -> None:
    low, high = result.rhos[0], result.rhos[-1]
    axes.set(xscale="log", yscale="log", xlim=(low / 1.4, high * 1.4))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    # Less than a decade has hardly a major tick.
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if high < 10 * low else ""))
    direction = VARIANTS[result.variant]
    unit = "in units of each weight's size" if direction.scale_free else "Euclidean norm of the change of the weights"
    axes.set_xlabel(f"rho, radius of the perturbation ({unit})")
    axes.set_ylabel("rise of the loss, L(w + ε) - L(w)  (% of L(w))")
    axes.set_title(
        f"{direction.title} after {result.steps} plain steps: L(w) = {sum(result.losses) / len(result.losses):.3g}",
        loc="left",
        fontsize=11,
    )
    axes.grid(color="#E4E4E4", lw=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="upper left", facecolor="white", edgecolor="none", framealpha=1)


def _mark(axes: Any, result: RangeTest) -> None:
    """Draw the limit, and the recommendation where it lies on the mean curve."""
    limit = 100 * result.share
    axes.axhline(limit, color=GREY, lw=1.2, ls=(0, (5, 3)), zorder=1)
    axes.annotate(
        f"{limit:g} % of the loss", (1, limit), xycoords=("axes fraction", "data"), xytext=(-4, 3),
        textcoords="offset points", color=GREY, ha="right", va="bottom", bbox=WHITE,
    )  # fmt: skip
    height, bottom = 100 * _interpolated(result), axes.get_ylim()[0]
    if height > 0:
        axes.vlines(result.rho, bottom, height, color=ORANGE, lw=1.5)
        axes.set_ylim(bottom=bottom)
        axes.plot([result.rho], [height], "o", color=ORANGE, ms=8, mec="white", mew=1.2, zorder=5)
    else:  # nowhere on the curve
        axes.axvline(result.rho, color=ORANGE, lw=1.5)
    left = axes.transAxes.inverted().transform(axes.transData.transform((result.rho, 1)))[0] > 0.6
    axes.annotate(
        f"start with rho = {result.rho:.3g}", (result.rho, 0.05), xycoords=("data", "axes fraction"),
        xytext=(-6 if left else 6, 0), textcoords="offset points", color=ORANGE, weight="bold",
        ha="right" if left else "left", bbox=WHITE,
    )  # fmt: skip


def _interpolated(result: RangeTest) -> float:
    """Return the mean rise at the recommended radius, between its neighbours; nan where there is no logarithm."""
    points = list(zip(result.rhos, result.relative_rises, strict=True))
    (x0, y0) = max(point for point in points if point[0] <= result.rho)
    (x1, y1) = min(point for point in points if point[0] >= result.rho)
    if x0 == x1:
        return y0 if y0 > 0 and math.isfinite(y0) else math.nan
    if not (y0 > 0 and math.isfinite(y1)):
        return math.nan
    return float(y0 * (y1 / y0) ** (math.log(result.rho / x0) / math.log(x1 / x0)))


def _drawable(shares: Iterable[float]) -> list[float]:
    """Return percentages, nan where there is no logarithm."""
    return [100 * share if share > 0 and math.isfinite(share) else math.nan for share in shares]
