# SPDX-License-Identifier: Apache-2.0
"""How far does the loss rise along a direction, at several radii, after some plain training?"""

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
from hf_sam.rho_search.trainer_snapshot import TrainerSnapshot
from hf_sam.step.perturbation import Perturbation
from hf_sam.step.two_pass import set_gradients
from hf_sam.trainer.micro_batches import MicroBatch, Window, counted_once
from hf_sam.variants import Variant
from hf_sam.vectors.vectors import Ascent


class _Measured(Exception):
    """The way out of the Trainer's loop when everything is measured."""


class LossRises:
    """Plain training in the Trainer's own loop, with a measurement at its end.

    Args:
        trainer: with `SAMTrainerMixin`; not left as it was (see `hf_sam.rho_search.trainer_snapshot`).
        config: SAM's settings: which parameters move, and the scope.
        direction: which way.
        rhos: how far.
        steps: plain optimizer steps; fewer in a run that is shorter.
        batches: how many times as many examples as share one perturbation; fewer if there are no more.
        progress: called with how much of the work is done, in [0, 1].

    Attributes:
        taken: plain steps really taken.
        losses: L(w), one for each batch whose gradient is finite and not zero.
        rises: L(w + epsilon) - L(w), one list for each of these batches with one number for each radius.
    """

    def __init__(
        self,
        trainer: Any,
        config: SAMConfig,
        direction: Variant,
        rhos: tuple[float, ...],
        steps: int,
        batches: int,
        progress: Callable[[float], object] | None,
    ) -> None:
        self._trainer, self._config, self._direction, self._rhos = trainer, config, direction, rhos
        self._steps, self._batches, self._progress = steps, batches, progress
        self.taken = 0
        self.losses: list[float] = []
        self.rises: list[list[float]] = []

    def train(self, undo: TrainerSnapshot) -> None:
        """Call `trainer.train()`, with nobody watching, until everything is measured."""
        trainer = self._trainer
        trainer.args = _plain(trainer.args)
        trainer.control = copy.copy(trainer.control)
        trainer.callback_handler = copy.copy(trainer.callback_handler)
        trainer.callback_handler.callbacks = []
        collect = trainer.get_batch_samples

        def get_batch_samples(iterator: Iterator[Any], count: int, device: torch.device) -> Any:
            trainer.in_descent_pass, trainer.counts_examples = True, False  # who counts examples leaves these out
            undo.keep(trainer._sam_parameters(trainer.model_wrapped))
            self.taken = trainer.state.global_step
            if self.taken < min(self._steps, trainer.state.max_steps - 1):
                self._tell(self.taken)
                return collect(iterator, count, device)
            for samples in self._windows(collect, iterator, device):
                self._measure(trainer.model_wrapped, *samples)
            raise _Measured

        trainer.get_batch_samples = get_batch_samples
        with counted_once(trainer, trainer.counters):
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
        trainer, direction, scaler = self._trainer, self._direction, self._trainer.accelerator.scaler
        window = Window(model)
        for inputs in samples:
            micro_batch = MicroBatch(inputs, num_items_in_batch, len(samples), window.random_state())
            window.micro_batches.append(micro_batch)
            micro_batch.clean_loss = trainer._plain_step(model, micro_batch)
        trained = trainer._sam_parameters(model)
        params = [p for p in trainer._sam_chosen(self._config, trained) if p.grad is not None]
        if not params:
            raise RuntimeError("No parameter received a gradient: does the loss depend on the parameters?")
        direction.loss_scale = scaler.get_scale() if scaler is not None else 1.0
        ascent = direction.ascend(params, [p.grad for p in params], 1.0)
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
        trainer = self._trainer
        perturbation, backward = Perturbation(params), trainer.accelerator.backward
        try:
            perturbation.apply(ascent, trainer._sam_rounding(self._config))
            trainer.accelerator.backward = lambda loss, **kwargs: None
            torch.clear_autocast_cache()
            with torch.no_grad():
                return window.replay(lambda m: trainer._plain_step(window.model, m)).item()
        finally:
            trainer.accelerator.backward = backward
            perturbation.undo()
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
