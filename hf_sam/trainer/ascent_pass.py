# SPDX-License-Identifier: Apache-2.0
"""How is the clean gradient computed: from which examples, for which parameters, over which processes?"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hf_sam.config.sam_config import SAMConfig
from hf_sam.engines.gradient_sync import GradientSync
from hf_sam.parameters.choose import frozen_except
from hf_sam.trainer.batch_subset import BatchSubset, batch_subset
from hf_sam.trainer.counters import COUNTERS, counted_once
from hf_sam.trainer.micro_batches import MicroBatch, Window
from hf_sam.trainer.run_state import BelongsToARun
from hf_sam.trainer.step_planner import StepPlan, mean_over_processes
from hf_sam.vectors.shards import as_shards, local_shard
from hf_sam.vectors.vectors import global_norm

logger = logging.getLogger(__name__)

NOTHING_SAVED = (
    "`ascent_fraction=%g` saves nothing: a step on this process has one example, which cannot be cut. Use a larger "
    "per_device_train_batch_size or gradient accumulation."
)


class AscentPasses(BelongsToARun):
    """A mixin for a Trainer whose ascent passes may be smaller than its descent passes."""

    counters: tuple[str, ...] = COUNTERS

    def _plain_step(self, model: nn.Module, micro_batch: MicroBatch) -> Tensor:
        """Run the Trainer's own forward and backward on one micro-batch."""
        self.current_gradient_accumulation_steps = micro_batch.accumulation_steps
        inputs: Any = micro_batch.fresh_inputs()
        loss: Tensor = super().training_step(model, inputs, micro_batch.num_items_in_batch)
        return loss

    @contextmanager
    def _ascent_pass(self, config: SAMConfig, sync: GradientSync, params: list[Tensor]) -> Iterator[None]:
        """Compute gradients of the parameters that will move only; leave them on this process where it is on its own.

        Where a replicated model's gradients are wanted for some parameters only, its engine would wait for the others:
        `_average_chosen` adds them up instead.
        """
        filtered = config.sam_parameters != "all"
        with (
            frozen_except(params, self._sam_chosen(config, params), self.model) if filtered else nullcontext(),
            sync.each_process_alone() if filtered or config.sam_scope != "batch" else nullcontext(),
        ):
            yield

    def _average_chosen(self, config: SAMConfig, sync: GradientSync, params: list[Tensor]) -> None:
        """Average over replicas what `_ascent_pass` has kept its engine from averaging, in one reduction."""
        if config.sam_parameters == "all" or config.sam_scope != "batch" or not sync.replicated:
            return
        some = self._sam_chosen(config, params)
        # A replica whose data missed a parameter takes part with zeros.
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in some]
        for dtype in dict.fromkeys(grad.dtype for grad in grads):
            alike = [i for i, grad in enumerate(grads) if grad.dtype == dtype]
            flat = mean_over_processes(torch.cat([grads[i].reshape(-1) for i in alike]))
            for i, mean in zip(alike, torch.split(flat, [grads[i].numel() for i in alike]), strict=True):
                some[i].grad = mean.view_as(grads[i])

    def _ascend_on_a_portion(
        self, model: nn.Module, window: Window, config: SAMConfig, sync: GradientSync, params: list[Tensor]
    ) -> None:
        """Compute the clean gradient from a part of the window, whose micro-batches were only noted so far.

        The loss of that part, in the units of the window's, becomes the clean loss of the last micro-batch.
        """
        first, last = window.micro_batches[0], window.micro_batches[-1]
        portion = batch_subset([m.inputs for m in window.micro_batches], config.ascent_fraction)
        if portion.share == 1 and not self._told_portion:
            self._told_portion = True
            logger.warning(NOTHING_SAVED, config.ascent_fraction)
        num_items = self._items_of(portion, window.micro_batches)
        share = len(portion) / len(window.micro_batches)
        first.random_state.restore()
        losses = []
        self.counts_examples = False
        try:
            with counted_once(self, self.counters):
                for number, inputs in enumerate(portion, start=1):
                    is_last = number == len(portion)
                    mode = (last if is_last else first).sync_mode
                    part = MicroBatch(inputs, num_items, last.accumulation_steps * share, first.random_state)
                    with sync.as_in(mode), self._ascent_pass(config, sync, params):
                        losses.append(self._plain_step(model, part).detach())
        finally:
            self.counts_examples = True
            self.current_gradient_accumulation_steps = last.accumulation_steps
        last.clean_loss = torch.stack(losses).sum()

    def _items_of(self, portion: BatchSubset, micro_batches: Sequence[MicroBatch]) -> Tensor | None:
        """Return by what the losses of a portion are divided, where the Trainer divides by the number of items.

        It is as much smaller than the window's as the portion has fewer items, so that the losses are in its units.
        """
        whole = micro_batches[-1].num_items_in_batch
        if whole is None:
            return None
        counts = [self._count_items(inputs) for inputs in (list(portion), [m.inputs for m in micro_batches])]
        if counts[0] is None or counts[1] is None:  # a number of the user's own
            return torch.as_tensor(whole) * portion.share
        return torch.as_tensor(whole) * counts[0] / counts[1]

    def _count_items(self, inputs: list[Mapping[str, Any]]) -> Tensor | None:
        count = self._get_num_items_in_batch(inputs, self.args.device)
        return None if count is None else torch.as_tensor(count)

    def _closes(self, model: nn.Module, params: list[Tensor], plan: StepPlan) -> bool:
        """Return whether the clean gradient, now complete, says that this step is to be a plain one."""
        policy = self._policy
        if policy is None or policy.test is None:
            return False
        reached = [p for p in params if p.grad is not None]
        norm = global_norm([local_shard(p.grad) for p in reached if p.grad is not None], as_shards(reached, model))
        return not policy.test.passes((norm / policy.direction.loss_scale).square(), plan.context)
