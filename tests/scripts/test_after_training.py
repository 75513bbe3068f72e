# SPDX-License-Identifier: Apache-2.0
"""Does the page at the end say what a person wants to know next?"""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.console import Console
from torch import nn
from transformers import EvalPrediction

from hf_sam.cli.common.after_training import Ending, LastOutputs, keeping_outputs, show_after
from hf_sam.cli.common.comparison import Comparison
from hf_sam.cli.common.judged import judge
from hf_sam.cli.common.origins import Origin
from hf_sam.cli.common.suspects import Suspects
from hf_sam.cli.tasks.base import Split

OUTPUT = EvalPrediction(np.array([[0.0, 4.0], [2.0, 0.0], [3.0, 0.0]]), np.array([0, 0, 1]))
RESULTS = {
    "sam_variant": "sam", "rho": 0.05, "parameters": 6, "label_noise": 0, "wall_time": 3.0, "train_runtime": 2.0,
    "sam/run_perturbed": 1.0, "sam/run_rho": 0.05, "eval_accuracy": 0.75, "eval_loss": None, "eval_runtime": 1.0,
}  # fmt: skip


def task() -> Any:
    model = nn.Linear(2, 2)
    model.config = SimpleNamespace(id2label={0: "ham", 1: "spam [1]"})
    origins = {
        "validation": Origin("--validation_file dev.csv", [3, 5, 8], [["an [old] film", "b", "c " * 100]]),
        "train": Origin("--train_file a.csv", [0, 1, 2], [["a", "b", "c"]]),
    }
    return SimpleNamespace(
        name="text", model=model, origins=origins, evaluation={"": Split([0] * 3)}, auto_class="AutoModel",
        pipeline="text-classification", example='"A text."', compute_metrics=lambda _: {},
        separator="|",
    )  # fmt: skip


def page(results: dict[str, Any], **ending: Any) -> str:
    console = Console(file=io.StringIO(), width=100)
    show_after(task(), results, Ending(Path("out dir"), Path("out dir"), **ending), console=console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_page_of_a_run() -> None:
    judged = judge(OUTPUT, {0: "ham", 1: "spam [1]"})
    assert judged is not None
    suspects = Suspects(judged, task().origins["train"], OUTPUT.label_ids)
    plain = Comparison(
        {"eval_accuracy": 0.5, "eval_loss": 0.25, "train_runtime": 1.0}, Path("out dir/_plain"), 300, 1.0
    )
    text = page(RESULTS, evaluated={"validation": OUTPUT}, suspects=suspects, comparison=plain)
    lines = [line.split() for line in text.splitlines()]
    assert ["eval", "accuracy", "0.5000", "0.7500", "+0.2500"] in lines
    assert ["eval", "loss", "0.2500", "not", "finite"] in lines
    assert ["training", "1.0", "s", "2.0", "s", "2.00", "x"] in lines
    assert "±0.025 (standard error)" in text
    assert "The plain model is in out dir/_plain" in text
    assert ["ham", "1", "1"] in lines
    assert ["3", "4.02", "ham", "spam", "[1]", "an", "[old]", "film"] in lines
    assert "highest loss, rows of --validation_file dev.csv from 0" in text
    assert "2 of 3 training labels that the model contradicts, the surest first: out dir/suspects.csv" in text
    assert "hf upload 'YOUR_NAME/out dir' 'out dir' . --exclude 'checkpoint-*' --exclude '_*'" in text


def test_a_model_that_was_pushed_is_on_the_hub() -> None:
    text = page(RESULTS, pushed_to="me/tickets")
    assert "On the Hub: me/tickets" in text
    assert "hf upload" not in text


def test_nothing_is_said_of_a_training_where_there_was_none() -> None:
    results = {name: value for name, value in RESULTS.items() if name != "train_runtime"}
    assert "Push" not in page(results)


def test_the_outputs_kept_are_those_of_the_evaluation_meanwhile() -> None:
    calls: list[Any] = []
    trainer = SimpleNamespace(compute_metrics=lambda output: calls.append(output) or {"accuracy": 1.0})
    original, ending = trainer.compute_metrics, Ending(Path(), Path())
    with keeping_outputs(trainer, task(), ending):
        assert isinstance(trainer.compute_metrics, LastOutputs)
        assert trainer.compute_metrics(OUTPUT) == {"accuracy": 1.0}
    assert trainer.compute_metrics is original
    assert ending.evaluated == {"validation": OUTPUT}
    assert calls == [OUTPUT]
