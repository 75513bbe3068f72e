# SPDX-License-Identifier: Apache-2.0
"""Which passes does a Trainer make over the micro-batches of a step, and in which order?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hf_sam.config.sam_config import SAMConfig
from hf_sam.engines.deepspeed import descend_in
from hf_sam.step.gradient_mixing import GradientMixing
from hf_sam.step.measurement import Measurement
from hf_sam.step.one_pass import one_pass_step
from hf_sam.step.two_pass import set_gradients
from hf_sam.trainer.ascent_pass import AscentPasses
from hf_sam.trainer.counters import counted_once
from hf_sam.trainer.micro_batches import MicroBatch, Window
from hf_sam.trainer.step_planner import StepPlan, StepPlanner, mean_over_processes
from hf_sam.variants import OnePass, Regulariser
from hf_sam.vectors.shards import as_shards, local_shard


class RunsPasses(AscentPasses):
    """A mixin for a Trainer whose optimizer step takes one pass or two, through the Trainer's own `training_step`."""

    def _sam_training_step(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Tensor | int | None, config: SAMConfig
    ) -> Tensor:
        """Run the passes that are due at this micro-batch; return its clean loss (of one-pass steps, its loss)."""
        if self._plan is None:
            self._gradient_sync(model).reshard()  # before anybody looks at the parameters
        policy = self._sam_policy(config)
        if self._plan is None:
            self._check_optimizer(model, policy)
        plan = self._plan = self._plan or policy.plan(self._step_context())
        policy.direction.loss_scale = self._loss_scale(policy)
        self._ends_window = bool(self.accelerator.sync_gradients)
        if plan.passes == "two":
            loss = self._two_passes(model, inputs, num_items_in_batch, config, plan)
        elif isinstance(policy.direction, OnePass) and plan.passes == "one":
            run = functools.partial(super().training_step, model, inputs, num_items_in_batch)
            loss = self._one_pass(run, model, policy, policy.direction, plan)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._losses.append(loss.detach().float())
        if self._ends_window:
            self._end_window(model, policy, self._plan)
        return loss

    def _two_passes(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        num_items_in_batch: Tensor | int | None,
        config: SAMConfig,
        plan: StepPlan,
    ) -> Tensor:
        """Run the clean pass of a micro-batch, and the descent where it is the last of its perturbation."""
        alone, part = config.sam_scope == "micro_batch", config.ascent_fraction < 1
        sync = self._gradient_sync(model)
        window = self._window = self._window or Window(model, sync=sync)
        params = self._sam_parameters(model)
        earlier = [p.grad for p in params] if alone else None
        descends = alone or self._ends_window
        # Shards of one micro-batch's gradient exist only after a reduction.
        with sync.all_together() if alone and sync.sharded else nullcontext():
            if alone:
                set_gradients(params, [None] * len(params))
            count = self.current_gradient_accumulation_steps
            micro_batch = MicroBatch(inputs, num_items_in_batch, count, window.random_state(), sync.mode())
            window.micro_batches.append(micro_batch)
            if part:
                micro_batch.clean_loss = torch.zeros((), device=self.args.device)
            else:
                with self._ascent_pass(config, sync, params):
                    micro_batch.clean_loss = self._plain_step(model, micro_batch)
            if descends:
                if part:
                    self._ascend_on_a_portion(model, window, config, sync, params)
                self._average_chosen(config, sync, params)
                if self._closes(model, params, plan):
                    self._plan = plan._replace(passes="plain")
                else:
                    self._descend(model, window, as_shards(params, model), earlier, config, plan)
                self._window = None
        return micro_batch.clean_loss

    def _descend(
        self,
        model: nn.Module,
        window: Window,
        params: list[Tensor],
        earlier: list[Tensor | None] | None,
        config: SAMConfig,
        plan: StepPlan,
    ) -> None:
        """Climb, run the window at w + epsilon, come back, and take the measurements."""
        policy = self._sam_policy(config)
        rises: list[Tensor] = []
        count = self.current_gradient_accumulation_steps
        part = config.ascent_fraction < 1

        def evaluate() -> None:
            self.in_descent_pass, self.counts_examples = True, part
            try:
                with nullcontext() if part else counted_once(self, self.counters):
                    rises.append(window.replay(lambda m: self._plain_step(model, m), first_run=part))
            finally:
                self.in_descent_pass, self.counts_examples = False, True
                self.current_gradient_accumulation_steps = count

        comparable = not (earlier and window.sync.averages and any(grad is not None for grad in earlier))
        report = descend_in(
            model,
            evaluate,
            params,
            policy.direction,
            rho=policy.length(plan, count if config.sam_scope == "micro_batch" else 1),
            onto=earlier,
            comparable=comparable,
            rounding=self._sam_rounding(config),
            mixing=GradientMixing(config.sam_sharpness_weight, config.sam_renormalise),
            measured=self._is_measured(),
        )
        self._rises.append(rises[0].float())
        self._take_in(report, rises[0])

    def _one_pass(
        self, run: Callable[[], Tensor], model: nn.Module, policy: StepPlanner, direction: OnePass, plan: StepPlan
    ) -> Tensor:
        """Run the only pass of a micro-batch at weights that are perturbed for just as long; return its loss."""
        losses: list[Tensor] = []
        params = as_shards(self._sam_chosen(policy.config, self._sam_parameters(model)), model)
        report = one_pass_step(
            lambda: losses.append(run()),
            params,
            direction,
            rho=policy.length(plan),
            context=plan.context,
            rounding=self._sam_rounding(policy.config),
            measured=self._is_measured(),
        )
        if report is not None:
            self._take_in(report, losses[0].detach() * torch.nan)  # nobody knows the clean loss
        return losses[0]

    def _is_measured(self) -> bool:
        return self._sampler.takes(self.state.global_step, self.args.logging_strategy, self.state.logging_steps)

    def _take_in(self, report: Measurement, rise: Tensor) -> None:
        """Take in what one perturbation measured."""
        self._descents += 1
        self._averages.add(report, rise, report.rho, ends_window=self._ends_window)
        self._tell_realised_norm(report)

    def _end_window(self, model: nn.Module, policy: StepPlanner, plan: StepPlan) -> None:
        """Do what is done once per optimizer step, after its last pass."""
        if plan.passes == "reuse":
            params = [p for p in self._sam_parameters(model) if p.grad is not None]
            policy.direction.reuse_(
                as_shards(params, model), [local_shard(p.grad) for p in params if p.grad is not None]
            )
        elif isinstance(policy.direction, Regulariser):
            policy.direction.adjust_(plan.rho, plan.context)
        if policy.radius.needs_loss:
            seen = torch.stack([torch.stack(part).sum() for part in (self._losses, self._rises) if part])
            loss, *rise = mean_over_processes(seen) if self.args.world_size > 1 else seen
            policy.radius.observe(loss, rise[0] if rise else None)
        self._averages.count_step(perturbed=plan.perturbs or policy.direction.passes == "plain")
        self._forget_window()
