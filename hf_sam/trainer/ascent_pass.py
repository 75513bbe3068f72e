# SPDX-License-Identifier: Apache-2.0
"""Ascent passes that differ from a plain pass: of some parameters, from some examples, on each process alone.

Every function takes the `TrainingStep` that is due.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hf_sam.trainer.batch_rows import UnknownRowsError
from hf_sam.trainer.batch_subset import BatchSubset, batch_subset, one_micro_batch, placeholders_of
from hf_sam.trainer.micro_batches import MicroBatch, counted_once
from hf_sam.trainer.partial_pass import partial_pass
from hf_sam.trainer.step_planner import mean_over_processes
from hf_sam.vectors.vectors import global_norm, gradients

logger = logging.getLogger(__name__)

NOTHING_SAVED = (
    "`ascent_fraction=%g` saves nothing: a step on this process has one example, which cannot be cut. Use a larger "
    "per_device_train_batch_size or gradient accumulation."
)


def ascent_pass(step: Any, micro_batch: MicroBatch) -> Tensor:
    """Compute gradients of the parameters that will move only; leave them on this process where it is on its own.

    Where a replicated model's gradients are wanted for some parameters only, its engine would wait for the others:
    `average_moved` adds them up instead.

    Returns:
        The loss.
    """
    run, params, sync = step.run, step.window.params, step.run.engine.sync
    filtered = run.config.sam_parameters != "all"
    alone = sync is not None and (filtered or run.config.sam_scope != "batch")
    with sync.each_process_alone() if alone else nullcontext():
        moved = run.moved_parameters(step.trainer, params) if filtered else params
        return partial_pass(step, micro_batch, moved)


def average_moved(step: Any) -> None:
    """Average over replicas what `ascent_pass` has kept their engine from averaging, in one reduction."""
    if step.run.config.sam_scope != "batch":
        return
    some = step.run.moved_parameters(step.trainer, step.window.params)
    # A replica whose data missed a parameter takes part with zeros.
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in some]
    for dtype in dict.fromkeys(grad.dtype for grad in grads):
        alike = [i for i, grad in enumerate(grads) if grad.dtype == dtype]
        flat = mean_over_processes(torch.cat([grads[i].reshape(-1) for i in alike]))
        for i, mean in zip(alike, torch.split(flat, [grads[i].numel() for i in alike]), strict=True):
            some[i].grad = mean.view_as(grads[i])


def ascend_on_a_subset(step: Any) -> None:
    """Compute the clean gradient from a part of the micro-batches, which were only noted so far.

    The loss of that part, in the units of the step's, becomes the clean loss of the last micro-batch.
    """
    trainer, run, micro_batches = step.trainer, step.run, step.window.micro_batches
    first, last = micro_batches[0], micro_batches[-1]
    subset = _subset(step)
    num_items = _items_of(trainer, subset, micro_batches)
    share = len(subset) / len(micro_batches)
    first.random_state.restore()
    losses = []
    run.counts_examples = False
    try:
        with counted_once(trainer, trainer.counters):
            for number, inputs in enumerate(subset, start=1):
                mode = (last if number == len(subset) else first).sync_mode
                part = MicroBatch(inputs, num_items, last.accumulation_steps * share, first.random_state)
                with _reducing_as(step, mode):
                    losses.append(ascent_pass(step, part).detach())
    finally:
        run.counts_examples = True
        trainer.current_gradient_accumulation_steps = last.accumulation_steps
    last.clean_loss = torch.stack(losses).sum()


@contextmanager
def _reducing_as(step: Any, mode: Any) -> Iterator[None]:
    """Reduce gradients inside as when `mode` was noted."""
    before = step.get_sync_mode()
    step.set_sync_mode(mode)
    try:
        yield
    finally:
        step.set_sync_mode(before)


def _subset(step: Any) -> BatchSubset:
    """Return the part of the window's examples that the ascent gradient comes from.

    Raises:
        UnknownRowsError: at the first batch of a run that has to be cut, if it is not certain where. A later one of
            another kind is taken whole, which is right and only costs more.
    """
    run, inputs = step.run, [m.inputs for m in step.window.micro_batches]
    fraction, told = run.config.ascent_fraction, run.told
    try:
        subset = batch_subset(inputs, fraction, run.config.ascent_group_size, placeholders_of(step.trainer.model))
    except UnknownRowsError as error:
        of_run = fraction * step.trainer.args.gradient_accumulation_steps
        if of_run < 1 and "cut" not in told:  # else a short window at the end of an epoch
            raise
        subset = one_micro_batch(inputs)
        if of_run < 1 and "uncut" not in told:
            told.add("uncut")
            logger.warning("A micro-batch is taken whole for the ascent gradient: %s", error)
    if subset.cut:
        told.add("cut")
    if subset.share == 1 and not {"ascent_fraction", "uncut"} & told:
        told.add("ascent_fraction")
        logger.warning(NOTHING_SAVED, fraction)
    return subset


def gradient_is_small(step: Any) -> bool:
    """Return whether the clean gradient, now complete, says that this step is to be a plain one (`sam_gate`).

    The first process decides for all: where another one's norm differs in the last bit, the others would wait for ever
    for the second pass that it does not make.
    """
    planner = step.run.planner
    reached = step.run.engine.as_shards([p for p in step.window.params if p.grad is not None])
    norm = global_norm(gradients(reached), reached)
    squared = (norm / planner.variant.loss_scale).square()
    if step.trainer.args.world_size > 1:
        torch.distributed.broadcast(squared, src=0)
    return not planner.test.passes(squared, step.window.plan.context)


def _items_of(trainer: Any, subset: BatchSubset, micro_batches: Sequence[MicroBatch]) -> Tensor | None:
    """Return by what the losses of a subset are divided, where the Trainer divides by the number of items.

    It is as much smaller than the step's as the subset has fewer items, so that the losses are in its units.
    """
    whole = micro_batches[-1].num_items_in_batch
    if whole is None:
        return None
    counts = [_count_items(trainer, inputs) for inputs in (list(subset), [m.inputs for m in micro_batches])]
    if counts[0] is None or counts[1] is None:  # a number of the user's own
        return torch.as_tensor(whole) * subset.share
    return torch.as_tensor(whole) * counts[0] / counts[1]


def _count_items(trainer: Any, inputs: list[Mapping[str, Any]]) -> Tensor | None:
    count = trainer._get_num_items_in_batch(inputs, trainer.args.device)
    return None if count is None else torch.as_tensor(count)
