# SPDX-License-Identifier: Apache-2.0
"""Does the page at the end say what was done, which is not always what was asked for?"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from hf_sam.cli.common.summary import _lines, run_facts

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
    args: Any = SimpleNamespace(label_noise=0.0)
    assert run_facts(args, training, task, history)["sharpness"] == 0.3
    assert "sharpness" not in run_facts(args, training, task, history[1:])
