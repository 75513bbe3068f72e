# SPDX-License-Identifier: Apache-2.0
"""Does the page at the end say what was done, which is not always what was asked for?"""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from hf_sam.cli.common.parsing import parse
from hf_sam.cli.common.summary import _lines, run_facts, show
from hf_sam.cli.tasks import TASKS, glue

RESULTS = {"sam_variant": "asam", "rho": 0.5, "parameters": 2, "label_noise": 0, "wall_time": 1.0}
TRAINED = {**RESULTS, "train_runtime": 0.5, "sam/run_perturbed": 1.0, "sam/run_rho": 0.5}
NOTHING = {**TRAINED, "sam/run_perturbed": 0.0, "sam/run_rho": 0.0}


@pytest.mark.parametrize(
    ("results", "method"),
    [
        (TRAINED, "ASAM, rho 0.5"),
        ({**TRAINED, "sam/run_perturbed": 0.5}, "ASAM, rho 0.5 (50 % of the steps)"),
        ({**TRAINED, "rho": "auto", "sam/run_rho": 0.031}, "ASAM, rho auto (rho 0.031 on average)"),
        (NOTHING, "plain training: no step perturbed (ASAM, rho 0.5)"),
        ({**TRAINED, "rho": 0.0, "sam/run_rho": 0.0}, "plain training: no step perturbed (ASAM, rho 0.0)"),
        (RESULTS, "evaluation only: nothing was trained here"),
        ({**RESULTS, "eval_loss": 1.0, "predictions": ["p.tsv"]}, "evaluation only: nothing was trained here"),
        ({**RESULTS, "test_loss": 1.0, "predictions": ["p.tsv"]}, "prediction only: nothing was trained here"),
        ({**RESULTS, "sam_variant": "none", "train_runtime": 0.5}, "plain training"),
    ],
)
def test_the_method_is_what_was_done(results: dict[str, Any], method: str, tmp_path: Any) -> None:
    task: Any = SimpleNamespace(model=nn.Linear(1, 1))
    assert dict(_lines(task, results, tmp_path))["method"] == method


def test_the_sharpness_is_that_of_the_last_log_with_a_perturbation() -> None:
    history = [{"sam/perturbed": 1.0, "sam/sharpness": 0.3}, {"sam/perturbed": 0.0, "sam/sharpness": 0.0}]
    task: Any = SimpleNamespace(model=nn.Linear(1, 1), name="digits", flipped_labels=0)
    training = SimpleNamespace(sam_variant="sam", seed=1, world_size=1, rho=0.05)
    args: Any = SimpleNamespace(label_noise=0.0, average_weights=None)
    assert run_facts(args, training, task, history)["sharpness"] == 0.3
    assert "sharpness" not in run_facts(args, training, task, history[1:])


def page(results: dict[str, Any], folder: Any) -> str:
    task: Any = SimpleNamespace(
        model=nn.Linear(1, 1), name="text", auto_class="AutoModel", pipeline="text-classification", example="'a'"
    )
    written = io.StringIO()
    show(task, results, folder, console=Console(file=written, width=200))
    return written.getvalue()


def test_predictions_are_where_it_says_and_no_model_is_offered_that_is_not_there(tmp_path: Any) -> None:
    predicted = page({**RESULTS, "predictions": ["out [1]/predictions.tsv"]}, tmp_path)
    assert "out [1]/predictions.tsv" in predicted
    assert f"results in   {tmp_path}" in predicted
    assert "Load it" not in predicted
    assert "from_pretrained" in page(TRAINED, tmp_path)


def test_both_parts_of_a_resumed_run_are_timed(tmp_path: Any) -> None:
    assert "1.0 s, of which training 0.5 s (and 2.5 s before it was resumed)" in page(
        {**TRAINED, "train_runtime_before": 2.5}, tmp_path
    )


def test_own_files_under_the_name_of_a_task_are_not_that_data_set() -> None:
    tasks = {name: entry.defaults for name, entry in TASKS.items()}
    own = glue._card(parse(["--task", "sst2", "--train_file", "mine.csv", "--use_cpu"], tasks)[0])
    assert own == {"tasks": "text-classification", "dataset": "local texts in the format of SST2"}
    hub = glue._card(parse(["--task", "sst2", "--use_cpu"], tasks)[0])
    assert (hub["dataset"], hub["dataset_tags"]) == ("GLUE SST2", "glue")
