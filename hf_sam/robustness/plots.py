# SPDX-License-Identifier: Apache-2.0
"""Figures of what is left of models. Needs matplotlib.

Models differ in colour, in the shape of the marker and in the dash pattern, so that they can be told apart in grey.
Markers stand where something was measured, and no line joins them; an error bar is the standard deviation over seeds.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_sam.robustness.metrics import metric_of
from hf_sam.robustness.results import BASE, Report
from hf_sam.sharpness.plots import COLOURS, GREY, STYLES

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FILLS = ("full", "none")
RELIABILITY = (
    "Reliability: how often an answer is right, by how sure the model is of it. On the dotted line they are the same; "
    "below it the model is too sure. Larger markers stand for more examples"
)
RISK_COVERAGE = "Risk and coverage: wrong answers when only the examples are answered that the model is surest of"
Reports = Mapping[str, Sequence[Report]]
"""By the model's name, one for each seed."""


def reliability(reports: Reports, condition: str = BASE) -> Figure:
    """Draw accuracy against confidence in bins: on the diagonal a model is as often right as it says.

    Args:
        reports: of several models; of each the first seed is drawn.
        condition: which one.
    """
    figure, axes = _one()
    axes.plot([0, 100], [0, 100], color=GREY, lw=1, ls=(0, (1, 2)), label="as sure as right")
    for i, (name, found) in enumerate(reports.items()):
        bins = [each for each in found[0][condition].reliability if each.count]
        most = max((each.count for each in bins), default=1)
        x, y = [100 * (b.confidence or 0) for b in bins], [100 * (b.accuracy or 0) for b in bins]
        sizes = [14 + 110 * each.count / most for each in bins]
        colour = COLOURS[i % len(COLOURS)]
        inside = colour if i % 2 == 0 else "none"
        axes.scatter(x, y, s=sizes, marker=MARKERS[i % len(MARKERS)], facecolors=inside, edgecolors=colour, lw=1.4)
        axes.plot([], [], label=name, **_marker(i))
    _finish(axes, "confidence of the answer (%)", "right answers (%)")
    axes.set(xlim=(-3, 103), ylim=(-3, 103))
    return figure


def risk_coverage(reports: Reports, condition: str = BASE) -> Figure:
    """Draw the share of wrong answers among the ones that a model is surest of.

    Args:
        reports: of several models; of each the first seed is drawn.
        condition: which one.
    """
    figure, axes = _one()
    for i, (name, found) in enumerate(reports.items()):
        curve = found[0][condition].risk_coverage
        if curve is None:
            continue
        x, y = [100 * each for each in curve.coverage], [100 * each for each in curve.risk]
        style = {"color": COLOURS[i % len(COLOURS)], "ls": STYLES[i % len(STYLES)], "lw": 1.6}
        axes.plot(x, y, drawstyle="steps-post", label=name, **style)
    _finish(axes, "examples answered, surest first (%)", "wrong answers among them (%)")
    axes.set_ylim(bottom=0)
    return figure


def against_bits(reports: Reports, metric: str) -> Figure:
    """Draw a score against the bits of the weights, int8 with rounded inputs beside them.

    Args:
        reports: of several models.
        metric: which score.
    """
    names = [each.condition.name for each in _first(reports).of("quantisation")]
    return _over_names(reports, [BASE, *names], metric, "numbers that the weights are stored in")


def against_sparsity(reports: Reports, metric: str) -> Figure:
    """Draw a score against the share of the weights that are set to zero.

    Args:
        reports: of several models.
        metric: which score.
    """
    points = [(each.condition.name, 100 * (each.condition.level or 0)) for each in _first(reports).of("pruning")]
    figure, axes = _over_levels(reports, points, metric, "weights set to zero, the smallest first (%)")
    axes.set_xticks([0.0, *(at for _, at in points)])
    return figure


def against_severity(reports: Reports, kind: str, metric: str) -> Figure:
    """Draw a score against the severity of one corruption.

    Args:
        reports: of several models.
        kind: the corruption.
        metric: which score.
    """
    found = [each.condition for each in _first(reports).of("corruption") if each.condition.kind == kind]
    points = [(each.name, float(each.level or 0)) for each in found]
    figure, axes = _over_levels(reports, points, metric, f"severity: {kind}")
    axes.set_xticks([0.0, *(at for _, at in points)], ["none", *(f"{at:g}" for _, at in points)])
    return figure


