# SPDX-License-Identifier: Apache-2.0
"""Does a grid run each of its cells once, say what it ran, and keep what it found?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")

from hf_sam import SAMConfig
from hf_sam.cli.common.errors import UserError
from scripts.benchmarks import compare
from scripts.benchmarks.common.choosing import arguments_of
from scripts.benchmarks.common.grids import read_grid
from scripts.benchmarks.common.one_run import shown
from scripts.benchmarks.common.runs import Cell, read_run, read_runs, write_run

GRID = """
seeds: [1, 2]
common: {max_steps: 4, eval_strategy: steps, eval_steps: 2, save_strategy: "no", logging_steps: 1, torch_threads: 1}
tasks:
  noise:
    task: digits
    label_noise: 0.4
    title: "wrong labels"
    robustness: {dynamic: false, bits: [2], shares: [], corruptions: [noise], severities: [5]}
  texts: {task: sst2, train_file: "{data}/sst2/train.parquet"}
methods:
  adamw: {sam_variant: none}
  sam: {sam_variant: sam, rho: 0.05}
  chosen: {sam_variant: sam, choose: {rho: [0.02, 5.0]}}
  longer: {sam_variant: none, time_of: sam}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid that was run in two parts."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "grid.yaml").write_text(GRID, encoding="utf-8")
    command = [str(folder / "grid.yaml"), "--output", str(folder / "out")]
    assert compare.main([*command, "--seeds", "1", "--methods", "adamw", "sam"]) == 0
    first = {path: path.read_bytes() for path in (folder / "out" / "runs").iterdir()}
    assert len(first) == 2
    assert compare.main(command) == 0
    assert {path: path.read_bytes() for path in first} == first, "a finished run is not run again"
    return folder / "out"


def by_cell(folder: Path) -> dict[Cell, dict[str, Any]]:
    return {Cell(row["task"], row["method"], row["seed"]): row for row in read_runs(folder)}


@pytest.mark.slow
def test_each_cell_runs_once_and_says_what_it_was(finished: Path) -> None:
    rows = by_cell(finished / "runs")
    assert set(rows) == {Cell("noise", m, s) for m in ("adamw", "sam", "chosen", "longer") for s in (1, 2)}
    plain, sam = rows[Cell("noise", "adamw", 1)], rows[Cell("noise", "sam", 1)]
    assert plain["train_loss"] != rows[Cell("noise", "adamw", 2)]["train_loss"], "seeds differ"
    assert "rho_mean" not in plain
    assert sam["rho_mean"] == sam["rho_last"] == pytest.approx(0.05)
    assert sam["arguments"]["label_noise"] == 0.4
    assert {"commit", "torch", "datasets", "device"} <= set(sam["environment"])
    assert sam["metric"] == "eval_accuracy"
    assert sam["final"] == sam["eval_accuracy"]
    assert sam["best"] == max(sam["final"], *(value for _, _, value in sam["curves"]["eval"]))
    assert [step for step, _ in sam["curves"]["train"]] == [1, 2, 3, 4]
    assert [step for step, _, _ in sam["curves"]["eval"]] == [2, 4]
    assert sam["steps"] == 4
    assert 0 < sam["train_time"] < sam["train_cpu_time"], "evaluations do not count"
    assert sam["peak_memory"] > 1e8
    assert list(sam["robustness"]) == ["as trained", "int2 weights", "noise, severity 5"]
    assert sam["robustness"]["as trained"]["accuracy"] == pytest.approx(sam["final"])
    assert sam["robustness"]["as trained"]["nll"] == pytest.approx(sam["eval_loss"], abs=1e-4)
    assert len({scores["nll"] for scores in sam["robustness"].values()}) == 3


@pytest.mark.slow
def test_a_radius_is_chosen_on_held_out_training_data_with_another_seed(finished: Path) -> None:
    candidates = {row["arguments"]["rho"]: row for row in read_runs(finished / "choosing")}
    assert sorted(candidates) == [0.02, 5.0]
    assert {row["seed"] for row in candidates.values()} == {0}
    assert {row["eval_samples"] for row in candidates.values()} == {287}, "a fifth of the 1,437 training images"
    best = max(candidates, key=lambda rho: (candidates[rho]["final"], -rho))
    for seed in (1, 2):
        row = read_run(finished / "runs", Cell("noise", "chosen", seed))
        assert row is not None
        assert row["chosen"] == {"rho": best}
        assert row["arguments"]["rho"] == best if "rho" in row["arguments"] else row["rho_mean"] == pytest.approx(best)
        assert row["eval_samples"] == 360


