# SPDX-License-Identifier: Apache-2.0
"""Schedules of the radius over a run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_sam._checks import check_number
from hf_sam.radius.learning_rates import largest
from hf_sam.step_context import StepContext
from hf_sam.variants.base import Length

AUTO = "auto"
"""The `rho` that finds itself."""


class Radius(ABC):
    """The radius rho over a run. The constructor takes the user's `rho`, and options by keyword.

    Attributes:
        needs_gradient: whether the radius comes from `from_gradient`, which needs the clean gradient (or what else the
            variant climbs along).
        uses_loss_scale: whether the loss scale of the gradient makes a difference to `from_gradient`.
        needs_loss: whether `observe` has to be told of each step.
        steers_by_rise: whether `observe` goes by the rise, which has to be of the same examples as the loss.
        needs_peak_lr: whether it has to know the largest learning rate of the run.
        for_one_pass: whether it can do without a clean gradient and a rise, which steps of one pass do not know.
    """

    needs_gradient: ClassVar[bool] = False
    uses_loss_scale: ClassVar[bool] = False
    needs_loss: ClassVar[bool] = False
    steers_by_rise: ClassVar[bool] = False
    needs_peak_lr: ClassVar[bool] = False
    for_one_pass: ClassVar[bool] = True

    def note(self, context: StepContext) -> None:
        """Take in where the run is, before every step, also before those that a gate leaves plain."""
        del context

    @abstractmethod
    def at(self, context: StepContext) -> Length:
        """Return rho at `context`, >= 0. The number 0 makes the step a plain one, at a plain step's cost."""

    def from_gradient(self, params: list[Tensor], grads: list[Tensor], loss_scale: Length) -> Tensor:
        """Return rho for this step as a 0-dim tensor, where `needs_gradient`.

        Args:
            params: the parameters that move.
            grads: the clean gradient, not to be changed.
            loss_scale: what the gradient is multiplied by.
        """
        raise NotImplementedError(f"{type(self).__name__} does not set needs_gradient.")

    def observe(self, loss: Tensor, rise: Tensor | None) -> None:
        """Take in what a step measured, the same on every process, where `needs_loss`.

        Args:
            loss: L(w); L(w + epsilon) of a step of one pass. 0-dim.
            rise: L(w + epsilon) - L(w), 0-dim; None for a step that does not know it.
        """
        del loss, rise

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned.

        Raises:
            ValueError: if `state` is another radius's.
        """
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, got {sorted(state)}.")


class Constant(Radius):
    """rho throughout."""

    def __init__(self, rho: float) -> None:
        self.rho = rho

    def at(self, context: StepContext) -> float:
        """Return rho."""
        return self.rho


class Warmup(Constant):
    """0 while the learning rate warms up, then rho. Helps transformers trained from scratch (MSAM, table A.2)."""

    def at(self, context: StepContext) -> float:
        """Return 0 or rho."""
        return self.rho if context.step >= context.warmup_steps else 0.0


class Linear(Radius):
    """From `start` times rho at the first step to `end` times rho when the run is over, in a straight line.

    Args:
        rho: the unit, >= 0.
        start: factor at the beginning, >= 0.
        end: factor at the end, >= 0.
    """

    def __init__(self, rho: float, *, start: float = 1.0, end: float = 0.0) -> None:
        check_number("rho_schedule_kwargs", "start", start, least=0)
        check_number("rho_schedule_kwargs", "end", end, least=0)
        self.rho, self.start, self.end = rho, start, end

    def at(self, context: StepContext) -> float:
        """Return the factor's share of rho; needs the length of the run."""
        return self.rho * (self.start + (self.end - self.start) * self.shape(_progress(context)))

    def shape(self, progress: float) -> float:
        """Return how far from `start` to `end` it is, in [0, 1]."""
        return progress


class Cosine(Linear):
    """As `Linear`, along half a cosine."""

    def shape(self, progress: float) -> float:
        """Return how far from `start` to `end` it is, in [0, 1]."""
        return (1 - math.cos(math.pi * progress)) / 2


class LearningRate(Radius):
    """rho_min + (rho - rho_min) * lr / peak lr: large while the learning rate is (GSAM, Zhuang et al. 2022, section 4).

    lr is the largest learning rate among the groups that train, and the peak is the run's, never below what has been
    seen: so this is never above rho.

    Args:
        rho: radius at the learning rate's peak.
        rho_min: radius where the learning rate is zero, in [0, rho].
    """

    needs_peak_lr = True

    def __init__(self, rho: float, *, rho_min: float = 0.0) -> None:
        check_number("rho_schedule_kwargs", "rho_min", rho_min, least=0, most=rho)
        self.rho, self.rho_min = rho, rho_min
        self._peak: Length = 0.0  # seen so far; more than is known of the run where its scheduler waits for a metric

    def at(self, context: StepContext) -> Length:
        """Return the learning rate's share of rho; all of it where the learning rate is zero throughout.

        Raises:
            ValueError: if the optimizer has no learning rate.
        """
        lr = context.known_lr("rho_schedule='lr'")
        self._peak = largest([self._peak, context.peak_lr, lr])
        if isinstance(self._peak, Tensor):
            share: Length = (lr / self._peak).nan_to_num(nan=1.0)
        else:
            share = lr / self._peak if self._peak else 1.0
        return self.rho_min + (self.rho - self.rho_min) * share

    def state_dict(self) -> dict[str, Any]:
        """Return the largest learning rate so far; nothing before the first step."""
        peak = float(self._peak)
        return {"peak_lr": peak} if peak else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned; nothing from a version that kept nothing."""
        peak = state.get("peak_lr", 0.0) if state.keys() <= {"peak_lr"} else None
        if isinstance(peak, bool) or not isinstance(peak, (int, float)) or not 0 <= peak < math.inf:
            raise ValueError(f"the state of rho_schedule='lr' has no number 'peak_lr' >= 0, but {state}")
        self._peak = float(peak)


def _progress(context: StepContext) -> float:
    if not context.steps:
        raise ValueError("`rho_schedule` needs to know how long the run is: set max_steps, or use 'constant'.")
    return context.progress


def checked_tensor(state: dict[str, Any], name: str, shape: tuple[int, ...]) -> Tensor:
    """Return a float32 tensor of a state from a file.

    Raises:
        ValueError: if it is missing or of another kind.
    """
    value = state.get(name)
    if not isinstance(value, Tensor) or value.shape != shape or value.dtype != torch.float32:
        raise ValueError(f"the state of the radius has no float32 tensor {name!r} of shape {shape}")
    return value