def over_conditions(reports: Reports, group: str, metric: str) -> Figure:
    """Draw a score under every condition of a group, such as "shift" or "merging".

    Args:
        reports: of several models.
        group: of conditions.
        metric: which score.
    """
    names = [each.condition.name for each in _first(reports).of(group)]
    return _over_names(reports, [BASE, *names], metric, "")


def _over_names(reports: Reports, names: Sequence[str], metric: str, label: str) -> Figure:
    figure, axes = _one()
    for i, name in enumerate(reports):
        x = [at + _offset(i, len(reports), 0.3) for at in range(len(names))]
        _points(axes, i, name, x, [_seeds(reports[name], condition, metric) for condition in names], metric)
    axes.set_xticks(range(len(names)), [each.replace(" ", "\n", 1) for each in names])
    _finish(axes, label, _title(metric))
    return figure


def _over_levels(reports: Reports, points: Sequence[tuple[str, float]], metric: str, label: str) -> tuple[Figure, Any]:
    """Draw a score of the models as they are, at 0, and under conditions at the levels that stand beside them."""
    figure, axes = _one()
    points = [(BASE, 0.0), *points]
    step = min((b - a for (_, a), (_, b) in itertools.pairwise(points)), default=1.0)
    for i, name in enumerate(reports):
        x = [at + _offset(i, len(reports), 0.3 * step) for _, at in points]
        _points(axes, i, name, x, [_seeds(reports[name], condition, metric) for condition, _ in points], metric)
    _finish(axes, label, _title(metric))
    return figure, axes


def _points(axes: Any, i: int, name: str, x: Sequence[float], values: Sequence[Sequence[float]], metric: str) -> None:
    """Draw the means over seeds, with their standard deviation where there are several."""
    scale = 100.0 if metric_of(metric).percent else 1.0
    kept = [(at, [scale * v for v in found]) for at, found in zip(x, values, strict=True) if found]
    means = [statistics.mean(found) for _, found in kept]
    spread = [statistics.stdev(found) if len(found) > 1 else 0.0 for _, found in kept]
    bars = {"yerr": spread, "capsize": 3} if any(spread) else {}
    axes.errorbar([at for at, _ in kept], means, label=name, elinewidth=1, **bars, **_marker(i))


def _seeds(reports: Sequence[Report], condition: str, metric: str) -> list[float]:
    found = [each.measurements.get(condition) for each in reports]
    return [value for each in found if each is not None and (value := each.scores.get(metric)) is not None]


def _first(reports: Reports) -> Report:
    return next(iter(reports.values()))[0]


def _offset(i: int, count: int, width: float) -> float:
    """Return how far to the side a model's markers stand, so that equal scores do not hide each other."""
    return width * (i - (count - 1) / 2) / max(1, count - 1)


def _marker(i: int) -> dict[str, Any]:
    colour = COLOURS[i % len(COLOURS)]
    fill = FILLS[i % len(FILLS)]
    return {
        "ls": "none",
        "marker": MARKERS[i % len(MARKERS)],
        "ms": 6.5,
        "color": colour,
        "fillstyle": fill,
        "mew": 1.4,
    }


def _title(metric: str) -> str:
    found = metric_of(metric)
    return f"{found.title} (%)" if found.percent else found.title


def _one() -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _finish(axes: Any, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(color="#E4E4E4", lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)


def figures(reports: Reports, metric: str) -> dict[str, tuple[str, Figure]]:
    """Return every figure that there is something to draw in, with its caption, by the name of a file.

    Args:
        reports: of several models.
        metric: the score to draw against bits, sparsity and severity.
    """
    first, title = _first(reports), metric_of(metric).title
    groups = {each.condition.group for each in first.measurements.values()}
    drawn: dict[str, tuple[str, Figure]] = {}
    if first[BASE].reliability:
        drawn["reliability"] = RELIABILITY, reliability(reports)
        drawn["risk_coverage"] = RISK_COVERAGE, risk_coverage(reports)
    if "quantisation" in groups:
        drawn["bits"] = f"{title} with weights in few bits, not trained after rounding", against_bits(reports, metric)
    if "pruning" in groups:
        caption = f"{title} with the smallest weights set to zero, not trained after it"
        drawn["sparsity"] = caption, against_sparsity(reports, metric)
    for kind in dict.fromkeys(each.condition.kind for each in first.of("corruption")):
        caption = f"{title} on corrupted inputs: {kind}"
        drawn[f"corruption_{kind.replace(' ', '_')}"] = caption, against_severity(reports, kind, metric)
    for group, what in (("shift", "on other data"), ("merging", "after merging with other checkpoints")):
        if group in groups:
            drawn[group] = f"{title} {what}", over_conditions(reports, group, metric)
    return drawn
