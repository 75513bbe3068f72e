# SPDX-License-Identifier: Apache-2.0
"""The context of a step: where in the run it is."""

from __future__ import annotations

from typing import Any, NamedTuple


class StepContext(NamedTuple):
    """What a radius, a gate or a variant may depend on besides the gradients. The same on every process.

    Attributes:
        step: optimizer steps taken so far, >= 0.
        steps: optimizer steps of the whole run; 0 if not known.
        warmup_steps: of the learning rate.
        lr: learning rate of the coming step (of the first parameter group).
        peak_lr: the learning rate that the schedule is a fraction of.
        seed: of the run.
        optimizer: the user's, for variants that read its state; None where there is none.
        passes: over the training data so far, >= 0; None if not known.
    """

    step: int = 0
    steps: int = 0
    warmup_steps: int = 0
    lr: float = 0.0
    peak_lr: float = 0.0
    seed: int = 0
    optimizer: Any = None
    passes: float | None = None

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]; 0 if its length is not known."""
        return min(self.step / self.steps, 1.0) if self.steps else 0.0
