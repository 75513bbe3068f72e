# SPDX-License-Identifier: Apache-2.0
"""Do the tables and the picture of a grid say what its runs say?"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from hf_sam import SAMConfig
from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.errors import UserError
from scripts.benchmarks.common.runs import Cell, write_run
from scripts.benchmarks.evidence import noise_plot, reference_tables, regime_tables
from scripts.benchmarks.evidence.method_tables import differences, lines_of, losses, read, scores, versus
from scripts.benchmarks.evidence.peer_tables import peers, survived

ACCURACY = {
    ("digits_0", "adamw"): [0.96, 0.97, 0.98],
    ("digits_0", "full"): [0.96, 0.96, 0.96],
    ("digits_40", "adamw"): [0.60, 0.62, 0.64],
    ("digits_40", "full"): [0.80, 0.84, 0.88],
    ("digits_40", "adamw, time of full"): [0.60, 0.60, 0.60],
    ("fashion_40", "adamw"): [0.7],
}
TIME = {"adamw": 10.0, "full": 20.0, "adamw, time of full": 20.0}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for (task, method), values in ACCURACY.items():
        for seed, value in enumerate(values, start=1):
            cell = Cell(task, method, seed)
            best = value + 0.05 if (task, method) == ("digits_40", "adamw") else value
            numbers: dict[str, Any] = {"final": value, "best": best, "train_time": TIME[method], "eval_loss": 1 - value}
            numbers["steps"] = 100
            write_run(tmp_path / "noise" / "runs", cell, {**cell._asdict(), "metric": "eval_accuracy", **numbers})
    return tmp_path


def test_a_table_of_scores_has_means_spreads_the_best_on_the_way_seeds_and_the_time(results: Path) -> None:
    assert scores(results, "noise", "digits") == [
        "| method | digits, 0 % (n = 3) | digits, 40 % (n = 3) | time |",
        "|---|---|---|---|",
        "| adamw | 97.0 ± 1.0 | 62.0 ± 2.0 (67.0) | 1.00x |",
        "| full | 96.0 ± 0.0 | 84.0 ± 4.0 | 2.00x |",
        "| adamw, time of full |  | 60.0 ± 0.0 | 2.00x |",
    ]


def test_a_method_with_fewer_seeds_than_the_others_says_so(results: Path) -> None:
    next((results / "noise" / "runs").glob("digits-40_full_3*")).unlink()
    assert "| full | 96.0 ± 0.0 | 82.0 ± 2.8 (n = 2) | 2.00x |" in scores(results, "noise", "digits")


def test_a_table_of_differences_has_intervals_p_values_and_the_same_time(results: Path) -> None:
    lines = differences(results, "noise", "digits")
    assert lines[0] == "| against adamw | digits, 0 % (n = 3) | digits, 40 % (n = 3) |"
    # 20, 22, 24: standard error 1.155, Student's 4.303 with two degrees of freedom. Four differences are corrected for.
    clean, noisy = "-1.0 (-3.5 to +1.5), p 0.23, Holm 0.45", "+22.0 (+17.0 to +27.0), p 0.0027, Holm 0.011"
    assert lines[2] == f"| full | {clean} | {noisy} |"
    assert lines[3] == "| full, against adamw in its time |  | +24.0 (+14.1 to +33.9), p 0.0091, Holm 0.027 |"


def test_a_method_is_compared_with_every_other_one_on_the_tasks_it_was_run_on(results: Path) -> None:
    clean, noisy = "-1.0 (-3.5 to +1.5), p 0.23, Holm 0.23", "+22.0 (+17.0 to +27.0), p 0.0027, Holm 0.0082"
    assert versus(results, "noise", "full", "adamw") == [
        "| full, against | digits, 0 % (n = 3) | digits, 40 % (n = 3) |",
        "|---|---|---|",
        f"| adamw | {clean} | {noisy} |",
        "| adamw, time of full |  | +24.0 (+14.1 to +33.9), p 0.0091, Holm 0.018 |",
    ]


def test_a_table_of_losses_has_means_and_differences_of_the_methods_that_were_run(results: Path) -> None:
    clean, noisy = "+0.010 (-0.015 to +0.035), p 0.23, Holm 0.45", "-0.220 (-0.270 to -0.170), p 0.0027, Holm 0.0082"
    assert losses(results, "noise", "digits") == [
        "| loss on the test examples | digits, 0 % (n = 3) | digits, 40 % (n = 3) |",
        "|---|---|---|",
        "| adamw | 0.030 ± 0.010 | 0.380 ± 0.020 |",
        "| full | 0.040 ± 0.000 | 0.160 ± 0.040 |",
        "| adamw, time of full |  | 0.400 ± 0.000 |",
        f"| full - adamw | {clean} | {noisy} |",
        "| adamw, time of full - adamw |  | +0.020 (-0.030 to +0.070), p 0.23, Holm 0.45 |",
    ]


def test_what_a_decision_needs_is_in_one_row(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"grid": "noise", "task": "digits_40", "plain": "adamw", "one": "free", "two": "full", "what": "digits"}
    monkeypatch.setattr(regime_tables, "words", lambda: {"regimes": [row], "sizes": [row]})
    assert regime_tables.regimes(results)[2:] == ["| digits (n = 3) | 62.0, 0.38 | 67.0 | - | 84.0, 0.16 (2.00x) |"]
    assert regime_tables.sizes(results)[2:] == ["| digits | 100 ms | not timed | 2.00x |"]
    monkeypatch.setattr(regime_tables, "words", lambda: {"regimes": [row | {"short": "adamw, time of full"}]})
    shorter = "| digits (n = 3) | 62.0, 0.38 | 60.0, 0.40 (2.00x) | - | 84.0, 0.16 (2.00x) |"
    assert regime_tables.regimes(results)[2] == shorter


def test_a_ratio_has_the_interval_that_was_measured() -> None:
    measured = {"time_ratio": 1.5, "time_ratio_interval": [1.4, 1.618]}
    assert regime_tables.with_interval(measured) == "1.50x (1.40 to 1.62)"
    assert regime_tables.with_interval({"time_ratio": 1.5}) == "1.50x"


def test_a_regime_without_a_run_is_one_line(results: Path) -> None:
    with pytest.raises(UserError, match="no run of the task fashion_80"):
        lines_of(results, "noise", "fashion_80")


def test_a_table_of_settings_has_every_field_in_cells_that_hold() -> None:
    tables = [reference_tables.settings, *reference_tables.arguments().values()]
    lines = [line for table in tables for line in table(Path())]
    assert len(lines) == len(fields(SAMConfig)) + len(fields(ScriptArguments)) + 2 * len(tables)
    assert {line.count("|") for line in lines} == {4}
    assert not any("<out" in line for line in lines)


@pytest.mark.slow
def test_the_picture_has_a_panel_per_data_set_and_a_line_per_method(results: Path, tmp_path: Path) -> None:
    grid, summary = read(results, "noise")
    figure = noise_plot.figure_of(grid, summary)
    assert [axes.get_title() for axes in figure.axes] == ["digits", "Fashion-MNIST"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"wrong training labels (%)"}
    heights = {c.get_label(): list(c.lines[0].get_ydata()) for c in figure.axes[0].containers}
    expected = {"adamw": [97.0, 62.0], "full": [96.0, 84.0], "adamw, time of full": [60.0]}
    assert heights.keys() == expected.keys()
    for method, values in expected.items():
        assert heights[method] == pytest.approx(values)
    noise_plot.draw(grid, summary, tmp_path / "new" / "noise.png")
    assert (tmp_path / "new" / "noise.png").read_bytes().startswith(b"\x89PNG")


def test_every_method_of_the_grid_has_a_style() -> None:
    grid, _ = read(Path("nowhere"), "noise")
    assert set(noise_plot.STYLES) == set(grid.methods)


def test_the_tables_of_peers(tmp_path: Path) -> None:
    def row(ratio: float, floor: str) -> dict[str, Any]:
        return {"floor": floor, "time_ratio": ratio, "time_ratio_range": [ratio - 0.01, ratio + 0.01]} | {
            "extra_copies_of_the_weights": ratio - 1.04,
            "share_outside_passes": None if ratio == 1.5 else (ratio - 1.0) / 2,
        }

    rows = {name: row(ratio, "two plain passes") for name, ratio in (("two plain passes", 1.0), ("hf_sam", 1.02))}
    small = {"parameters": 22_700_000, "settings": {"batch": 32, "length": 128, "accumulation": 1}, "results": rows}
    large = {"parameters": 109_500_000, "settings": {"batch": 8, "length": 128, "accumulation": 4}}
    large["results"] = {"two plain passes": row(1.0, "two plain passes")}
    small["results"]["other"] = row(1.5, "two plain passes")
    large["results"]["hf_sam"] = row(1.03, "two plain passes")
    small["checks"] = {"hf_sam": {"resume": "exact"}}
    (tmp_path / "bench").mkdir()
    for name, content in (("peers_22M", small), ("peers_110M", large)):
        (tmp_path / "bench" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    assert peers(tmp_path) == [
        (
            "|  | 23M, 32 x 128 tokens: time | of it outside of the passes | memory "
            "| 110M, 8 x 128 tokens in 4: time | of it outside of the passes | memory |"
        ),
        "|---|---|---|---|---|---|---|",
        (
            "| hf_sam, against two plain passes "
            "| 1.020 (1.010 to 1.030) | 1.0 % | 0.0 | 1.030 (1.020 to 1.040) | 1.5 % | 0.0 |"
        ),
        "| other, against two plain passes | 1.500 (1.490 to 1.510) |  | 0.5 |  |  |  |",
    ]
    assert survived(tmp_path) == ["|  | resume |", "|---|---|", "| hf_sam | exact |"]
