# SPDX-License-Identifier: Apache-2.0
"""A pass that computes the gradients of some parameters only, where the loss stays the same without the others'.

A loss may ask for gradients itself: a penalty on those of the embeddings, adversarial noise that is only added where
the embeddings are trained. With the other parameters frozen it is another one, or raises. So the first pass of a run is
made both ways; where they differ, later ones compute all gradients and drop those that were not asked for.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from accelerate.utils import recursively_apply
from torch import Tensor

from hf_sam.parameters.choose import frozen_except
from hf_sam.step.replay import BufferState, RandomState
from hf_sam.step.two_pass import set_gradients
from hf_sam.trainer.micro_batches import MicroBatch, counted_once
from hf_sam.trainer.step_planner import mean_over_processes
from hf_sam.vectors.vectors import HALF_PRECISION

logger = logging.getLogger(__name__)

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 2e-5, 1e-3
"""How far apart, as a share, a loss and a gradient may be that other kernels compute; more in 16 bits."""
NO_ROOM = re.compile("out of memory|can't allocate memory|CUDNN_STATUS")
"""What an error says that asks for a smaller batch (auto_find_batch_size), and says nothing of the loss."""

NEEDS_ALL = (
    "`SAMConfig(sam_parameters=%r)` saves less here: with the other parameters frozen, %s. The ascent pass computes "
    "all gradients from now on; the chosen parameters alone are perturbed, as asked."
)


class Outcome(NamedTuple):
    """What a pass led to: its loss, the gradients of the chosen parameters, random streams and buffers."""

    loss: Tensor
    gradients: list[Tensor | None]
    random_state: RandomState
    buffers: BufferState


def partial_pass(step: Any, micro_batch: MicroBatch, moved: list[Tensor]) -> Tensor:
    """Run a pass that leaves gradients at `moved` only; return its loss.

    Args:
        step: the `TrainingStep` that is due.
        micro_batch: what to run.
        moved: the parameters that will move, some of the window's.
    """
    run, params = step.run, step.window.params
    if run.engine.relists:  # gradients of shards come and go with collectives, and are not to be computed twice
        run.freezes = True
    if len(moved) < len(params) and run.freezes is None:
        return _first_pass(step, micro_batch, moved)
    some = frozen_except(params, moved, step.trainer.model) if run.freezes else _without_gradients(params, moved)
    with some if len(moved) < len(params) else nullcontext():
        loss: Tensor = step.pass_over(micro_batch)
        return loss


@contextmanager
def _without_gradients(params: list[Tensor], moved: list[Tensor]) -> Iterator[None]:
    """Drop what happens inside to the gradients of all parameters but `moved`."""
    kept = {id(p) for p in moved}
    others = [p for p in params if id(p) not in kept]
    before = [p.grad for p in others]
    set_gradients(others, [None] * len(others))
    try:
        yield
    finally:
        set_gradients(others, before)


def _first_pass(step: Any, micro_batch: MicroBatch, moved: list[Tensor]) -> Tensor:
    """Run a pass with all gradients, then one with the others frozen; keep the second one if they agree."""
    run, trainer, params, found, reason = step.run, step.trainer, step.window.params, None, None
    # The loss may write into its batch: the second pass is to find it as the first one did.
    first = replace(micro_batch, inputs=recursively_apply(torch.clone, micro_batch.inputs))
    start = RandomState(run.engine.devices), BufferState(step.model)
    seen = run.in_descent_pass, run.counts_examples
    run.in_descent_pass, run.counts_examples = True, False  # it is not to be counted
    try:
        with counted_once(trainer, trainer.counters), _without_gradients(params, []):
            whole = _outcome(step, step.pass_over(first), moved)
        for state in start:
            state.restore()
    finally:
        run.in_descent_pass, run.counts_examples = seen
    with _without_gradients(params, []):
        try:
            with frozen_except(params, moved, trainer.model):
                found = _outcome(step, step.pass_over(micro_batch), moved)
        except Exception as error:
            if isinstance(error, NotImplementedError) or NO_ROOM.search(str(error)):
                raise
            reason = f"the loss raises {type(error).__name__} ({str(error)[:120]})"
    decided = True
    if found is not None:
        reason, decided = _compared(step, whole, found)
    if not _agreed(step, reason, decided):
        found = whole
    return _concluded(found or whole, moved)


def _outcome(step: Any, loss: Tensor, moved: list[Tensor]) -> Outcome:
    return Outcome(loss, [p.grad for p in moved], RandomState(step.run.engine.devices), BufferState(step.model))


def _compared(step: Any, whole: Outcome, frozen: Outcome) -> tuple[str | None, bool]:
    """Return in what the passes differ by more than rounding, None where they agree; and whether that can be said."""
    halves = [g.dtype for g in whole.gradients if g is not None and g.dtype in HALF_PRECISION]
    if step.trainer.accelerator.mixed_precision in ("fp16", "bf16"):
        halves.append(torch.bfloat16)
    coarse = max((torch.finfo(dtype).eps for dtype in halves), default=0.0)
    losses = torch.stack([whole.loss.detach().float(), frozen.loss.detach().float()])
    both = zip(whole.gradients, frozen.gradients, strict=True)
    pairs = [(_or_zeros(a, b), _or_zeros(b, a)) for a, b in both if a is not None or b is not None]
    g, apart = [a.float().norm() for a, _ in pairs], [(a - b).float().norm() for a, b in pairs]
    norms = torch.stack([torch.stack(list(x)).norm() if x else losses.new_zeros(()) for x in (g, apart)])
    if not (torch.isfinite(losses).all() and torch.isfinite(norms).all()):
        return None, False
    if (losses[1] - losses[0]).abs() > max(LOSS_TOLERANCE, 4 * coarse) * losses[0].abs():
        return f"the loss is {losses[1].item():.6g} and not {losses[0].item():.6g}", True
    if norms[1] > max(GRADIENT_TOLERANCE, 8 * coarse) * norms[0]:
        return "the gradients of the chosen ones are others", True
    return None, True


def _or_zeros(gradient: Tensor | None, other: Tensor | None) -> Tensor:
    if gradient is not None:
        return gradient
    return torch.zeros_like(other) if other is not None else torch.zeros(())


def _agreed(step: Any, reason: str | None, decided: bool) -> bool:
    """Note for the run, alike on all processes, whether passes may freeze; return whether this one was right to.

    A gradient that is not finite says nothing; the next step is asked again.
    """
    run, votes = step.run, torch.tensor([float(reason is None), float(decided)], device=step.trainer.args.device)
    if step.trainer.args.world_size > 1:
        votes = mean_over_processes(votes)
    agreed, all_decided = (votes == 1).tolist()
    run.freezes = agreed if all_decided or not agreed else None
    if not agreed and "partial" not in run.told:
        run.told.add("partial")
        logger.warning(NEEDS_ALL, run.config.sam_parameters, reason or "the loss of another process is another one")
    return bool(agreed)


def _concluded(kept: Outcome, moved: list[Tensor]) -> Tensor:
    """Leave everything as the pass that is kept has left it."""
    kept.random_state.restore()
    kept.buffers.restore()
    for p, gradient in zip(moved, kept.gradients, strict=True):
        if gradient is not None:
            p.grad = gradient if p.grad is None else p.grad.add_(gradient)
    return kept.loss
