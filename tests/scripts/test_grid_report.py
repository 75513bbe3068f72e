# SPDX-License-Identifier: Apache-2.0
"""Does the table say what the runs say?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from scripts import grid_report
from scripts.common.grid_plot import figure_of

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
def files(tmp_path: Path) -> list[str]:
    rows = [
        {"task": task, "method": method, "seed": seed, "eval_accuracy": value}
        for (task, method), values in ACCURACIES.items()
        for seed, value in enumerate(values, start=1)
    ]
    (tmp_path / "grid.yaml").write_text(GRID, encoding="utf-8")
    lines = [json.dumps(row) for row in reversed(rows)]
    (tmp_path / "runs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return [str(tmp_path / "grid.yaml"), str(tmp_path / "runs.jsonl")]


def test_the_table_has_means_spreads_and_the_difference_to_the_best(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert grid_report.main(files) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| method | easy, clean | hard, wrong labels |",
        "|---|---|---|",
        "| adamw | 90.0 ± 0.0 | 60.0 (n = 1) |",
        "| momentum 0.3 |  |  |",
        "| momentum auto |  | 80.0 (n = 1) |",
        "| sam 0.05 | 93.0 ± 1.7 |  |",
        "| sam 0.2 | 50.0 ± 0.0 | 75.0 (n = 1) |",
        "| sam auto | 93.0 ± 2.0 | 75.0 ± 7.1 (n = 2) |",
        "| sam: auto - best | +0.0 ± 0.6 (0.05) | +5.0 (0.2) |",  # of -1, +1, 0: 1 / sqrt(3)
        "| momentum: auto - best |  |  |",
    ]


def test_the_picture_has_a_task_per_column_and_a_direction_per_row(files: list[str], tmp_path: Path) -> None:
    assert grid_report.main([*files, "--plot", str(tmp_path / "new" / "auto.png")]) == 0
    assert (tmp_path / "new" / "auto.png").read_bytes().startswith(b"\x89PNG")
    grid = grid_report.read_grid(Path(files[0]))
    results = grid_report.results_of(grid, grid_report.read_rows(Path(files[1])))
    panels = figure_of(grid.titles, results).axes
    assert [axes.get_title() for axes in panels] == ["easy,\nclean", "hard,\nwrong labels", "", ""]
    assert {axes.get_xlabel() for axes in panels} == {"rho"}
    assert [axes.get_ylabel() for axes in panels] == ["sam\naccuracy (%)", "", "momentum\naccuracy (%)", ""]
    heights = [line.get_ydata()[0] for line in panels[0].get_lines() if line.get_label() in ('rho="auto"', "adamw")]
    assert heights == pytest.approx([93.0, 90.0])


def test_a_grid_without_runs_is_one_line(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert grid_report.main([files[0], str(tmp_path / "nothing.jsonl")]) == 2
    assert capsys.readouterr().err == "error: none of the grid's runs is there: run scripts/grid.py first.\n"


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
    assert grid_report.split(method) == parts
