# SPDX-License-Identifier: Apache-2.0
"""Try at the first perturbations of a run whether a second pass at the same weights is the same function."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from hf_sam.engines.deepspeed import engine_of
from hf_sam.engines.fsdp1 import fsdp1_modules
from hf_sam.step.replay import RandomState
from hf_sam.step.tensor_bits import glance, is_readable, same_glance
from hf_sam.step.two_pass import set_gradients
from hf_sam.trainer.micro_batches import MicroBatch, counted_once
from hf_sam.trainer.step_planner import mean_over_processes
from hf_sam.vectors.shards import is_dtensor

logger = logging.getLogger(__name__)

ANOTHER = (
    "The second pass is not the function that the first one is: run again at the same weights, on the same batch, it "
    "gives `%s` another gradient, %.1e of its length apart. A pass changes something that cannot be put back%s. Name "
    "it in `replayed_state()` of your SAMTrainer, or take it into the batch: see docs/second_pass.md. "
    "sam_check_repeatable='off' if this is meant."
)
ITERATOR = ", such as the iterator `%s`, which cannot be run twice"
EXACT = 1e-4
"""Relative difference of gradients that rounding leaves on a CPU, whose kernels add in the same order every time."""
ROUNDED = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 0.06, torch.bfloat16: 0.12}
"""The same on accelerators, where some kernels add in another order every time: 16 (64 in float16) roundings of 16-bit
numbers, and 10,000 of 32-bit ones, which may be TF32."""
NEGLIGIBLE = 1e-3
"""Share of the whole gradient's length below which a parameter's gradient is nothing but rounding (a key's bias)."""


def checked_pass(step: Any, micro_batch: MicroBatch) -> Tensor:
    """Run a clean pass and, without a trace, the same once more; tell the user if it gives another gradient.

    Args:
        step: the `TrainingStep` that is due.
        micro_batch: the first one of a perturbation.

    Returns:
        The loss of the clean pass.

    Raises:
        RuntimeError: if the gradients differ and `sam_check_repeatable` says so.
    """
    run, params = step.run, step.window.params
    run.checks_left -= 1
    if run.config.sam_check_repeatable == "off" or not _can_be_checked(step):
        loss: Tensor = step.pass_over(micro_batch)
        return loss
    mode = step.get_sync_mode()
    glances = [(p, glance(p)) for p in params if not is_dtensor(p) and is_readable(p)]
    loss = step.pass_over(micro_batch)
    written = [(p, p.detach().clone()) for p, before in glances if not same_glance(glance(p), before)]
    clean = [p.grad for p in params]
    viewed = _lies_in_buckets(step.model)  # then the next pass writes over it
    first = [None if g is None else g.clone() for g in clean] if viewed else clean
    try:
        set_gradients(params, [None] * len(params))
        run_again(step, micro_batch, mode)
        name, error = _apart(step, first)
    finally:
        set_gradients(params, clean)
        with torch.no_grad():
            for p, weights in written:
                p.copy_(weights)
            for p, kept in zip(params, first, strict=True):
                if viewed and p.grad is not None and kept is not None:
                    p.grad.copy_(kept)
    _tell(step, name, error)
    return loss


def _can_be_checked(step: Any) -> bool:
    """Return whether a pass leaves its gradients in `.grad`, where they can be taken away again.

    DeepSpeed keeps them, FSDP too until the last micro-batch of a step; and what was there before the pass is mixed in.
    """
    sync, params = step.run.engine.sync, step.window.params
    if engine_of(step.model) is not None or fsdp1_modules(step.model) or any(p.grad is not None for p in params):
        return False
    return sync is None or not sync.sharded or all(sync.mode())


def run_again(step: Any, micro_batch: MicroBatch, mode: Any, *, stays: bool = False) -> Tensor:
    """Run the first micro-batch of a perturbation from the state that the first pass started from; return its loss.

    Args:
        step: the `TrainingStep` that is due.
        micro_batch: has been run before.
        mode: how its gradients are reduced.
        stays: whether this run counts in place of the one before, and what it leaves stays. Otherwise it leaves
            nothing but gradients.
    """
    run, trainer = step.run, step.trainer
    random_state = RandomState(run.engine.devices, run.changed.generators)
    before = run.in_descent_pass, run.counts_examples
    if not stays:
        run.in_descent_pass, run.counts_examples = True, False
    try:
        with (
            step.window.state.again(stays=stays, ends=False),
            nullcontext() if stays else counted_once(trainer, trainer.counters),
            micro_batch.found.again() if micro_batch.found is not None else nullcontext(),
        ):
            micro_batch.random_state.restore()
            step.set_sync_mode(mode)
            loss: Tensor = step.pass_over(micro_batch)
    finally:
        if not stays:
            random_state.restore()
        step.set_sync_mode(mode)
        run.in_descent_pass, run.counts_examples = before
    return loss


def _apart(step: Any, first: list[Tensor | None]) -> tuple[str, float]:
    """Return the parameter whose gradients are farthest apart, and how far; 0 where the first are not finite."""
    reached = [(i, p.grad, g) for i, (p, g) in enumerate(zip(step.window.params, first, strict=True))]
    one_sided = [i for i, new, old in reached if (new is None) != (old is None)]
    pairs = [(i, _local(new), _local(old)) for i, new, old in reached if new is not None and old is not None]
    norms = torch.stack(
        [torch.stack([(new - old).norm(), old.norm()]).double() for _, new, old in pairs] or [torch.zeros(2)]
    )
    total = norms[:, 1].norm()
    errors = norms[:, 0] / norms[:, 1].clamp(min=NEGLIGIBLE * total.item())
    if not torch.isfinite(total):
        return "", 0.0
    if one_sided:
        return _name_of(step, one_sided[0]), 1.0
    errors = errors.nan_to_num(nan=0.0, posinf=1.0)
    worst = int(errors.argmax())
    return (_name_of(step, pairs[worst][0]) if pairs else ""), float(errors[worst])


def _local(grad: Tensor) -> Tensor:
    """Return the part of a gradient on this process, in at least 32 bits."""
    part: Tensor = getattr(grad, "to_local", lambda: grad)()
    part = part.to_dense() if part.layout != torch.strided else part
    return part if part.dtype in (torch.float64, torch.complex64, torch.complex128) else part.float()


def _name_of(step: Any, index: int) -> str:
    names: dict[int, str] = {id(p): name for name, p in step.model.named_parameters()}
    return names.get(id(step.window.params[index]), "a parameter outside of the model")


def _tolerance(step: Any) -> float:
    params, args = step.window.params, step.trainer.args
    if all(p.device.type == "cpu" for p in params):
        return EXACT
    mixed = [torch.bfloat16] * bool(args.bf16) + [torch.float16] * bool(args.fp16)
    return max(ROUNDED.get(dtype, EXACT) for dtype in (*mixed, *(p.dtype for p in params)))


def _tell(step: Any, name: str, error: float) -> None:
    """Warn once, or raise, on every process where it is so on one of them."""
    run, trainer = step.run, step.trainer
    differs = error > _tolerance(step)
    raises = run.config.sam_check_repeatable == "error"
    if trainer.args.world_size > 1 and raises:
        found = mean_over_processes(torch.tensor(float(differs), device=trainer.args.device))
        differs, name = bool(found > 0), name or "a parameter"
    if not differs or "repeatable" in run.told:
        return
    run.told.add("repeatable")
    hint = ITERATOR % run.changed.iterators[0] if run.changed.iterators else ""
    if raises:
        raise RuntimeError(ANOTHER % (name, error, hint))
    logger.warning(ANOTHER, name, error, hint)


def _lies_in_buckets(model: Any) -> bool:
    return any(getattr(module, "gradient_as_bucket_view", False) for module in model.modules())
