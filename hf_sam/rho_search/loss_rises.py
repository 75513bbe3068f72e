# SPDX-License-Identifier: Apache-2.0
"""Measure how much the loss rises at w + epsilon, for several radii, after some plain training."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from hf_sam.config.sam_config import PLAIN, SAMConfig
from hf_sam.parameters.choose import chosen
from hf_sam.step.perturbation import Perturbation
from hf_sam.step.two_pass import set_gradients
from hf_sam.step_context import StepContext
from hf_sam.trainer.micro_batches import Window
from hf_sam.trainer.step_planner import StepPlan
from hf_sam.trainer.training_step import TrainingStep
from hf_sam.variants import Variant
from hf_sam.vectors.vectors import Ascent, gradients


class _Measured(Exception):
    """The way out of the Trainer's loop when everything is measured."""


class LossRises:
    """Plain training in the Trainer's own loop, with a measurement at its end.

    Args:
        trainer: one with `SAMTrainerMixin` that is not needed afterwards: it is left in the middle of its training.
        config: SAM's settings: which parameters move, and the scope.
        variant: which way epsilon points.
        rhos: how long it is.
        steps: plain optimizer steps; fewer in a run that is shorter.
        batches: how many times as many examples as share one perturbation; fewer if there are no more.
        progress: called with how much of the work is done, in [0, 1].
        check: called with the parameters before they are trained.

    Attributes:
        taken: plain steps really taken.
        losses: L(w), one for each batch whose gradient is finite and not zero.
        rises: L(w + epsilon) - L(w), one list for each of these batches with one number for each radius.
    """

    def __init__(
        self,
        trainer: Any,
        config: SAMConfig,
        variant: Variant,
        rhos: tuple[float, ...],
        steps: int,
        batches: int,
        *,
        progress: Callable[[float], object] | None = None,
        check: Callable[[list[Tensor]], object] | None = None,
    ) -> None:
        self._trainer, self._config, self._variant, self._rhos = trainer, config, variant, rhos
        self._steps, self._batches, self._progress, self._check = steps, batches, progress, check
        self.taken = 0
        self.losses: list[float] = []
        self.rises: list[list[float]] = []

    def train(self) -> None:
        """Call `trainer.train()`, without callbacks, until everything is measured."""
        trainer = self._trainer
        trainer.args = _plain(trainer.args)
        trainer.callback_handler.callbacks = []
        collect, is_prepared = trainer.get_batch_samples, False

        def get_batch_samples(iterator: Iterator[Any], count: int, device: torch.device) -> Any:
            nonlocal is_prepared
            if not is_prepared:
                self._prepare(trainer.model_wrapped)
                is_prepared = True
            self._count_no_examples()
            self.taken = trainer.state.global_step
            if self.taken < min(self._steps, trainer.state.max_steps - 1):
                self._tell(self.taken)
                return collect(iterator, count, device)
            for samples in self._windows(collect, iterator, device):
                self._measure(trainer.model_wrapped, *samples)
            raise _Measured

        trainer.get_batch_samples = get_batch_samples
        try:
            trainer.train()
        except _Measured:
            return

    def mean_loss(self) -> float:
        """Return the mean of L(w) over the batches.

        Raises:
            ValueError: if there was none, or it is no number above 0.
        """
        if not self.losses:
            raise ValueError(
                f"find_rho found no batch with a gradient that is finite and not zero after {self.taken} plain steps. "
                "Check the data, and that the run learns with sam_variant='none'."
            )
        loss = sum(self.losses) / len(self.losses)
        if not 0 < loss < math.inf:
            raise ValueError(
                f"find_rho compares the rise of the loss with the loss, which must be a finite number > 0 after "
                f"{self.taken} plain steps, got {loss:g}. Check that the run learns with sam_variant='none'."
            )
        return loss

    def _prepare(self, model: nn.Module) -> None:
        """Take away gradients that are older than this run."""
        params = self._trained(model)
        if self._check is not None:
            self._check(params)
        set_gradients(params, [None] * len(params))

    def _trained(self, model: nn.Module) -> list[Tensor]:
        run = self._trainer._sam
        run.list_parameters(self._trainer, model)
        return [p for p in run.candidates if p.requires_grad]

    def _count_no_examples(self) -> None:
        """Tell a `compute_loss` that counts examples to leave these out."""
        self._trainer._sam.in_descent_pass, self._trainer._sam.counts_examples = True, False

    def _windows(self, collect: Any, iterator: Iterator[Any], device: torch.device) -> Iterator[tuple[list[Any], Any]]:
        """Yield micro-batches that share one perturbation, and their number of items; on into the next epoch."""
        trainer = self._trainer
        stream = itertools.chain(iterator, trainer.callback_handler.train_dataloader)
        count = 1 if self._config.sam_scope == "micro_batch" else trainer.args.gradient_accumulation_steps
        for _ in range(self._batches):
            samples, num_items_in_batch = collect(stream, count, device)
            if not samples:
                return
            yield samples, num_items_in_batch

    def _measure(self, model: nn.Module, samples: list[Any], num_items_in_batch: Tensor | int | None) -> None:
        """Take the clean gradient of some micro-batches, then their loss at each radius along it."""
        trainer, variant, scaler = self._trainer, self._variant, self._trainer.accelerator.scaler
        window = Window(model, StepPlan("two", 1.0, StepContext()), self._trained(model))
        step = TrainingStep(trainer, trainer.training_step, model, window)  # plain: its arguments say so
        trainer.current_gradient_accumulation_steps = len(samples)
        for inputs in samples:
            micro_batch = step.note(inputs, num_items_in_batch)
            micro_batch.clean_loss = step.pass_over(micro_batch)
        moved = {id(p) for p in chosen(trainer.model, self._config.sam_parameters).values()}
        every = self._config.sam_parameters == "all"
        params = [p for p in window.params if p.grad is not None and (every or id(p) in moved)]
        if not params:
            raise RuntimeError("No parameter received a gradient: does the loss depend on the parameters?")
        variant.loss_scale = scaler.get_scale() if scaler is not None else 1.0
        ascent = variant.ascend(params, gradients(params), 1.0)
        set_gradients(window.params, [None] * len(window.params))
        if not ascent.usable:
            return
        self.losses.append(torch.stack([m.clean_loss for m in window.micro_batches]).sum().item())
        self.rises.append([])
        for rho in self._rhos:
            self.rises[-1].append(self._rise(step, params, ascent._replace(scale=ascent.scale * rho, lent=True)))
            self._tell(self.taken)

    def _rise(self, step: TrainingStep, params: list[Tensor], ascent: Ascent) -> float:
        """Return L(w + epsilon) - L(w) over the micro-batches of a step."""
        accelerator, count = self._trainer.accelerator, len(step.window.micro_batches)
        backward = accelerator.backward
        rounding = step.run.rounding(self._trainer) if self._config.sam_rounding != "nearest" else None
        try:
            with Perturbation(params, rounding) as perturbation:
                perturbation.apply(ascent)
                accelerator.backward = lambda loss, **kwargs: None
                with torch.no_grad():
                    return step.replay(False, count).item()
        finally:
            accelerator.backward = backward
            self._count_no_examples()

    def _tell(self, taken: int) -> None:
        """Report progress; a plain step counts as three forward passes."""
        if self._progress is not None:
            steps = 3 * min(self._steps, self._trainer.state.max_steps - 1)
            done, total = 3 * taken + sum(map(len, self.rises)), steps + self._batches * len(self._rhos)
            self._progress(min(done / total, 1.0))


def _plain(args: Any) -> Any:
    """Return a copy of the training arguments for training without SAM and without evaluation."""
    args = copy.copy(args)
    config = SAMConfig(sam_variant=PLAIN)
    for f in fields(SAMConfig):
        setattr(args, f.name, getattr(config, f.name))
    args.eval_on_start = False
    return args
