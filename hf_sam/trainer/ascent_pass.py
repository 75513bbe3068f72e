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

from hf_sam.parameters.choose import frozen_except
from hf_sam.trainer.batch_subset import BatchSubset, batch_subset
from hf_sam.trainer.micro_batches import MicroBatch, counted_once
from hf_sam.trainer.step_planner import mean_over_processes
from hf_sam.vectors.flat import write_
from hf_sam.vectors.vectors import global_norm, gradients

logger = logging.getLogger(__name__)

BUCKET = 2**23
"""Elements that are averaged over processes at once: copies of them are in memory meanwhile."""
NOTHING_SAVED = (
    "`ascent_fraction=%g` saves nothing: a step on this process has one example, which cannot be cut. Use a larger "
    "per_device_train_batch_size or gradient accumulation."
)


@contextmanager
def ascent_pass(step: Any) -> Iterator[None]:
    """Compute gradients of the parameters that will move only; leave them on this process where it is on its own.

    Where a replicated model's gradients are wanted for some parameters only, its engine would wait for the others:
    `average_moved` adds them up instead.
    """
    run, params, sync = step.run, step.window.params, step.run.engine.sync
    filtered = run.config.sam_parameters != "all"
    alone = sync is not None and (filtered or run.config.sam_scope != "batch")
    moved = run.moved_parameters(step.trainer, params)
    with (
        frozen_except(params, moved, step.trainer.model) if filtered else nullcontext(),
        sync.each_process_alone() if alone else nullcontext(),
    ):
        yield


def average_moved(step: Any) -> None:
    """Average over replicas what `ascent_pass` has kept their engine from averaging, a bucket at a time, in place."""
    if step.run.config.sam_scope != "batch":
        return
    some = step.run.moved_parameters(step.trainer, step.window.params)
    # A replica whose data missed a parameter takes part with zeros.
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in some]
    for bucket in buckets(grads):
        write_(bucket, mean_over_processes(torch.cat([grad.reshape(-1) for grad in bucket])))
    for p, grad in zip(some, grads, strict=True):
        p.grad = grad


def buckets(grads: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield gradients of one dtype, BUCKET elements together at most, or one that has more."""
    for dtype in dict.fromkeys(grad.dtype for grad in grads):
        bucket: list[Tensor] = []
        size = 0
        for grad in (grad for grad in grads if grad.dtype == dtype):
            if bucket and size + grad.numel() > BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(grad)
            size += grad.numel()
        yield bucket


def ascend_on_a_subset(step: Any) -> None:
    """Compute the clean gradient from a part of the micro-batches, which were only noted so far.

    The loss of that part, in the units of the step's, becomes the clean loss of the last micro-batch.
    """
    trainer, run, micro_batches = step.trainer, step.run, step.window.micro_batches
    first, last = micro_batches[0], micro_batches[-1]
    subset = batch_subset([m.inputs for m in micro_batches], run.config.ascent_fraction)
    if subset.share == 1 and "ascent_fraction" not in run.told:
        run.told.add("ascent_fraction")
        logger.warning(NOTHING_SAVED, run.config.ascent_fraction)
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
                with step.sync_mode(mode), ascent_pass(step):
                    losses.append(step.pass_over(part).detach())
    finally:
        run.counts_examples = True
        trainer.current_gradient_accumulation_steps = last.accumulation_steps
    last.clean_loss = torch.stack(losses).sum()


def gradient_is_small(step: Any) -> bool:
    """Return whether the clean gradient, now complete, says that this step is to be a plain one (`sam_gate`)."""
    planner = step.run.planner
    reached = step.run.engine.as_shards([p for p in step.window.params if p.grad is not None])
    norm = global_norm(gradients(reached), reached)
    return not planner.test.passes((norm / planner.variant.loss_scale).square(), step.window.plan.context)


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
