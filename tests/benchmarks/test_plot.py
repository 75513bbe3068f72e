# SPDX-License-Identifier: Apache-2.0
"""Does the README say what was measured? Its tables are those that the result files give."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from hf_sam.cli.common.errors import UserError
from scripts.benchmarks import plot
from scripts.benchmarks.evidence.bench_tables import words
from scripts.benchmarks.evidence.flatness_tables import mean_and_spread
from scripts.benchmarks.evidence.readme import markdown, with_tables

README = plot.ROOT / "README.md"
RESULTS = plot.RESULTS


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RESULTS, tmp_path / "results"))


def test_the_tables_in_the_readme_are_those_of_the_result_files() -> None:
    assert plot.main(["--check"]) == 0, "run `make results`"


@pytest.mark.slow
def test_another_measurement_is_seen(results: Path) -> None:
    path = next(path for name in ("23M", "cpu") if (path := results / "bench" / f"{name}.json").exists())
    changed = json.loads(path.read_text(encoding="utf-8"))
    changed["results"]["sam"]["time_ratio"] += 0.01
    path.write_text(json.dumps(changed), encoding="utf-8")
    assert plot.main(["--check", "--results", str(results)]) == 1


@pytest.mark.slow
def test_tables_and_figures_are_written(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    emptied = re.sub(
        r"(<!-- table: [\w ]+ -->\n).*?(<!-- end -->)", r"\1\2", README.read_text("utf-8"), flags=re.DOTALL
    )
    readme.write_text(emptied, encoding="utf-8")
    figures = list(results.rglob("*.png"))
    assert figures
    for figure in figures:
        figure.unlink()
    assert plot.main(["--results", str(results), "--readme", str(readme)]) == 0
    assert readme.read_text(encoding="utf-8") == README.read_text(encoding="utf-8")
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)


def test_every_figure_in_the_readme_is_drawn_from_result_files() -> None:
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    assert {README.parent / path for path in shown} == set(RESULTS.rglob("*.png"))


def test_every_direction_has_a_line() -> None:
    from hf_sam import VARIANTS
    from hf_sam.config.presets import PRESETS

    ours = {name for name, variant in VARIANTS.items() if variant.__module__.startswith("hf_sam.")}
    assert set(words()["variants"]) == ours
    assert set(words()["presets"]) == set(PRESETS)


def test_results_that_are_missing_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = README.read_bytes()
    assert plot.main(["--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert README.read_bytes() == before


def test_a_table_without_a_place_is_refused() -> None:
    text = "a\n<!-- table: one -->\nold\n<!-- end -->\nb"
    assert with_tables(text, {"one": ["x", "y"]}) == "a\n<!-- table: one -->\nx\ny\n<!-- end -->\nb"
    with pytest.raises(UserError, match="no place for the tables"):
        with_tables(text, {"one": [], "two": []})
    with pytest.raises(UserError, match="no table for the places"):
        with_tables(text, {})


def test_markdown() -> None:
    assert markdown(["", "b"], [["1", "2"]]) == ["|  | b |", "|---|---|", "| 1 | 2 |"]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1000.0, 2000.0], "1,500 ± 710"),
        ([1.0, 1.4], "1.20 ± 0.28"),
        ([0.0301, 0.0333], "0.0317 ± 0.0023"),
        ([15.0, 17.0], "16.0 ± 1.4"),
        ([2.0, 2.0], "2.00 ± 0.00"),
        ([2.0], "2 (n = 1)"),
    ],
)
def test_numbers_are_rounded_by_their_spread(values: list[float], text: str) -> None:
    assert mean_and_spread(values) == text
