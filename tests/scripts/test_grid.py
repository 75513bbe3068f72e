# SPDX-License-Identifier: Apache-2.0
"""Does a grid run each of its cells once, and say what it ran?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")

from hf_sam import SAMConfig
from scripts import grid
from scripts.common.errors import UserError
from scripts.common.grids import read_grid

GRID = """
seeds: [1, 2]
common: {max_steps: 2, eval_strategy: "no", save_strategy: "no", logging_steps: 1, torch_threads: 1, use_cpu: true}
tasks:
  noise: {task: digits, label_noise: 0.4, title: "wrong labels"}
  texts: {task: sst2, train_file: "{data}/sst2/train.parquet"}
methods:
  adamw: {sam_variant: none}
  sam: {sam_variant: sam, rho: 0.05}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID, encoding="utf-8")
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_cell_runs_once_and_a_second_start_goes_on(file: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "runs.jsonl"
    command = [str(file), "--output", str(output)]
    assert grid.main([*command, "--seeds", "1"]) == 0
    assert [(r["task"], r["method"], r["seed"]) for r in rows(output)] == [("noise", "adamw", 1), ("noise", "sam", 1)]
    before = output.read_text(encoding="utf-8")
    assert grid.main(command) == 0
    assert output.read_text(encoding="utf-8").startswith(before)
    assert [(r["method"], r["seed"]) for r in rows(output)] == [(m, s) for s in (1, 2) for m in ("adamw", "sam")]
    plain, sam = rows(output)[:2]
    assert plain["train_loss"] != rows(output)[2]["train_loss"], "seeds differ"
    assert "rho_mean" not in plain
    assert sam["rho_mean"] == sam["rho_last"] == pytest.approx(0.05)
    assert sam["arguments"]["label_noise"] == 0.4
    assert {"commit", "torch"} <= set(sam["environment"])
    assert 0 <= sam["eval_accuracy"] <= 1


def test_shares_are_the_whole_and_nothing_twice(file: Path) -> None:
    parsed, cells = read_grid(file), []
    for share in ("1/3", "2/3", "3/3"):
        cells += list(grid.chosen(parsed, grid.options_of([str(file), "--output", "x", "--share", share])))
    assert len(cells) == len(set(cells)) == 4


def test_tasks_without_their_data_are_left_out(file: Path, tmp_path: Path) -> None:
    assert list(read_grid(file).tasks) == ["noise"]
    with_data = read_grid(file, tmp_path)
    assert with_data.tasks["texts"]["train_file"] == f"{tmp_path}/sst2/train.parquet"
    assert with_data.titles == {"noise": "wrong labels", "texts": "texts"}
    assert grid.shown(with_data.tasks["texts"])["train_file"] == "sst2/train.parquet"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "nosuch"], "--tasks: no 'nosuch' in"),
        (["--methods", "adam"], "It has: adamw, sam."),
        (["--share", "3/2"], "--share must be like 1/2"),
        (["--share", "half"], "got 'half'"),
        (["--set", "max_steps"], "--set takes name=value, got 'max_steps'"),
        (["--set", "rho=-1"], "rho"),
    ],
)
def test_bad_options_are_one_line(
    flags: list[str], message: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "runs.jsonl"
    assert grid.main([str(file), "--output", str(output), "--seeds", "1", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: [1", "cannot read the grid"),
        ("seeds: [1]", "it must have exactly seeds, common, tasks, methods"),
        ("seeds: one\ncommon:\ntasks: {}\nmethods: {}", "seeds must be a list of whole numbers, got 'one'"),
        ("seeds: [1]\ncommon:\ntasks: [a]\nmethods: {}", "tasks must be names with arguments, got ['a']"),
        ("seeds: [1]\ncommon:\ntasks: {}\nmethods: {a: 1}", "methods must be names with arguments, got {'a': 1}"),
    ],
)
def test_a_file_that_is_no_grid_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_grid(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("line", ["{", "[]", '{"task": "noise"}'])
def test_a_results_file_that_was_cut_off_is_named_by_its_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text('{"task": "noise", "method": "sam", "seed": 1}\n' + line, encoding="utf-8")
    with pytest.raises(UserError, match="line 2 is no run of a grid"):
        grid.finished(path)


def test_the_grids_that_are_shipped_can_be_read(tmp_path: Path) -> None:
    paths = sorted(Path(grid.__file__).parent.glob("grids/*.yaml"))
    assert paths
    for path in paths:
        assert set(read_grid(path, tmp_path).titles) > set(read_grid(path).titles)


def test_the_grid_of_radii_has_the_presets() -> None:
    methods = read_grid(Path(grid.__file__).parent / "grids" / "rho_auto.yaml").methods
    names = {"full": "sam auto", "free": "momentum auto", "fast": "fast"}
    assert {name: SAMConfig(**methods[method]) for name, method in names.items()} == {
        name: SAMConfig.preset(name) for name in names
    }
