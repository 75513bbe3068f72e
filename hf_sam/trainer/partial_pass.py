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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_sam.parameters.choose import frozen_except
from hf_sam.step.two_pass import set_gradients
from hf_sam.trainer.micro_batches import MicroBatch
from hf_sam.trainer.repeatable import run_again
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
    """What a pass led to: its loss, and the gradients of the chosen parameters."""

    loss: Tensor
    gradients: list[Tensor | None]


def partial_pass(step: Any, micro_batch: MicroBatch, moved: list[Tensor], is_first: bool) -> Tensor:
    """Run a pass that leaves gradients at `moved` only; return its loss.

    Args:
        step: the `TrainingStep` that is due.
        micro_batch: what to run.
        moved: the parameters that will move, some of the window's.
        is_first: whether it is the first one of a perturbation.
    """
    run, params = step.run, step.window.params
    if run.engine.relists:  # gradients of shards come and go with collectives, and are not to be computed twice
        run.freezes = True
    filtered = len(moved) < len(params)
    if filtered and is_first and run.freezes is None:
        return _first_pass(step, micro_batch, moved)
    some = frozen_except(params, moved, step.trainer.model) if run.freezes else _without_gradients(params, moved)
    with some if filtered else nullcontext():
        loss: Tensor = step.first_pass(micro_batch, is_first)
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
    """Run a pass with the others frozen, then one with all gradients; keep the first one if they agree."""
    params, mode, reason, decided = step.window.params, step.get_sync_mode(), None, True
    found: Outcome | None = None
    with _without_gradients(params, []):
        try:
            with frozen_except(params, moved, step.trainer.model):
                found = Outcome(step.pass_over(micro_batch), [p.grad for p in moved])
        except Exception as error:
            if isinstance(error, NotImplementedError) or NO_ROOM.search(str(error)):
                raise
            reason = f"the loss raises {type(error).__name__} ({str(error)[:120]})"
    whole = _with_all_gradients(step, micro_batch, moved, mode, stays=found is None)
    if found is not None:
        reason, decided = _compared(step, whole, found)
    if not _agreed(step, reason, decided):
        # Once more, for good: the pass with frozen parameters may have drawn other random numbers.
        found = whole if found is None else _with_all_gradients(step, micro_batch, moved, mode, stays=True)
    return _concluded(found or whole, moved)


def _with_all_gradients(step: Any, micro_batch: MicroBatch, moved: list[Tensor], mode: Any, *, stays: bool) -> Outcome:
    with _without_gradients(step.window.params, []):
        loss = run_again(step, micro_batch, mode, stays=stays)
        return Outcome(loss, [p.grad for p in moved])


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
    """Add the gradients of the pass that is kept to those that were there before; return its loss."""
    for p, gradient in zip(moved, kept.gradients, strict=True):
        if gradient is not None:
            p.grad = gradient if p.grad is None else p.grad.add_(gradient)
    return kept.loss
