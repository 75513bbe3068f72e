# SPDX-License-Identifier: Apache-2.0
"""Do the README and the documentation say what was measured? Their tables are those that the result files give."""

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
from scripts.benchmarks.evidence.pages import BLOCK, check_places, markdown, pages, with_tables
from tests.docs.pages import PUBLISHED

DOCS = plot.ROOT / "docs"
RESULTS = plot.RESULTS


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RESULTS, tmp_path / "results"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the README and the documentation, all tables empty."""
    shutil.copytree(DOCS, tmp_path / "root" / "docs")
    shutil.copy(plot.ROOT / "README.md", tmp_path / "root")
    for page in pages(tmp_path / "root"):
        text = page.read_text(encoding="utf-8")
        page.write_text(BLOCK.sub(r"\1\3", text), encoding="utf-8")
    return tmp_path / "root"


def texts(root: Path) -> list[str]:
    return [page.read_text(encoding="utf-8") for page in pages(root)]


def test_the_tables_in_the_pages_are_those_of_the_result_files() -> None:
    assert plot.main(["--check"]) == 0, "run `make results`"


@pytest.mark.slow
def test_another_measurement_is_seen(results: Path) -> None:
    path = next(path for name in ("23M", "cpu") if (path := results / "bench" / f"{name}.json").exists())
    changed = json.loads(path.read_text(encoding="utf-8"))
    changed["results"]["sam"]["time_ratio"] += 0.01
    path.write_text(json.dumps(changed), encoding="utf-8")
    assert plot.main(["--check", "--results", str(results)]) == 1


@pytest.mark.slow
def test_tables_and_figures_are_written(root: Path) -> None:
    figures = list(root.rglob("*.png"))
    assert len(figures) == len(plot.FIGURES)
    for figure in figures:
        figure.unlink()
    assert plot.main(["--root", str(root)]) == 0
    assert texts(root) == texts(plot.ROOT)
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)


def test_every_figure_in_the_pages_is_drawn_from_result_files() -> None:
    shown = [
        plot.ROOT / published[1] if (published := re.fullmatch(PUBLISHED, path)) else page.parent / path
        for page in pages(plot.ROOT)
        for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    ]
    drawn = {DOCS / "evidence" / name for name in plot.FIGURES}
    assert set(shown) == drawn == {*DOCS.rglob("*.png"), *RESULTS.rglob("*.png")}


def test_every_direction_has_a_line() -> None:
    from hf_sam import VARIANTS
    from hf_sam.config.presets import PRESETS

    ours = {name for name, variant in VARIANTS.items() if variant.__module__.startswith("hf_sam.")}
    assert set(words()["variants"]) == ours
    assert set(words()["presets"]) == set(PRESETS)


def test_results_that_are_missing_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = texts(plot.ROOT)
    assert plot.main(["--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert texts(plot.ROOT) == before


def test_a_table_is_written_wherever_it_has_a_place() -> None:
    text = "a\n<!-- table: one -->\nold\n<!-- end -->\nb"
    assert with_tables(text, {"one": ["x", "y"]}) == "a\n<!-- table: one -->\nx\ny\n<!-- end -->\nb"
    check_places([text, "a page without", text], {"one": []})


def test_a_table_without_a_place_is_refused() -> None:
    text = "a\n<!-- table: one -->\nold\n<!-- end -->\nb"
    with pytest.raises(UserError, match="no place for the tables"):
        check_places([text], {"one": [], "two": []})
    with pytest.raises(UserError, match="no table for the places"):
        check_places([text], {})


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
