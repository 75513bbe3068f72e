# SPDX-License-Identifier: Apache-2.0
"""Show the flatness: a table with plain names, the differences, and the figures."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from hf_sam.cli.common import page
from hf_sam.cli.common.flatness import COLUMNS, NORMAL, SCRIPT_NAMES, cell, interval
from hf_sam.sharpness import plots

DIRECTION = "Distance is in norms of the weights' rows: at 1 each row has moved by as much as it is long"


def drawn(found: dict[str, Any]) -> dict[str, tuple[str, Figure]]:
    """Return the figures with their captions, by the name of a file."""
    models, loss = found["models"], found["loss_unit"]
    figures: dict[str, tuple[str, Figure]] = {}
    if densities := {name: each.density for name, each in models.items() if each.density}:
        figures["spectrum"] = (
            "Spectrum of the Hessian: how the loss bends, over all directions",
            plots.spectrum(densities),
        )
    if lines := {name: each.line for name, each in models.items() if each.line}:
        caption = f"Loss along one random direction from the weights, the same for all. {DIRECTION}. Dots were measured"
        figures["landscape_1d"] = caption, plots.landscape_1d(lines, loss)
    if squares := {name: each.square for name, each in models.items() if each.square}:
        points = len(next(iter(squares.values())).x)
        caption = f"Loss along two random directions, the same for all, from {points} x {points} points. {DIRECTION}"
        figures["landscape_2d"] = caption, plots.landscape_2d(squares, loss)
    if found["lines"]:
        caption = "Loss and score on the straight way from one checkpoint to the other"
        figures["interpolation"] = caption, plots.interpolation(found["lines"], found["metric"], loss)
    return figures


def section(found: dict[str, Any], figures: dict[str, tuple[str, Figure]]) -> list[str]:
    """Return the part of the report."""
    models = found["models"]
    settings = next(iter(models.values())).report["settings"]
    lines = []
    for row in COLUMNS:
        texts = [cell(each.report, row.key) for each in models.values()]
        if any(texts):
            lines.append(page.Line(row.title, row.help, [page.Cell(text) for text in texts]))
    parts = [
        "<h2>How flat the loss is around the weights</h2>",
        page.paragraph(
            f"The loss on {settings['examples']:,} training examples, as training sees them but without dropout; "
            f"{settings['number_of_parameters']:,} weights are moved."
        ),
        page.table(list(models), lines),
        page.paragraph(NORMAL, "note"),
    ]
    if found["comparison"]:
        parts += _differences(found["comparison"])
    return [*parts, page.figures(list(figures.values()))]


def _differences(comparison: Any) -> list[str]:
    others = [name for name in next(iter(comparison.values.values())) if name != comparison.baseline]
    lines = []
    for measure, known in comparison.differences.items():
        row = SCRIPT_NAMES[measure]
        cells = []
        for name in others:
            mean, _, between = interval(known[name]).partition("  ")
            cells.append(page.Cell(mean, between.strip("()"), known[name].low > 0 or known[name].high < 0))
        lines.append(page.Line(row.title, row.help, cells))
    said = (
        f"Mean difference to {comparison.baseline} over {len(comparison.folds)} folds of {min(comparison.folds)} or "
        "more examples, and its 95 % interval: over the choice of examples, not over training runs. A fold's curvature "
        "is larger than that of all examples. In bold where zero is not in the interval."
    )
    return ["<h3>Differences</h3>", page.paragraph(said), page.table(others, lines)]
