# SPDX-License-Identifier: Apache-2.0
"""Show the robustness: a table with differences, and the figures."""

from __future__ import annotations

from matplotlib.figure import Figure

from hf_sam.cli.common import page
from hf_sam.cli.common.robustness import MEANING, Robustness, difference_of, shown_rows, value_of
from hf_sam.robustness import plots
from hf_sam.robustness.metrics import metric_of
from hf_sam.robustness.results import BASE

EXPLAINED = {
    "int8 dynamic": "Weights of linear layers in 8 bits with one step a layer, their inputs rounded too, as torch's "
    "quantize_dynamic computes it.",
    "int8 weights": "Weights in 8 bits, one step for each output.",
    "int4 weights": "Weights in 4 bits.",
    "int3 weights": "Weights in 3 bits.",
    "merged, average": "The mean of the weights of all checkpoints.",
}


def drawn(found: Robustness) -> dict[str, tuple[str, Figure]]:
    """Return the figures with their captions, by the name of a file."""
    return plots.figures(found.reports, found.main)


def section(found: Robustness, figures: dict[str, tuple[str, Figure]]) -> list[str]:
    """Return the part of the report."""
    return [
        "<h2>What is left after rounding, pruning, noise and shift</h2>",
        page.paragraph(_intro(found)),
        page.table(list(found.reports), _lines(found)),
        page.paragraph(MEANING, "note"),
        page.figures(list(figures.values())),
    ]


def _intro(found: Robustness) -> str:
    text = f"On {found.data}. "
    if found.calibration:
        text += f"The temperature was fitted on {found.calibration}. "
    if found.comparison is not None:
        over = {
            "seeds": "over the training seeds, in pairs",
            "examples": "over the choice of examples; another training run may differ by more",
        }[found.comparison.over]
        text += (
            f"Below each number: the difference to {found.comparison.baseline}, in points of percent for shares, with "
            f"its 95 % interval {over}. In bold where zero is not in the interval; with so many lines one in twenty is "
            "bold by chance."
        )
    return text


def _lines(found: Robustness) -> list[page.Line]:
    lines = []
    for title, condition, metric in shown_rows(found):
        if not condition:
            lines.append(page.Line(title))
            continue
        said = metric_of(metric).help if condition == BASE else EXPLAINED.get(condition, "")
        cells = []
        for name, reports in found.reports.items():
            below, sure = difference_of(found, name, condition, metric)
            cells.append(page.Cell(value_of(reports, condition, metric), below, sure))
        lines.append(page.Line(title, said, cells))
    return lines