@pytest.mark.slow
def test_the_baseline_gets_as_many_steps_as_fit_into_the_other_ones_time(finished: Path) -> None:
    rows = by_cell(finished / "runs")
    for seed in (1, 2):
        row = rows[Cell("noise", "longer", seed)]
        assert row["steps"] == int(row["steps_factor"] * 4) > 4
    ratios = [
        rows[Cell("noise", "sam", s)]["train_time"] / rows[Cell("noise", "adamw", s)]["train_time"] for s in (1, 2)
    ]
    # once both seeds are there it is their median; while there is one, that one's
    assert rows[Cell("noise", "longer", 2)]["steps_factor"] == pytest.approx(sum(ratios) / 2)


@pytest.mark.slow
def test_a_run_that_needs_anothers_time_waits_for_it(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(file), "--output", str(tmp_path / "out"), "--seeds", "1", "--methods", "adamw", "longer"]
    assert compare.main(command) == 1
    assert (
        "not run: noise, longer, seed 1: it trains for as long as 'sam', which has not run" in capsys.readouterr().err
    )
    assert [row["method"] for row in read_runs(tmp_path / "out" / "runs")] == ["adamw"]


@pytest.mark.slow
def test_a_diverged_run_is_json(file: Path, tmp_path: Path) -> None:
    command = [str(file), "--output", str(tmp_path / "out"), "--seeds", "1", "--methods", "adamw"]
    assert compare.main([*command, "--set", "learning_rate=1e30", "warmup_steps=0", "lr_scheduler_type=constant"]) == 0
    text = (tmp_path / "out" / "runs" / "noise_adamw_1.json").read_text(encoding="utf-8")
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row["eval_loss"] is None
    assert row["curves"]["eval"][-1][1] is None


@pytest.mark.slow
def test_models_are_kept_where_they_are_wanted(file: Path, tmp_path: Path) -> None:
    command = [str(file), "--output", str(tmp_path / "out"), "--seeds", "1", "--methods", "sam"]
    assert compare.main([*command, "--keep", str(tmp_path / "models")]) == 0
    model = tmp_path / "models" / "noise_sam_1" / "model.safetensors"
    before = model.read_bytes()
    (tmp_path / "out" / "runs" / "noise_sam_1.json").unlink()  # as after a kill between the two
    model.write_bytes(b"")
    assert compare.main([*command, "--keep", str(tmp_path / "models")]) == 0
    assert model.read_bytes() == before


def test_shares_are_the_whole_and_nothing_twice(file: Path) -> None:
    parsed, cells = read_grid(file), []
    for share in ("1/3", "2/3", "3/3"):
        cells += list(compare.chosen(parsed, compare.options_of([str(file), "--share", share])))
    assert len(cells) == len(set(cells)) == 8


