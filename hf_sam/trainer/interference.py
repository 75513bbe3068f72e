# SPDX-License-Identifier: Apache-2.0
"""What else writes into gradients and weights while a step is under way, and which of it ends the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hf_sam.config.sam_config import PLAIN
from hf_sam.trainer.micro_batches import Window
from hf_sam.trainer.unsupported import UPDATES_IN_BACKWARD, refuse_optimizer, refuse_training_by_others
from hf_sam.vectors.shards import local_shard

logger = logging.getLogger(__name__)

WATCHED_STEPS = 3
"""Optimizer steps of a run in which the weights are compared before and after each pass."""
BYPASSED = (
    "`{name}.training_step` has taken a step without SAM's, so that it was plain training{partly}. Derive {name} from "
    "the plain Trainer and put the mixin first (class Mine(SAMTrainerMixin, {name})), or call super().training_step "
    "for every micro-batch, or choose sam_variant='none'."
)
PARTLY = ": the last micro-batch did not reach SAM's, and the optimizer took the clean gradient"
SOMETIMES = "%s (step %d; said once, `sam/perturbed` counts them all)"
EDITED = (
    "The gradients were changed between two micro-batches of a step (by a callback in `on_substep_end`?), and the "
    "second pass of a SAM step computes them anew. Change them in `on_pre_optimizer_step`, or use "
    "sam_scope='micro_batch'."
)


def look_out(step: Any) -> None:
    """Look for other writers: in the first steps of a run, and before each micro-batch of a step but the first.

    Args:
        step: the `TrainingStep` that is due.

    Raises:
        NotImplementedError: with the ways out.
    """
    if step.window.left is not None and _versions(step.window) != step.window.left:
        raise NotImplementedError(EDITED)
    if step.run.own_steps < WATCHED_STEPS:
        step.plain_step = watched(step.trainer, step.plain_step, step.window.params)


def note_gradients(window: Window, scope: str) -> None:
    """Note the gradients after a micro-batch that others of the step follow, where these are to run a second time."""
    if window.plan.passes == "two" and scope != "micro_batch":
        window.left = _versions(window)


def _versions(window: Window) -> list[tuple[int, int] | None]:
    """Return what becomes something else whenever a gradient is exchanged or changed in place."""
    return [None if (grad := p.grad) is None else (id(grad), grad._version) for p in window.params]


def check_step(trainer: Any, grad_norm: Any) -> None:
    """Make sure that the step which the optimizer has taken was SAM's, before it is logged or saved.

    Args:
        trainer: with a `RunState` in `_sam`, after a step; it may also be the end of an epoch.
        grad_norm: of the gradients that the optimizer saw, if known. A step without any was left out on purpose.

    Raises:
        NotImplementedError: if the run has not made one step of SAM's, with the ways out. Later it is said once.
    """
    run, step = trainer._sam, trainer.state.global_step
    if run.checked_step is None:
        run.checked_step = trainer._globalstep_last_logged  # where this attempt began
    if step == run.checked_step:
        return
    (entered, run.entered), run.checked_step, partly = (run.entered, False), step, run.window is not None
    if (entered and not partly) or trainer.sam_config.sam_variant == PLAIN:
        return
    run.forget_window()
    if not partly and grad_norm is not None and not float(grad_norm):
        return
    owner = next(cls for cls in type(trainer).__mro__ if "training_step" in vars(cls))
    message = BYPASSED.format(name=owner.__name__, partly=PARTLY if partly else "")
    if not run.own_steps:
        raise NotImplementedError(message)
    run.averages.count_plain_step()
    if "bypassed" not in run.told:
        run.told.add("bypassed")
        logger.warning(SOMETIMES, message, step)


def watched(trainer: Any, plain_step: Callable[..., Tensor], params: list[Tensor]) -> Callable[..., Tensor]:
    """Return the Trainer's own training step; where hooks run in backward, with a look at the weights around it.

    A hook that changes gradients runs in both passes and is no trouble. One that steps an optimizer has moved the
    weights before the second pass.

    Raises:
        NotImplementedError: for an optimizer or hooks that came after the trainer was made; when called, if the weights
            are updated inside.
    """
    refuse_optimizer(trainer.optimizer)
    refuse_training_by_others(trainer.model)
    hooked = {id(p) for p in params if _hooks_of(p)}
    if not hooked and not any(m._backward_hooks or m._backward_pre_hooks for m in trainer.model.modules()):
        return plain_step

    def step_and_compare(*args: Any, **kwargs: Any) -> Tensor:
        backward, seen = trainer.accelerator.backward, []

        def compared(*args: Any, **kwargs: Any) -> None:
            seen.append(True)
            before_backward = _fingerprint(params)
            backward(*args, **kwargs)
            _refuse_updates(params, hooked, before_backward)

        before = _fingerprint(params)
        with _replaced(trainer.accelerator, "backward", compared):
            loss = plain_step(*args, **kwargs)
        if not seen:  # a trainer that calls the loss's own `backward`: a forward pass may have written as well
            _refuse_updates(params, hooked, before)
        return loss

    return step_and_compare


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let an attribute be another one inside."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _refuse_updates(params: list[Tensor], hooked: set[int], before: Tensor) -> None:
    """Raise if weights are not what they were, and a hook can have made them so."""
    changed = (_fingerprint(params) != before).any(1).tolist()
    moved = [p for p, is_new in zip(params, changed, strict=True) if is_new]
    # A forward pass may write into some weights (`max_norm` of an embedding), an optimizer writes into all.
    by_hook = [p for p in moved if id(p) in hooked]
    if by_hook or (moved and len(moved) >= sum(p.grad is not None for p in params)):
        name = f"A hook of the model (`{_hooks_of(by_hook[0])}`)" if by_hook else "A hook of the model"
        raise NotImplementedError(UPDATES_IN_BACKWARD.format(name=name))


def _hooks_of(p: Tensor) -> str | None:
    """Return by what a parameter got its hooks; None if it has none."""
    if getattr(p, "_post_accumulate_grad_hooks", None):
        return "register_post_accumulate_grad_hook"
    return "register_hook" if p._backward_hooks else None


@torch.no_grad()
def _fingerprint(params: list[Tensor]) -> Tensor:
    """Return two norms of every tensor, by which weights differ from what they are after an update."""
    held = [local_shard(p) for p in params]
    norms = [torch._foreach_norm(held, order, dtype=torch.float32) for order in (1.0, 2.0)]
    return torch.stack([torch.stack(list(some)) for some in norms], 1).nan_to_num()
