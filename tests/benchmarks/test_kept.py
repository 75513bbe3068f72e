# SPDX-License-Identifier: Apache-2.0
"""Do the tables of what is left of models, and the picture of differences, say what the runs say?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from scripts.benchmarks.common.runs import Cell, write_run
from scripts.benchmarks.evidence import difference_plot, kept_tables, method_tables, suspects_table

THREE_BITS = {"adamw": [0.6, 0.5, 0.4], "full": [0.8, 0.8, 0.8]}
LOSS = {"adamw": [0.9, 1.0, 1.1], "full": [0.6, 0.5, 0.4]}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for method, values in THREE_BITS.items():
        for seed, (value, loss) in enumerate(zip(values, LOSS[method], strict=True), start=1):
            cell = Cell("mpqa", method, seed)
            kept = {"as trained": {"nll": loss, "ece": None}, "int3 weights": {"accuracy": value}}
            row: dict[str, Any] = {"metric": "eval_accuracy", "final": value, "eval_loss": loss, "robustness": kept}
            write_run(tmp_path / "radius" / "runs", cell, {**cell._asdict(), **row})
    return tmp_path


def test_a_task_and_a_method_are_a_line_and_what_was_not_measured_is_empty(results: Path) -> None:
    lines = kept_tables.kept(results, "radius")
    assert lines[0].startswith("| task | method | NLL | NLL, scaled | ECE (%) |")
    assert [line.split(" | ")[2:] for line in lines[2:]] == [
        ["1.00", "", "", "", "", "50.0", " |"],
        ["0.50", "", "", "", "", "80.0", " |"],
    ]


def test_differences_have_p_values_corrected_over_the_table(results: Path) -> None:
    _, _, line = kept_tables.kept_differences(results, "radius", "full")
    # of -0.3, -0.5, -0.7 and of 20, 30, 40 points: t = 4.33 and 5.20 with two degrees of freedom
    assert line.split(" | ")[1] == "-0.50, p 0.049, Holm 0.07"
    assert line.split(" | ")[6] == "+30.00, p 0.035, Holm 0.07"
    header, _, line = kept_tables.kept_differences(results, "radius", "adamw", other="full")
    assert header.startswith("| adamw - full |")
    assert line.split(" | ")[6] == "-30.00, p 0.035, Holm 0.07"


def test_the_presets_are_compared_cell_by_cell_in_accuracy_and_loss(results: Path) -> None:
    header, _, line = method_tables.over_cells(results, "radius", ("full", "free"))
    assert header == "| against adamw | full, accuracy | full, test loss | free, accuracy | free, test loss |"
    # corrected over one cell, so not at all
    assert "+30.0 (+5.2 to +54.8), p 0.035, Holm 0.035 | -0.500 (-0.997 to -0.003), p 0.049, Holm 0.049 |  |  |" in line


@pytest.mark.slow
def test_the_picture_has_the_differences_of_each_method(results: Path, tmp_path: Path) -> None:
    left, right = difference_plot.figure_of(results, "radius", ("full",)).axes
    assert left.get_lines()[0].get_xdata().tolist() == pytest.approx([30.0])
    assert right.get_lines()[0].get_xdata().tolist() == pytest.approx([-0.5])
    difference_plot.draw(results, tmp_path / "new" / "a.png", "radius", ("full",))
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_suspects_are_means_over_the_seeds(tmp_path: Path) -> None:
    for seed, found in ((1, 100), (2, 200)):
        cell = Cell("digits_noise", "sam", seed)
        numbers = {"suspects": found, "suspects_precision": 0.9, "suspects_recall": 0.8, "eval_accuracy": 0.7}
        write_run(tmp_path / "suspects", cell, {**cell._asdict(), "metric": "eval_accuracy", **numbers})
    assert suspects_table.table(tmp_path)[2:] == [
        "| SAM, rho 0.2 (n = 2) | 150.0 ± 70.7 | 90.0 ± 0.0 | 80.0 ± 0.0 | 70.0 ± 0.0 |"
    ]
