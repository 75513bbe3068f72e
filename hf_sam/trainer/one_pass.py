# SPDX-License-Identifier: Apache-2.0
"""The passes of a step that takes only one a micro-batch, at perturbed weights.

The perturbation is the same for all micro-batches of an optimizer step. It lasts from the first to the last of them
where no code but the Trainer's own runs in between; otherwise the weights are back between any two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler

from hf_sam.step.one_pass import KnownPerturbation

BETWEEN = ("_inner_training_loop", "_run_epoch", "get_batch_samples", "floating_point_ops", "_track_num_input_tokens")
"""Methods of a trainer that run between two micro-batches; those that it has."""
OURS = ("transformers", "hf_sam")


def one_pass(step: Any, inputs: Mapping[str, Any], num_items: Tensor | int | None) -> Tensor:
    """Run the only pass of a micro-batch at perturbed weights; return its loss.

    Args:
        step: the `TrainingStep` that is due.
        inputs: of the Trainer's own `training_step`.
        num_items: likewise, `num_items_in_batch`.
    """
    window, stays = step.window, False
    try:
        if window.perturbation is None:
            window.perturbation = KnownPerturbation(
                _rounding(step), measured=step.run.sampler.measures(step.trainer.state, step.trainer.args)
            )
            _apply(step, window.perturbation)
        loss: Tensor = step.plain_step(step.model, inputs, num_items)
        window.passes += 1
        stays = not window.ends and may_stay(step)
        if not stays:
            measurement, window.perturbation = window.perturbation.undo(), None
            if measurement is not None:
                step.take_in(measurement, None)
    except BaseException:
        window.undo()
        raise
    return loss


def _apply(step: Any, perturbation: KnownPerturbation) -> None:
    """Move to w + epsilon."""
    run, plan = step.run, step.window.plan
    params = run.engine.as_shards(run.moved_parameters(step.trainer, step.window.params))
    perturbation.apply(params, run.planner.variant, run.planner.length(plan), plan.context)


def _rounding(step: Any) -> Any:
    return step.run.rounding(step.trainer) if step.run.config.sam_rounding != "nearest" else None


def may_stay(step: Any) -> bool:
    """Return whether the weights may stay perturbed until the next micro-batch, as no code can look at them before it.

    The next micro-batch has to follow at once (`len(batch_samples)` of them do, unless the loop is told to stop), in a
    loop that is transformers' own; and no callback may hear of the end of this one.
    """
    trainer, run, window = step.trainer, step.run, step.window
    if run.known_loop is None:
        run.known_loop = has_known_loop(trainer)
    if not (run.in_train and run.known_loop) or run.engine.relists:
        return False
    if window.passes >= trainer.current_gradient_accumulation_steps:
        window.spills = True  # the rest of it comes in another epoch: count no more
    control = trainer.control
    stops = control.should_epoch_stop or control.should_training_stop
    return not (window.spills or stops or any(map(_listens, trainer.callback_handler.callbacks)))


def has_known_loop(trainer: Any) -> bool:
    """Return whether all that runs between two micro-batches is transformers' code or ours."""
    handler, classes = trainer.callback_handler, type(trainer).__mro__
    methods = [vars(cls)[name] for cls in classes for name in BETWEEN if name in vars(cls)]
    methods += [type(trainer).training_step, getattr(trainer.model, "floating_point_ops", None)]
    replaced = [name for name in (*BETWEEN, "training_step") if name in vars(trainer)]
    replaced += [name for name in ("call_event", "on_substep_end") if name in vars(handler)]
    return type(handler) is CallbackHandler and not replaced and all(map(_is_known, methods))


def _is_known(method: Any) -> bool:
    return method is None or str(getattr(method, "__module__", "")).split(".")[0] in OURS


def _listens(callback: Any) -> bool:
    """Return whether a callback does something at the end of a micro-batch."""
    method = getattr(callback, "on_substep_end", None)
    return getattr(method, "__func__", None) is not TrainerCallback.on_substep_end
