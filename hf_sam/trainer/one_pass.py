# SPDX-License-Identifier: Apache-2.0
"""The pass of a step that takes only one, at perturbed weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hf_sam.step.one_pass import one_pass_step


def one_pass(step: Any, inputs: Mapping[str, Any], num_items: Tensor | int | None) -> Tensor:
    """Run the only pass of a micro-batch at weights that are perturbed for just as long; return its loss.

    Args:
        step: the `TrainingStep` that is due.
        inputs: of the Trainer's own `training_step`.
        num_items: likewise, `num_items_in_batch`.
    """
    run, plan, losses = step.run, step.window.plan, []
    measurement = one_pass_step(
        lambda: losses.append(step.plain_step(step.model, inputs, num_items)),
        run.engine.as_shards(run.moved_parameters(step.trainer, step.window.params)),
        run.planner.variant,
        rho=run.planner.length(plan),
        context=plan.context,
        rounding=run.rounding(step.trainer) if run.config.sam_rounding != "nearest" else None,
        measured=step.is_measured(),
    )
    loss: Tensor = losses[0]
    if measurement is not None:
        step.take_in(measurement, None)
    return loss
