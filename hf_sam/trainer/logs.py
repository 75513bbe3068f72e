# SPDX-License-Identifier: Apache-2.0
"""What the steps since the last log measured, summed up without asking the device at every step."""

from __future__ import annotations

import logging
import math
import statistics
from typing import Any

import torch
from torch import Tensor

from hf_sam.step.measurement import Measurement
from hf_sam.variants import Length

logger = logging.getLogger(__name__)

SAMPLES = 10
"""Steps from one log to the next at which epsilon and the cosine are measured: a few passes over the weights each."""
UNLOGGED = 50
"""Steps from one measurement to the next where nothing is logged, for the warning about weights of 16 bits."""
MEASURED = ("sam/sharpness", "sam/epsilon_norm", "sam/grad_cosine")
ROUNDED_AWAY = (
    "The weights are stored in 16 bits, which rounds much of a small perturbation away: a norm of %.3g was asked for, "
    "%.3g was realised (ratio %.2f). Load the model with dtype=torch.float32 and train with bf16=True or fp16=True, "
    "which keeps the weights in 32 bits; or set sam_rounding='stochastic', which is right on average, with noise."
)
MOSTLY_NOISE = (
    "The weights are stored in 16 bits, and stochastic rounding drowns the perturbation in noise: a norm of %.3g was "
    "asked for, %.3g was realised (cosine about %.2f). Take a larger rho, or load the model with dtype=torch.float32 "
    "and train with bf16=True or fp16=True, which keeps the weights in 32 bits."
)
LEAST_COSINE = 0.1


class Sampler:
    """Says which steps measure: about ten of those that one log is about, all where that is fewer.

    The first step that perturbs in each tenth of the way to the next log: a gate that perturbs rarely is seen as well,
    and after the first tenth a resumed run measures the steps that the whole one does.
    """

    def __init__(self) -> None:
        self._part, self._step = -1, -1

    def measures(self, state: Any, args: Any) -> bool:
        """Return whether the coming step of a Trainer with this state and these arguments is one."""
        epochs, steps = state.num_train_epochs, state.max_steps
        by_epoch = args.logging_strategy == "epoch" and 0 < epochs <= steps  # else the length of one is not known
        return self.takes(state.global_step, args.logging_strategy, steps / epochs if by_epoch else state.logging_steps)

    def takes(self, step: int, strategy: str, logging_steps: float) -> bool:
        """Return whether this one is.

        Args:
            step: number of the optimizer step, from 0.
            strategy: of the logs: "steps", "epoch" or "no".
            logging_steps: optimizer steps from one log to the next, where there are logs.
        """
        every = UNLOGGED if strategy == "no" else max(1, int(logging_steps) // SAMPLES)
        if step // every != self._part:
            self._part, self._step = step // every, step
        return step == self._step


class Averages:
    """Running sums on the device; the host waits once, when they are drained into the logs.

    Logged, as means over the optimizer steps since the last log:

    - `sam/rho`: the radius asked for.
    - `sam/sharpness`: L(w + epsilon) - L(w), the losses scaled as the Trainer scales them.
    - `sam/epsilon_norm`: the norm of what really moved, at some of these steps (see `Sampler`).
    - `sam/grad_cosine`: cosine between the clean and the perturbed gradient, at the same steps.
    - `sam/perturbed`: share of the optimizer steps that perturbed, in [0, 1]; once a step of the run did not.
    - `sam/skipped`: share of the perturbations left out because the gradient was zero or not finite, in [0, 1].

    A quantity counts where it is finite and the perturbation was not left out; a key without such a step is not logged.
    """

    def __init__(self) -> None:
        self._gated = False
        self._clear()

    def _clear(self) -> None:
        self._windows = 0
        self._steps = self._perturbed = 0
        self._rhos: list[Length] = []
        self._sums: Tensor | None = None  # of MEASURED, of what of them counted, of usable descents and of descents

    def add(self, measurement: Measurement, rise: Tensor | None, *, ends_window: bool) -> None:
        """Take in one perturbation.

        Args:
            measurement: what it measured.
            rise: 0-dim tensor, L(w + epsilon) - L(w) over its micro-batches; None where the clean loss is not known.
            ends_window: whether the optimizer steps next.
        """
        usable = measurement.usable.float()
        unknown = usable * math.nan
        known = (rise, measurement.epsilon_norm, measurement.grad_cosine)
        values = torch.stack([unknown if value is None else value.detach().float() for value in known])
        counts = measurement.usable & torch.isfinite(values)
        sums = torch.cat([torch.where(counts, values, 0.0), counts.float(), torch.stack([usable, usable.new_ones(())])])
        self._sums = sums if self._sums is None else self._sums + sums
        self._rhos.append(measurement.rho)
        self._windows += ends_window

    def count_step(self, *, perturbed: bool) -> None:
        """Take in one optimizer step, perturbed or plain."""
        self._steps += 1
        self._perturbed += perturbed
        self._gated = self._gated or not perturbed

    def share(self, device: torch.device) -> None:
        """Add up over all processes, each of which has to call this, so that every one drains the same means."""
        if self._sums is None:
            self._sums = torch.zeros(2 * len(MEASURED) + 2, device=device)
        torch.distributed.all_reduce(self._sums)

    def drain(self) -> dict[str, float]:
        """Return the means by log key and start afresh; empty when no step was taken."""
        if self._sums is None or not self._rhos:
            logs = self._share_perturbed()
            self._clear()
            return logs
        *totals, usable, descents = self._sums.tolist()
        logs = {"sam/rho": statistics.mean(map(float, self._rhos)), **self._share_perturbed()}
        for key, total, count in zip(MEASURED, totals[:3], totals[3:], strict=True):
            if count:
                logs[key] = total / count
        if "sam/sharpness" in logs and self._windows:
            # Micro-batch losses are shares of the step's loss: the rise of a step is their sum, not their mean.
            logs["sam/sharpness"] *= len(self._rhos) / self._windows
        logs["sam/skipped"] = 1.0 - usable / descents
        self._clear()
        return logs

    def _share_perturbed(self) -> dict[str, float]:
        return {"sam/perturbed": self._perturbed / self._steps} if self._gated and self._steps else {}


def tell_realised_norm(measurement: Measurement, rounding: str, told: set[str]) -> None:
    """Say once how much of epsilon survives in 16-bit weights; the only place that waits for the device.

    Args:
        measurement: of a perturbation.
        rounding: the setting `sam_rounding`.
        told: which warnings have been given; "rounding" is added.
    """
    if measurement.asked_norm is None or measurement.epsilon_norm is None or "rounding" in told:
        return
    if not measurement.usable:
        return
    asked, realised = measurement.asked_norm.item(), measurement.epsilon_norm.item()
    if not asked > 0:
        return
    told.add("rounding")
    if rounding == "nearest":
        logger.warning(ROUNDED_AWAY, asked, realised, realised / asked)
    elif asked < LEAST_COSINE * realised:  # on average the asked-for epsilon is in it whole; the rest is noise
        logger.warning(MOSTLY_NOISE, asked, realised, asked / realised)
