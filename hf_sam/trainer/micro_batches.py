# SPDX-License-Identifier: Apache-2.0
"""The micro-batches of an optimizer step: what has to be remembered to run them again exactly, and counted once."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hf_sam.engines.gradient_sync import Mode
from hf_sam.step.replay import BufferState, RandomState
from hf_sam.step.two_pass import Gradients
from hf_sam.trainer.step_planner import StepPlan


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


@dataclass
class Window:
    """One optimizer step on this process while it is open: its plan and its micro-batches so far.

    Holding micro-batches costs no memory: the Trainer keeps them alive until the optimizer steps anyway.

    Attributes:
        model: as the training step gets it.
        plan: of the step.
        params: the trained parameters.
        micro_batches: those that share the perturbation that is open now.
        buffers: of the model, as the first of these found them.
        losses: of all micro-batches so far.
        rises: of all descents so far.
        descents: how many perturbations there were.
        ends: whether the micro-batch at hand is the last one. The engine's own flag changes inside of a pass.
        earlier: gradients that the user left in `.grad` before the step; None if there were none.
        left: the gradients as the last micro-batch has left them, where the next one has to find them so.
    """

    model: nn.Module
    plan: StepPlan
    params: list[Tensor]
    micro_batches: list[MicroBatch] = field(default_factory=list)
    buffers: BufferState | None = None
    losses: list[Tensor] = field(default_factory=list)
    rises: list[Tensor] = field(default_factory=list)
    descents: int = 0
    ends: bool = False
    earlier: Gradients | None = None
    left: list[tuple[int, int] | None] | None = None


COUNTERS = (
    *("_metrics", "_total_train_tokens", "_stored_metrics"),  # TRL; the last one in CPO, ORPO, TPO and older versions
    "accum_loss_components",  # sentence-transformers, for losses of several parts
)
"""Where trainers keep what they count in `compute_loss`."""


@contextmanager
def counted_once(trainer: Any, names: Iterable[str]) -> Iterator[None]:
    """Undo whatever happens to the named attributes inside, also when something is raised.

    Inside, they are copies; afterwards they are the objects they were, which others may hold.

    Args:
        trainer: whose attributes are kept.
        names: those it does not have are passed over.
    """
    kept = {name: getattr(trainer, name) for name in names if hasattr(trainer, name)}
    try:
        for name, value in kept.items():
            setattr(trainer, name, copy.deepcopy(value))
        yield
    finally:
        for name, value in kept.items():
            setattr(trainer, name, value)
