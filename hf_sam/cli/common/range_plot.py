# SPDX-License-Identifier: Apache-2.0
"""Write the picture of a range test to a file, without a screen."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_sam import RangeTest


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
    result.plot(figure.add_subplot())
    return figure
