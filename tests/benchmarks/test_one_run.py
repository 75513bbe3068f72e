# SPDX-License-Identifier: Apache-2.0
"""Is a run that stops early judged on examples that did not stop it?"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")

from scripts.benchmarks.common.one_run import run
from scripts.benchmarks.common.runs import Cell


def write(path: Path, rows: list[tuple[str, str]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return str(path)


@pytest.mark.slow
def test_a_run_that_stops_early_is_judged_on_the_evaluation_file(bert: Path, tmp_path: Path) -> None:
    rows = [("good film", "a"), ("bad plot", "b")] * 20
    arguments: dict[str, Any] = {
        "task": "text", "model_name_or_path": str(bert), "use_cpu": True, "torch_threads": 1, "num_train_epochs": 9,
        "train_file": write(tmp_path / "train.csv", rows), "validation_file": write(tmp_path / "dev.csv", rows[:7]),
        "max_eval_samples": 5, "metric_for_best_model": "accuracy", "save_strategy": "no", "learning_rate": 0.0,
        "eval_strategy": "epoch", "early_stopping_patience": 2, "logging_steps": 1, "sam_variant": "none",
        "warmup_steps": 0,
    }  # fmt: skip
    row = run(arguments, Cell("a", "b", 1), tmp_path / "kept")
    assert row["train_samples"] == 32, "a fifth is held out"
    assert [step for step, *_ in row["curves"]["eval"]] == [1, 2, 3], "nothing is learnt: two more than the first"
    kept = json.loads((tmp_path / "kept" / "all_results.json").read_text(encoding="utf-8"))
    assert row["final"] == row["best"] == kept["test_accuracy"]
    assert row["eval_loss"] == kept["test_loss"] != kept["eval_loss"]
    lines = (tmp_path / "kept" / "predictions.tsv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 5
