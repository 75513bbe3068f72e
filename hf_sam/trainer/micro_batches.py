# SPDX-License-Identifier: Apache-2.0
"""What has to be remembered of the micro-batches of one perturbation to run them again exactly?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_sam.engines.gradient_sync import GradientSync, Mode
from hf_sam.step.replay import BufferState, RandomState, devices_of


@dataclass
class MicroBatch:
    """One call of `training_step`: its arguments, and what else its result depended on.

    `accumulation_steps` and `num_items_in_batch` are kept per micro-batch: with a length-less dataset the gradients of
    a short last group spill into the next epoch's window, which has other counts. `sync_mode` is how its descent pass
    reduces gradients over processes: as the Trainer would have had it (see `hf_sam.engines.gradient_sync`).
    """

    inputs: Mapping[str, Any]
    num_items_in_batch: Tensor | int | None
    accumulation_steps: float
    random_state: RandomState
    sync_mode: Mode = ()
    clean_loss: Tensor = field(init=False, repr=False)

    def fresh_inputs(self) -> Mapping[str, Any]:
        """Return a shallow copy of the inputs: a `compute_loss` that pops its labels must find them again."""
        return copy.copy(self.inputs)


@dataclass
class Window:
    """The micro-batches that share one perturbation.

    Holding them costs no memory: the Trainer keeps them alive until the optimizer steps anyway.
    """

    model: nn.Module
    micro_batches: list[MicroBatch] = field(default_factory=list)
    sync: GradientSync = field(default_factory=lambda: GradientSync(nn.Identity()))
    buffers: BufferState = field(init=False)

    def __post_init__(self) -> None:
        """Capture the buffers as the first micro-batch will find them."""
        self.buffers = BufferState(self.model)

    def random_state(self) -> RandomState:
        """Capture the random streams this model's forward pass may draw from."""
        return RandomState(devices_of(self.model.parameters()))

    def replay(self, run: Callable[[MicroBatch], Tensor], *, first_run: bool = False) -> Tensor:
        """Run every micro-batch again as it was run the first time, and leave no other trace than gradients.

        Random streams and buffers start where the first pass started and end where the first pass ended, also when
        `run` raises; gradients are reduced over processes where the Trainer would have reduced them.

        Args:
            run: forward and backward of one micro-batch; returns its loss.
            first_run: whether the micro-batches were not run before, only noted: then the random streams go on from one
                to the next and end where this leaves them, as the Trainer's would.

        Returns:
            The rise of the loss, summed over the micro-batches (0-dim, detached).
        """
        random_state, buffers, sync_mode = self.random_state(), BufferState(self.model), self.sync.mode()
        self.buffers.restore()
        rises = []
        try:
            for number, micro_batch in enumerate(self.micro_batches):
                if not (first_run and number):
                    micro_batch.random_state.restore()
                self.sync.set_mode(micro_batch.sync_mode)
                rises.append(run(micro_batch).detach() - micro_batch.clean_loss)
        finally:
            if not first_run:
                random_state.restore()
            buffers.restore()
            self.sync.set_mode(sync_mode)
        return torch.stack(rises).sum()
