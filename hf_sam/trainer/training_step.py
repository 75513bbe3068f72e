# SPDX-License-Identifier: Apache-2.0
"""The passes that a Trainer makes over the micro-batches of a step, in their order."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hf_sam.config.sam_config import PLAIN
from hf_sam.step.measurement import Measurement
from hf_sam.step.replay import InputsAtStart, RandomState
from hf_sam.step.two_pass import Gradients, put_gradients_under, set_gradients, take_gradients
from hf_sam.trainer.ascent_pass import ascend_on_a_subset, ascent_pass, average_moved, gradient_is_small
from hf_sam.trainer.interference import WATCHED_STEPS, look_out, note_gradients
from hf_sam.trainer.micro_batches import MicroBatch, Window, counted_once
from hf_sam.trainer.one_pass import one_pass
from hf_sam.trainer.radius_warnings import tell_realised_norm
from hf_sam.trainer.repeatable import checked_pass
from hf_sam.trainer.replayed_state import changed_state
from hf_sam.trainer.shared_arguments import FIELDS

Step = Callable[..., Tensor]


def training_step(
    trainer: Any, plain_step: Step, model: nn.Module, inputs: Mapping[str, Any], num_items: Tensor | int | None
) -> Tensor:
    """Run the passes that are due at a micro-batch, through the Trainer's own `training_step`.

    Args:
        trainer: with a `RunState` in `_sam`.
        plain_step: the Trainer's own `training_step`.
        model: what it is to be called with, wrapped by its engine.
        inputs: likewise.
        num_items: likewise, `num_items_in_batch`.

    Returns:
        The clean loss of the micro-batch, L(w), as the Trainer scales it (promise 6); of a step of one pass its loss.
    """
    run = trainer._sam
    if run.window is None and [getattr(trainer.args, name) for name in FIELDS] != run.field_values:
        run.read_settings(trainer)
    run.entered = True
    if run.config.sam_variant == PLAIN:
        return plain_step(model, inputs, num_items)
    try:
        step = TrainingStep(trainer, plain_step, model)
        if run.own_steps < WATCHED_STEPS or step.window.left is not None:
            look_out(step)
        with run.engine.deferred_step(), run.planner.at_work():
            loss = step.take(inputs, num_items)
        if not step.window.ends:
            note_gradients(step.window, run.config.sam_scope)
        run.own_steps += step.window.ends
        return loss
    except BaseException:
        run.forget_window()  # the next micro-batch must not replay these
        raise


class TrainingStep:
    """What is due at one micro-batch of a trainer.

    Args:
        trainer: with a `RunState` in `_sam`.
        plain_step: the Trainer's own `training_step`.
        model: what it is to be called with.
        window: the optimizer step; the one that is open by default, or else a new one.
    """

    def __init__(self, trainer: Any, plain_step: Step, model: nn.Module, window: Window | None = None) -> None:
        self.trainer, self.run, self.plain_step, self.model = trainer, trainer._sam, plain_step, model
        self.window: Window = window or self.run.window or self._open_window()
        self.window.ends = bool(trainer.accelerator.sync_gradients)

    def _open_window(self) -> Window:
        """Plan an optimizer step."""
        run, trainer = self.run, self.trainer
        groups = getattr(trainer.optimizer, "param_groups", None) or []  # a callback may have put others there
        known = [id(p) for group in groups for p in group["params"]]
        if run.engine is None or run.engine.model is not self.model or run.engine.relists or known != run.optimized:
            run.list_parameters(trainer, self.model)
            run.optimized = known
        planner = run.planner or run.planner_for(trainer, run.config)
        params = [p for p in run.candidates if p.requires_grad]
        if run.optimizer_checks < 2:
            run.check_optimizer(trainer, params)
        plan = planner.every_step or planner.plan(run.context(trainer))
        if planner.needs_loss_scale:
            planner.read_loss_scale(trainer)
        run.window = window = Window(self.model, plan, params)
        if plan.passes == "two" and run.config.sam_scope != "micro_batch":
            window.earlier = take_gradients(params)
        return window

    def take(self, inputs: Mapping[str, Any], num_items: Tensor | int | None) -> Tensor:
        """Run the passes that are due; return the loss to report."""
        if self.window.plan.passes == "two":
            loss = self._two_passes(inputs, num_items)
        elif self.window.plan.passes == "one":
            loss = one_pass(self, inputs, num_items)
        else:
            loss = self.plain_step(self.model, inputs, num_items)
        self.window.losses.append(loss.detach().float())
        if self.window.ends:
            self._close_window()
        return loss

    def _two_passes(self, inputs: Mapping[str, Any], num_items: Tensor | int | None) -> Tensor:
        """Run the clean pass of a micro-batch, and the descent where it is the last of its perturbation."""
        window, config, engine = self.window, self.run.config, self.run.engine
        alone, part = config.sam_scope == "micro_batch", config.ascent_fraction < 1
        earlier = [p.grad for p in window.params] if alone else window.earlier
        # Shards of one micro-batch's gradient exist only after a reduction.
        with engine.sync.all_together() if alone and engine.sync and engine.sync.sharded else nullcontext():
            if alone:
                set_gradients(window.params, [None] * len(window.params))
            micro_batch = self.note(inputs, num_items)
            if part:
                micro_batch.clean_loss = torch.zeros((), device=self.trainer.args.device)
            elif config.sam_parameters == "all" and (config.sam_scope == "batch" or engine.sync is None):
                micro_batch.clean_loss = self.first_pass(micro_batch, micro_batch is window.micro_batches[0])
            else:
                micro_batch.clean_loss = ascent_pass(self, micro_batch, micro_batch is window.micro_batches[0])
            if alone or window.ends:
                self._descend(earlier, part)
                window.micro_batches, window.state = [], None
        return micro_batch.clean_loss

    def _descend(self, earlier: Gradients | None, part: bool) -> None:
        """Complete the clean gradient, climb, run the micro-batches at w + epsilon and come back."""
        run, window = self.run, self.window
        planner, config, sync = run.planner, run.config, run.engine.sync
        if part:
            ascend_on_a_subset(self)
        if sync is not None and sync.replicated and config.sam_parameters != "all":
            average_moved(self)
        if planner.test is not None and gradient_is_small(self):
            window.plan = window.plan._replace(passes="plain")
            put_gradients_under(window.params, earlier)
            return
        count = self.trainer.current_gradient_accumulation_steps
        rises: list[Tensor] = []
        comparable = not (earlier and sync and sync.averages and any(grad is not None for grad in earlier))
        rho = window.plan.rho
        if planner.radius.needs_gradient:
            rho = planner.length(window.plan, count if config.sam_scope == "micro_batch" else 1)
        measurement = run.engine.two_pass_step(
            lambda: rises.append(self.replay(part, count)),
            run.engine.as_shards(window.params) if run.engine.relists else window.params,
            planner.variant,
            rho=rho,
            onto=earlier,
            onto_after=sync is None,
            rounding=run.rounding(self.trainer) if run.config.sam_rounding != "nearest" else None,
            mixing=run.mixing,
            measured=run.sampler.measures(self.trainer.state, self.trainer.args),
        )
        if not comparable:  # what the pass has added to earlier gradients was averaged together with them
            measurement = measurement._replace(grad_cosine=None)
        if not part:  # else it is the difference of two losses over other examples
            window.rises.append(rises[0].float())
        self.take_in(measurement, None if part else rises[0])

    def note(self, inputs: Mapping[str, Any], num_items: Tensor | int | None) -> MicroBatch:
        """Note what a micro-batch needs to be run again, before it is run."""
        run, window, trainer = self.run, self.window, self.trainer
        if run.changed is None:
            run.changed = changed_state(trainer)
        if window.state is None:
            window.state = run.changed.now(trainer.replayed_state())
        count, found = trainer.current_gradient_accumulation_steps, InputsAtStart(inputs, run.changed)
        random_state = RandomState(run.engine.devices, run.changed.generators)
        window.micro_batches.append(MicroBatch(inputs, num_items, count, random_state, self.get_sync_mode(), found))
        return window.micro_batches[-1]

    def first_pass(self, micro_batch: MicroBatch, is_first: bool) -> Tensor:
        """Run a clean pass; at the first perturbations of a run see whether it can be repeated."""
        return checked_pass(self, micro_batch) if is_first and self.run.checks_left else self.pass_over(micro_batch)

    def pass_over(self, micro_batch: MicroBatch) -> Tensor:
        """Run the Trainer's own forward and backward on one micro-batch; return its loss."""
        self.trainer.current_gradient_accumulation_steps = micro_batch.accumulation_steps
        inputs: Any = copy.copy(micro_batch.inputs)  # a `compute_loss` that pops its labels must find them again
        if micro_batch.found is not None and micro_batch.found.iterators:
            inputs.update({name: iter(items) for name, items in micro_batch.found.iterators.items()})
        return self.plain_step(self.model, inputs, micro_batch.num_items_in_batch)

    def replay(self, part: bool, count: float) -> Tensor:
        """Run the micro-batches again as they were run first, for their gradients; return by how much the loss rose.

        What passes change starts and ends as in the first pass, whatever is raised; gradients are reduced likewise.

        Args:
            part: whether the first pass saw only a part of the examples. The micro-batches are then run for the first
                time: everything goes on from one to the next and ends where this leaves it, as the Trainer's.
            count: micro-batches of the step.
        """
        run, trainer, rises = self.run, self.trainer, []
        window: Any = self.window
        random_state, sync_mode = RandomState(run.engine.devices, run.changed.generators), self.get_sync_mode()
        counters = [] if part else [name for name in trainer.counters if hasattr(trainer, name)]
        run.in_descent_pass, run.counts_examples = True, part
        try:
            with window.state.again(stays=part), counted_once(trainer, counters) if counters else nullcontext():
                for number, micro_batch in enumerate(window.micro_batches):
                    if not (part and number):
                        micro_batch.random_state.restore()
                    self.set_sync_mode(micro_batch.sync_mode)
                    with micro_batch.found.again():
                        rises.append(self.pass_over(micro_batch).detach() - micro_batch.clean_loss)
        finally:
            if not part:
                random_state.restore()
            self.set_sync_mode(sync_mode)
            run.in_descent_pass, run.counts_examples = False, True
            trainer.current_gradient_accumulation_steps = count
        return torch.stack(rises).sum()

    def get_sync_mode(self) -> Any:
        """Return how gradients are reduced now; in one process, only whether this micro-batch is the last."""
        sync = self.run.engine.sync
        return self.trainer.accelerator.gradient_state.sync_gradients if sync is None else sync.mode()

    def set_sync_mode(self, mode: Any) -> None:
        """Reduce gradients as when `mode` was got."""
        if self.run.engine.sync is None:
            self.trainer.accelerator.gradient_state.sync_gradients = mode
        else:
            self.run.engine.sync.set_mode(mode)

    def take_in(self, measurement: Measurement, rise: Tensor | None) -> None:
        """Take in what one perturbation measured."""
        run, self.window.descents = self.run, self.window.descents + 1
        run.averages.add(measurement, rise, ends_window=self.window.ends)
        if measurement.asked_norm is not None:
            tell_realised_norm(measurement, run.config.sam_rounding, run.told)

    def _close_window(self) -> None:
        """Do what is done once per optimizer step, after its last pass."""
        run, planner, plan = self.run, self.run.planner, self.window.plan
        if planner.radius.needs_loss or plan.passes in ("plain", "reuse"):
            run.end_step(self.trainer)
        run.averages.end_step(self.window, planner.variant, run.config.ascent_fraction)
        run.window = None
