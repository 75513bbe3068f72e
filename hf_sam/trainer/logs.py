# SPDX-License-Identifier: Apache-2.0
"""What did the steps since the last log measure, without asking the device at every step?"""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from hf_sam.step.measurement import Measurement
from hf_sam.variants import Length

SAMPLES = 10
"""Steps from one log to the next at which epsilon and the cosine are measured: a few passes over the weights each."""
UNLOGGED = 50
"""Steps from one measurement to the next where nothing is logged, for the warning about weights of 16 bits."""
MEASURED = ("sam/sharpness", "sam/epsilon_norm", "sam/grad_cosine")


class Sampler:
    """Which steps' perturbations are measured? About ten of those that one log is about, all where that is fewer.

    The first step that perturbs in each tenth of the way to the next log: a gate that perturbs rarely is seen as well,
    and after the first tenth a resumed run measures the steps that the whole one does.
    """

    def __init__(self) -> None:
        self._part, self._step = -1, -1

    def takes(self, step: int, strategy: str, logging_steps: float) -> bool:
        """Return whether this one is.

        Args:
            step: number of the optimizer step, from 0.
            strategy: of the logs: "steps", "epoch" or "no".
            logging_steps: optimizer steps from one log to the next, where `strategy` is "steps".
        """
        every = {"epoch": 1, "no": UNLOGGED}.get(strategy) or max(1, int(logging_steps) // SAMPLES)
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

    def add(self, report: Measurement, rise: Tensor, rho: Length, *, ends_window: bool) -> None:
        """Take in one descent.

        Args:
            report: what the descent measured.
            rise: 0-dim tensor, L(w + epsilon) - L(w) over the micro-batches of this descent.
            rho: the radius asked for; a 0-dim tensor is read when the logs are written.
            ends_window: whether the optimizer steps next.
        """
        values = torch.stack([v.detach().float() for v in (rise, report.epsilon_norm, report.grad_cosine)])
        counts = report.usable & torch.isfinite(values)
        usable = report.usable.float()
        sums = torch.cat([torch.where(counts, values, 0.0), counts.float(), torch.stack([usable, usable.new_ones(())])])
        self._sums = sums if self._sums is None else self._sums + sums
        self._rhos.append(rho)
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
