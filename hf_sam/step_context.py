# SPDX-License-Identifier: Apache-2.0
"""Where in a run is a step?"""

from __future__ import annotations

from typing import Any, NamedTuple


class StepContext(NamedTuple):
    """What a radius, a gate or a direction may depend on besides the gradients. The same on every process.

    Attributes:
        step: optimizer steps taken so far, >= 0.
        steps: optimizer steps of the whole run; 0 where nobody knows.
        warmup_steps: of the learning rate.
        lr: learning rate of the coming step (of the first parameter group).
        peak_lr: the learning rate that the schedule is a fraction of.
        seed: of the run.
        optimizer: the user's, for directions that look at its state; None where there is none.
        passes: how often the training data have been gone through, >= 0; None where nobody knows.
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
        """Share of the run that is done, in [0, 1]; 0 where its length is not known."""
        return min(self.step / self.steps, 1.0) if self.steps else 0.0
