# SPDX-License-Identifier: Apache-2.0
"""Does the table say what the runs say?"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from hf_sam.cli.common.errors import UserError
from scripts.benchmarks.common.grids import Grid, read_grid
from scripts.benchmarks.evidence.radius_plot import draw, figure_of
from scripts.benchmarks.evidence.radius_table import Results, results_of, split, table

GRID = """
seeds: [1, 2, 3]
common:
tasks: {a: {title: "easy, clean"}, b: {title: "hard, wrong labels"}, c: {}}
methods: {adamw: {}, sam auto: {}, sam 0.2: {}, sam 0.05: {}, momentum auto: {}, momentum 0.3: {}}
"""
ACCURACIES = {
    ("a", "adamw"): [0.9, 0.9, 0.9],
    ("a", "sam auto"): [0.91, 0.93, 0.95],
    ("a", "sam 0.05"): [0.92, 0.92, 0.95],
    ("a", "sam 0.2"): [0.5, 0.5, 0.5],
    ("b", "adamw"): [0.6],
    ("b", "sam auto"): [0.8, 0.7],
    ("b", "sam 0.2"): [0.75],
    ("b", "momentum auto"): [0.8],
}


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    (tmp_path / "grid.yaml").write_text(GRID, encoding="utf-8")
    return read_grid(tmp_path / "grid.yaml")


@pytest.fixture
def results(grid: Grid) -> Results:
    rows = [
        {"task": task, "method": method, "seed": seed, "final": value}
        for (task, method), values in ACCURACIES.items()
        for seed, value in enumerate(values, start=1)
    ]
    return results_of(grid, rows[::-1])


def test_the_table_has_means_spreads_and_the_difference_to_the_best(grid: Grid, results: Results) -> None:
    assert table(grid, results) == [
        "| method | easy, clean | hard, wrong labels |",
        "|---|---|---|",
        "| adamw | 90.0 ± 0.0 | 60.0 (n = 1) |",
        "| momentum auto |  | 80.0 (n = 1) |",
        "| sam 0.05 | 93.0 ± 1.7 |  |",
        "| sam 0.2 | 50.0 ± 0.0 | 75.0 (n = 1) |",
        "| sam auto | 93.0 ± 2.0 | 75.0 ± 7.1 (n = 2) |",
        "| sam: auto - best | +0.0 ± 0.6 (0.05) | +5.0 (0.2) |",  # of -1, +1, 0: 1 / sqrt(3)
        "| momentum: auto - best |  |  |",
    ]


@pytest.mark.slow
def test_the_picture_has_a_task_per_column_and_a_direction_per_row(
    grid: Grid, results: Results, tmp_path: Path
) -> None:
    draw(grid.titles, results, tmp_path / "new" / "auto.png")
    assert (tmp_path / "new" / "auto.png").read_bytes().startswith(b"\x89PNG")
    panels = figure_of(grid.titles, results).axes
    assert [axes.get_title() for axes in panels] == ["easy,\nclean", "hard,\nwrong labels", "", ""]
    assert {axes.get_xlabel() for axes in panels} == {"rho"}
    assert [axes.get_ylabel() for axes in panels] == ["sam\naccuracy (%)", "", "momentum\naccuracy (%)", ""]
    heights = [line.get_ydata()[0] for line in panels[0].get_lines() if line.get_label() in ('rho="auto"', "adamw")]
    assert heights == pytest.approx([93.0, 90.0])


def test_a_grid_without_runs_is_one_line(grid: Grid) -> None:
    with pytest.raises(UserError, match="none of the grid's runs is there"):
        results_of(grid, [])


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("sam 0.05", ("sam", "0.05")),
        ("sam 5e-3", ("sam", "5e-3")),
        ("momentum auto", ("momentum", "auto")),
        ("sam found", ("sam found", None)),
        ("adamw", ("adamw", None)),
    ],
)
def test_a_name_that_ends_in_no_radius_is_a_baseline(method: str, parts: tuple[str, str | None]) -> None:
    assert split(method) == parts
