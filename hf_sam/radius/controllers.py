# SPDX-License-Identifier: Apache-2.0
"""Radii that follow what the steps measure, and all radii by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_sam._checks import check_number, known_options
from hf_sam.radius.schedules import Constant, Cosine, LearningRate, Linear, Radius, Warmup, checked_tensor
from hf_sam.step_context import StepContext
from hf_sam.variants.base import Length
from hf_sam.vectors.vectors import global_norm


class LossBudget(Constant):
    """min(sigma / ||g||, rho): the loss rises by sigma to first order, whatever the length of the gradient.

    As LE-SAM (2026), with a constant sigma. *Experimental*: no measured run has gained by it yet.

    Args:
        rho: the largest radius.
        sigma: the rise in units of the loss, > 0.
    """

    needs_gradient = True
    uses_loss_scale = True
    for_one_pass = False

    def __init__(self, rho: float, *, sigma: float = 0.05) -> None:
        check_number("rho_schedule_kwargs", "sigma", sigma, above=0)
        super().__init__(rho)
        self.sigma = sigma

    def from_gradient(self, params: list[Tensor], grads: list[Tensor], loss_scale: Length) -> Tensor:
        """Return min(sigma / ||g||, rho), g without its loss scale."""
        return (self.sigma * loss_scale / global_norm(grads, params)).clamp(max=self.rho)


class TargetAscent(Radius):
    """A radius that keeps the measured rise of the loss, L(w + epsilon) - L(w), at `target` times the loss.

    rho *= clip(sqrt(target / observed), 1 / (1 + max_change), 1 + max_change) after each step, in [rho_min, rho_max],
    where observed is the ratio of running means of rise and loss, which each step measures anyway. *Experimental*: no
    measured run has gained by it yet.

    Args:
        rho: the radius to begin with.
        target: rise as a share of the loss, > 0.
        max_change: largest relative change in one step, > 0.
        smoothing: weight of the past in the running means, in [0, 1).
        rho_min: least radius; rho / 100 by default.
        rho_max: largest radius; 10 rho by default.
    """

    needs_loss = True
    steers_by_rise = True
    for_one_pass = False

    def __init__(
        self,
        rho: float,
        *,
        target: float = 0.1,
        max_change: float = 0.1,
        smoothing: float = 0.9,
        rho_min: float | None = None,
        rho_max: float | None = None,
    ) -> None:
        self.rho_max = 10 * rho if rho_max is None else rho_max
        self.rho_min = rho / 100 if rho_min is None else rho_min
        check_number("rho_schedule_kwargs", "target", target, above=0)
        check_number("rho_schedule_kwargs", "max_change", max_change, above=0)
        check_number("rho_schedule_kwargs", "smoothing", smoothing, least=0, below=1)
        check_number("rho_schedule_kwargs", "rho_max", self.rho_max, least=rho)
        check_number("rho_schedule_kwargs", "rho_min", self.rho_min, least=0, most=rho)
        self.target, self.max_change, self.smoothing = target, max_change, smoothing
        self._rho = torch.tensor(rho)
        self._means = torch.zeros(2)  # of loss and rise; zero before the first step

    def at(self, context: StepContext) -> Tensor:
        """Return the radius as it has been found."""
        return self._rho

    def observe(self, loss: Tensor, rise: Tensor | None) -> None:
        """Move the radius towards the target; a step whose measurements are not finite changes nothing."""
        if rise is None:  # a plain step
            return
        seen = torch.stack([loss, rise]).detach().float()
        self._rho, self._means = self._rho.to(seen.device), self._means.to(seen.device)
        first = self._means[0] == 0
        means = torch.where(first, seen, self._means * self.smoothing + seen * (1 - self.smoothing))
        least, most = 1 / (1 + self.max_change), 1 + self.max_change
        # No rise at all asks for the largest step up.
        factor = (self.target * means[0] / means[1].clamp(min=0)).sqrt().nan_to_num(nan=most).clamp(least, most)
        good = torch.isfinite(seen).all() & (means[0] > 0)
        self._rho = torch.where(good, (self._rho * factor).clamp(self.rho_min, self.rho_max), self._rho)
        self._means = torch.where(good, means, self._means)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the radius and the running means."""
        return {"rho": self._rho, "means": self._means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the radius and the running means."""
        self._rho = checked_tensor(state, "rho", ())
        self._means = checked_tensor(state, "means", (2,))


SCHEDULES: dict[str, type[Radius]] = {
    "constant": Constant,
    "warmup": Warmup,
    "linear": Linear,
    "cosine": Cosine,
    "lr": LearningRate,
    "loss_budget": LossBudget,
    "target_ascent": TargetAscent,
}
"""Radii by the name used in `rho_schedule`."""


def make_radius(rho: float, schedule: str, kwargs: Mapping[str, Any] | None = None) -> Radius:
    """Return a new instance of the schedule called `schedule`.

    Raises:
        ValueError: if it has no such option, or an option is out of range.
    """
    known_options("rho_schedule", schedule, list(inspect.signature(SCHEDULES[schedule]).parameters)[1:], kwargs)
    make: Any = SCHEDULES[schedule]
    radius: Radius = make(rho, **(kwargs or {}))
    return radius
