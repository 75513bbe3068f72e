# SPDX-License-Identifier: Apache-2.0
"""The context of a step: where in the run it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

NO_RATE = (
    "`%s` follows the learning rate, and the optimizer has none in its parameter groups. Give it one (Adafactor: "
    "relative_step=False and an lr), or choose something else."
)


def at_hand(lr: float | Tensor) -> float | Tensor:
    """Return a learning rate as a number, except where that would wait for an accelerator."""
    return lr if isinstance(lr, Tensor) and lr.device.type != "cpu" else float(lr)


class StepContext(NamedTuple):
    """What a radius, a gate or a variant may depend on besides the gradients. The same on every process.

    Attributes:
        step: optimizer steps taken so far, >= 0.
        steps: optimizer steps of the whole run; 0 if not known.
        warmup_steps: of the learning rate: at this step it has warmed up.
        lr: largest learning rate of the coming step among the groups that train; None where the optimizer has none.
        peak_lr: the largest one of the run, as far as it is known; 0 where it was not asked for.
        seed: of the run.
        optimizer: the user's, for variants that read its state; None where there is none.
        passes: over the training data so far, >= 0; None if not known.
    """

    step: int = 0
    steps: int = 0
    warmup_steps: int = 0
    lr: float | Tensor | None = 0.0
    peak_lr: float | Tensor = 0.0
    seed: int = 0
    optimizer: Any = None
    passes: float | None = None

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]; 0 if its length is not known."""
        return min(self.step / self.steps, 1.0) if self.steps else 0.0

    def known_lr(self, needed_by: str) -> float | Tensor:
        """Return `lr`.

        Raises:
            ValueError: if there is none, naming what needs it.
        """
        if self.lr is None:
            raise ValueError(NO_RATE % needed_by)
        return self.lr

    def rates_of(self, params: Iterable[Tensor], needed_by: str) -> list[float | Tensor]:
        """Return the learning rate of each parameter: its group's; `lr` for one that the optimizer does not hold.

        Raises:
            ValueError: if there is none, naming what needs it.
        """
        groups = getattr(self.optimizer, "param_groups", None) or []
        groups = [group for group in groups if group.get("lr") is not None]
        rates = {id(p): lr for group in groups for lr in [at_hand(group["lr"])] for p in group["params"]}
        return [rates[id(p)] if id(p) in rates else self.known_lr(needed_by) for p in params]
