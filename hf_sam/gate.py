# SPDX-License-Identifier: Apache-2.0
"""Choices of the steps that perturb the weights. The others are plain steps, at a plain step's cost."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_sam._checks import check_number, known_options
from hf_sam.step_context import StepContext

WARMUP = "warmup"
"""As `start`: when the learning rate's warm-up ends."""


class Gate:
    """A gate that is open from a share of the run to another, at every k-th step.

    Args:
        start: share of the optimizer steps before the first perturbation, in [0, 1]; or "warmup".
        stop: share of the steps after which there is none, in [0, 1].
        every: steps from one perturbation to the next, >= 1.
    """

    def __init__(self, start: float | str = 0.0, stop: float = 1.0, every: int = 1) -> None:
        self.start, self.stop, self.every = start, stop, every

    @property
    def always(self) -> bool:
        """Whether no step is left out in any run."""
        return self.start == 0.0 and self.stop == 1.0 and self.every == 1

    def in_time(self, context: StepContext) -> bool:
        """Return whether `context` is between start and stop.

        Raises:
            ValueError: if that depends on the length of the run, and it is not known.
        """
        by_share = self.stop < 1.0 or (self.start != WARMUP and self.start != 0.0)
        if by_share and not context.steps:
            raise ValueError("`sam_start` and `sam_stop` need to know how long the run is: set max_steps.")
        first = context.warmup_steps if isinstance(self.start, str) else _steps_in(self.start, context)
        return context.step >= first and (self.stop == 1.0 or context.step < _steps_in(self.stop, context))

    def in_turn(self, context: StepContext) -> bool:
        """Return whether the step is one of every k."""
        return context.step % self.every == 0

    def opens(self, context: StepContext) -> bool:
        """Return whether a step at `context` perturbs."""
        return self.in_time(context) and self.in_turn(context)


def _steps_in(share: float, context: StepContext) -> int:
    """Return how many steps begin before a share of the run is over; 0.07 of 100 is 7, in spite of rounding."""
    return math.ceil(round(share * context.steps, 6))


class GradientNormTest:
    """AE-SAM's test (Jiang et al. 2023): perturb where the gradient is large for its time.

    With running mean mu and variance s^2 of ||g||^2 (weight of the past: `delta`), a step perturbs if
    ||g||^2 >= mu + c s, where c goes in a straight line from `c_start` to `c_end`: few steps perturb at the beginning,
    most at the end. The host needs the answer, so an accelerator is waited for once a step.

    Args:
        delta: weight of the past in the running mean and variance, in [0, 1).
        c_start: c at the first step (the paper's lambda_2).
        c_end: c when the run is over (the paper's lambda_1).
    """

    def __init__(self, *, delta: float = 0.9, c_start: float = 1.0, c_end: float = -1.0) -> None:
        self.delta = check_number("sam_gate_kwargs", "delta", delta, least=0, below=1)
        self.c_start = check_number("sam_gate_kwargs", "c_start", c_start)
        self.c_end = check_number("sam_gate_kwargs", "c_end", c_end)
        self._mean, self._variance, self._steps = 0.0, 0.0, 0

    def passes(self, squared_norm: Tensor, context: StepContext) -> bool:
        """Take in ||g||^2 (without loss scale, the same on every process) and return whether to perturb.

        A gradient that is not finite does not enter mean and variance. Its step goes on, and is counted as skipped.

        Raises:
            ValueError: if c depends on the length of the run, and it is not known.
        """
        if self.c_start != self.c_end and not context.steps:
            raise ValueError(
                "`sam_gate='gradient_norm'` needs to know how long the run is: set max_steps, or give c_start and "
                "c_end in sam_gate_kwargs the same value."
            )
        value = squared_norm.item()
        if not torch.isfinite(torch.tensor(value)):
            return True
        past = self.delta if self._steps else 0.0
        self._mean = past * self._mean + (1 - past) * value
        self._variance = past * self._variance + (1 - past) * (value - self._mean) ** 2
        self._steps += 1
        c = self.c_start + (self.c_end - self.c_start) * context.progress
        return bool(value >= self._mean + c * self._variance**0.5)

    def state_dict(self) -> dict[str, float]:
        """Return what a resume needs."""
        return {"mean": self._mean, "variance": self._variance, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned.

        Raises:
            ValueError: if it is something else.
        """
        for name in ("mean", "variance", "steps"):
            if isinstance(state.get(name), bool) or not isinstance(state.get(name), (int, float)):
                raise ValueError(f"the state of sam_gate has no number {name!r}")
        self._mean, self._variance, self._steps = state["mean"], state["variance"], int(state["steps"])


GATES = ("always", "gradient_norm")


def make_test(gate: str, kwargs: Mapping[str, Any] | None = None) -> GradientNormTest | None:
    """Return the test that `sam_gate` names; None for "always".

    Raises:
        ValueError: if it has no such option, or an option is out of range.
    """
    options = list(inspect.signature(GradientNormTest).parameters) if gate == "gradient_norm" else []
    known_options("sam_gate", gate, options, kwargs)
    return GradientNormTest(**(kwargs or {})) if gate == "gradient_norm" else None