def test_tasks_without_their_data_are_left_out(file: Path, tmp_path: Path) -> None:
    assert list(read_grid(file).tasks) == ["noise"]
    with_data = read_grid(file, tmp_path)
    assert with_data.tasks["texts"]["train_file"] == f"{tmp_path}/sst2/train.parquet"
    assert with_data.titles == {"noise": "wrong labels", "texts": "texts"}
    assert shown(with_data.tasks["texts"])["train_file"] == "sst2/train.parquet"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "nosuch"], "--tasks: no 'nosuch' in"),
        (["--methods", "adam"], "It has: adamw, sam, chosen, longer."),
        (["--share", "3/2"], "--share must be like 1/2"),
        (["--share", "half"], "got 'half'"),
        (["--set", "max_steps"], "--set takes name=value, got 'max_steps'"),
        (["--set", "rho=-1"], "rho"),
    ],
)
def test_bad_options_are_one_line(
    flags: list[str], message: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert compare.main([str(file), "--output", str(output), "--seeds", "1", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: [1", "cannot read the grid"),
        ("seeds: [1]", "it must have exactly seeds, common, tasks, methods"),
        ("seeds: one\ncommon:\ntasks: {}\nmethods: {}", "seeds must be a list of whole numbers, got 'one'"),
        ("seeds: [1]\ncommon:\ntasks: [a]\nmethods: {}", "tasks must be names with arguments, got ['a']"),
        ("seeds: [1]\ncommon:\ntasks: {}\nmethods: {a: 1}", "tasks must be names with arguments, got {}"),
        ("seeds: [1]\ncommon:\ntasks: {a: {}}\nmethods: {a: 1}", "methods must be names with arguments, got {'a': 1}"),
        ("seeds: [1]\ncommon:\ntasks: {a: {}}\nmethods: {b: {time_of: c}}", "time_of of 'b' must be a method above it"),
        ("seeds: [1]\ncommon:\ntasks: {a: {}}\nmethods: {b: {choose: {rho: 1}}}", "choose of 'b' must be arguments"),
    ],
)
def test_a_file_that_is_no_grid_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_grid(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"task": "noise"}'])
def test_a_file_that_is_no_run_is_named(text: str, tmp_path: Path) -> None:
    write_run(tmp_path, Cell("noise", "sam", 1), {"task": "noise", "method": "sam", "seed": 1})
    (tmp_path / "noise_sam_2.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"noise_sam_2\.json is no run of a grid"):
        read_runs(tmp_path)


def test_methods_that_would_share_a_file_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, Cell("noise", "sam a", 1), {"task": "noise", "method": "sam a", "seed": 1})
    with pytest.raises(UserError, match="must differ by letters or digits"):
        read_run(tmp_path, Cell("noise", "sam-a", 1))


def test_the_grids_that_are_shipped_can_be_read(tmp_path: Path) -> None:
    paths = sorted(Path(compare.__file__).parent.glob("grids/*.yaml"))
    assert paths
    for path in paths:
        assert set(read_grid(path, tmp_path).titles) >= set(read_grid(path).titles)


@pytest.mark.parametrize(
    ("grid", "names"),
    [
        ("rho_auto", {"full": "sam auto", "free": "momentum auto"}),
        ("noise", {"full": "full", "free": "free", "fast": "fast"}),
    ],
)
def test_the_grids_have_the_presets(grid: str, names: dict[str, str]) -> None:
    methods = read_grid(Path(compare.__file__).parent / "grids" / f"{grid}.yaml").methods
    assert {name: SAMConfig(**methods[method].arguments) for name, method in names.items()} == {
        name: SAMConfig.preset(name) for name in names
    }


def test_no_method_of_a_shipped_grid_gives_another_radius_than_its_task() -> None:
    """What a method gives wins over the task's, silently."""
    for path in sorted(Path(compare.__file__).parent.glob("grids/*.yaml")):
        grid = read_grid(path, Path("data"))
        of_tasks = {task for task, entry in grid.tasks.items() if "rho" in entry}
        of_methods = {name for name, method in grid.methods.items() if "rho" in method.arguments}
        assert not of_tasks or not of_methods, (path.name, of_tasks, of_methods)


@pytest.mark.parametrize(
    ("run", "half"), [({"max_steps": 100}, {"max_steps": 50}), ({"num_train_epochs": 3}, {"num_train_epochs": 1.5})]
)
def test_a_method_may_be_shorter_than_its_task(run: dict[str, Any], half: dict[str, Any], tmp_path: Path) -> None:
    text = f"seeds: [1]\ncommon:\ntasks: {{a: {run}}}\nmethods: {{whole: {{}}, half: {{length: 0.5}}}}"
    (tmp_path / "grid.yaml").write_text(text, encoding="utf-8")
    grid = read_grid(tmp_path / "grid.yaml")
    assert arguments_of(grid, Cell("a", "whole", 1), tmp_path, {})[0] == run
    assert arguments_of(grid, Cell("a", "half", 1), tmp_path, {})[0] == half
    (tmp_path / "grid.yaml").write_text(text.replace("0.5", "-1"), encoding="utf-8")
    with pytest.raises(UserError, match="length of 'half' must be a multiple"):
        read_grid(tmp_path / "grid.yaml")


def test_runs_of_one_task_have_one_metric(tmp_path: Path) -> None:
    for method, metric in (("adamw", "eval_accuracy"), ("sam", "eval_combined_score")):
        write_run(tmp_path, Cell("mrpc", method, 1), {"task": "mrpc", "method": method, "seed": 1, "metric": metric})
    with pytest.raises(UserError, match="the runs of mrpc have both eval_accuracy and eval_combined_score"):
        read_runs(tmp_path)


@pytest.mark.slow
def test_the_summary_compares_seed_by_seed(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    assert summary["baseline"] == "adamw"
    lines = summary["tasks"]["noise"]["methods"]
    rows = by_cell(finished / "runs")
    scores = {m: [100 * rows[Cell("noise", m, s)]["final"] for s in (1, 2)] for m in ("adamw", "sam", "longer")}
    assert lines["adamw"]["difference"] is None
    assert lines["sam"]["mean"] == pytest.approx(sum(scores["sam"]) / 2)
    for other, key in (("adamw", "difference"), ("longer", "same_time")):
        expected = sum(a - b for a, b in zip(scores["sam"], scores[other], strict=True)) / 2
        assert lines["sam"][key]["mean"] == pytest.approx(expected)
    assert lines["sam"]["time"] > 1.2
    assert lines["chosen"]["same_time"] is None


@pytest.mark.slow
def test_the_summary_alone_runs_nothing(file: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "runs").iterdir()}
    assert compare.main([str(file), "--output", str(finished), "--summary", "--seeds", "1", "2", "3"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (finished / "runs").iterdir()} == before
    assert "against adamw" in capsys.readouterr().out


def test_out_of_time_nothing_more_is_started(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(file), "--output", str(tmp_path / "out"), "--minutes", "-1"]) == 2
    assert "none of the grid's runs is there" in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()
