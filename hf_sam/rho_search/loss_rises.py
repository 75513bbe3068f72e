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
from hf_sam.step.perturbation import Perturbation, bring_back
from hf_sam.step.two_pass import set_gradients
from hf_sam.trainer.micro_batches import MicroBatch, Window
from hf_sam.variants import Variant
from hf_sam.variants.base import Ascent
from hf_sam.vectors.stochastic_rounding import StochasticRounding


class _Inside:
    """All that is used here of a trainer's inside."""

    def __init__(self, trainer: Any, config: SAMConfig) -> None:
        self._trainer, self._config = trainer, config

    def count_no_examples(self) -> None:
        self._trainer.in_descent_pass, self._trainer.counts_examples = True, False

    def parameters(self, model: nn.Module) -> list[Tensor]:
        """Return what is trained."""
        params: list[Tensor] = self._trainer._sam_parameters(model)
        return params

    def perturbed(self, params: list[Tensor]) -> list[Tensor]:
        """Return those of the trained parameters that `sam_parameters` lets move."""
        chosen: list[Tensor] = self._trainer._sam_chosen(self._config, params)
        return chosen

    def plain_pass(self, model: nn.Module, micro_batch: MicroBatch) -> Tensor:
        """Run the Trainer's own forward and backward on one micro-batch."""
        loss: Tensor = self._trainer._plain_step(model, micro_batch)
        return loss

    def rounding(self) -> StochasticRounding | None:
        rounding: StochasticRounding | None = self._trainer._sam_rounding(self._config)
        return rounding


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
        self._inside = _Inside(trainer, config)
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
            self._inside.count_no_examples()
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
        params = self._inside.parameters(model)
        if self._check is not None:
            self._check(params)
        set_gradients(params, [None] * len(params))

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
        variant, scaler = self._variant, self._trainer.accelerator.scaler
        window = Window(model)
        for inputs in samples:
            micro_batch = MicroBatch(inputs, num_items_in_batch, len(samples), window.random_state())
            window.micro_batches.append(micro_batch)
            micro_batch.clean_loss = self._inside.plain_pass(model, micro_batch)
        trained = self._inside.parameters(model)
        params = [p for p in self._inside.perturbed(trained) if p.grad is not None]
        if not params:
            raise RuntimeError("No parameter received a gradient: does the loss depend on the parameters?")
        variant.loss_scale = scaler.get_scale() if scaler is not None else 1.0
        grads = [p.grad for p in params if p.grad is not None]
        ascent = variant.ascend(params, grads, 1.0)
        set_gradients(trained, [None] * len(trained))
        if not ascent.usable:
            return
        self.losses.append(torch.stack([m.clean_loss for m in window.micro_batches]).sum().item())
        self.rises.append([])
        for rho in self._rhos:
            self.rises[-1].append(self._rise(window, params, ascent._replace(scale=ascent.scale * rho, lent=True)))
            self._tell(self.taken)

    def _rise(self, window: Window, params: list[Tensor], ascent: Ascent) -> float:
        """Return L(w + epsilon) - L(w) over the micro-batches of a window."""
        accelerator = self._trainer.accelerator
        perturbation, backward = Perturbation(params), accelerator.backward
        try:
            perturbation.apply(ascent, self._inside.rounding())
            accelerator.backward = lambda loss, **kwargs: None
            torch.clear_autocast_cache()
            with torch.no_grad():
                return window.replay(lambda m: self._inside.plain_pass(window.model, m)).item()
        finally:
            accelerator.backward = backward
            bring_back(perturbation)
            torch.clear_autocast_cache()

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
