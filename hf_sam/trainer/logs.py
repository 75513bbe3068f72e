# SPDX-License-Identifier: Apache-2.0
"""What the steps since the last log measured, summed up without asking the device at every step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_sam.config.sam_config import PLAIN
from hf_sam.step.measurement import Measurement
from hf_sam.trainer.radius_warnings import tell_large_radius, tell_nothing_perturbed
from hf_sam.trainer.run_totals import RunTotals
from hf_sam.variants import Length, Regulariser, Variant

SAMPLES = 10
"""Steps from one log to the next at which epsilon and the cosine are measured: a few passes over the weights each."""
TOGETHER = 64
"""Perturbations whose measurements are summed up at once: a few operations for all of them, not for each."""
UNLOGGED = 50
"""Steps from one measurement to the next where nothing is logged, for the warning about weights of 16 bits."""
MEASURED = ("sam/sharpness", "sam/epsilon_norm", "sam/grad_cosine", "sam/rho")
"""What is summed up on the device; the radius only where it was computed there."""
KEYS = {
    "two": ("sam/rho", "sam/perturbed", "sam/sharpness", "sam/epsilon_norm", "sam/grad_cosine", "sam/skipped"),
    "one": ("sam/rho", "sam/perturbed", "sam/epsilon_norm", "sam/skipped"),
    "plain": ("sam/rho", "sam/perturbed"),
}
"""The keys of each training log of a run, by `Variant.passes`; a regulariser adds those of its `report`."""
AT_REST = {**dict.fromkeys(KEYS["two"], 0.0), "sam/grad_cosine": 1.0}
"""What a perturbation of length zero measures."""


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
    - `sam/perturbed`: share of the optimizer steps that perturbed, in [0, 1].
    - `sam/sharpness`: L(w + epsilon) - L(w), the losses scaled as the Trainer scales them.
    - `sam/epsilon_norm`: the norm of what really moved, at some of these steps (see `Sampler`).
    - `sam/grad_cosine`: cosine between the clean and the perturbed gradient, at the same steps.
    - `sam/skipped`: share of the perturbations left out because the gradient was zero or not finite, in [0, 1].

    A run has the same keys in all of its training logs, and a number in each. A quantity counts where it is finite and
    the perturbation was not left out. Where nothing moved since the last log, it is that of a perturbation of length
    zero: 0, and a cosine of 1. Where something moved but no step measured it, its last value is repeated.

    Attributes:
        totals: over the whole run, up to the last log.
        first_loss: of the first step whose clean loss is known (0-dim); None before.
    """

    def __init__(self) -> None:
        self.totals = RunTotals()
        self.first_loss: Tensor | None = None
        self._measured: dict[str, float] = {}
        self._logged: dict[str, float] = {}
        self._clear()

    def _clear(self) -> None:
        self._windows = self._descents = 0
        self._since = RunTotals()
        self._last_radius: Length | None = None
        self._sums: Tensor | None = None  # of MEASURED, of what of them counted, of usable descents and of descents
        self._waiting: list[tuple[Tensor, list[Tensor | None]]] = []  # whether it was usable, and MEASURED

    def add(self, measurement: Measurement, rise: Tensor | None, *, ends_window: bool) -> None:
        """Take in one perturbation.

        Args:
            measurement: what it measured.
            rise: 0-dim tensor, L(w + epsilon) - L(w) over its micro-batches; None where the clean loss is not known.
            ends_window: whether the optimizer steps next.
        """
        # What computes a radius may go on in the same memory.
        rho = measurement.rho.clone() if isinstance(measurement.rho, Tensor) else None
        known = (rise, measurement.epsilon_norm, measurement.grad_cosine, rho)
        self._waiting.append((measurement.usable, [None if value is None else value.detach() for value in known]))
        if len(self._waiting) == TOGETHER:
            self._add_up()
        self._note_radius(measurement.rho)
        self._descents += 1
        self._windows += ends_window

    def _add_up(self) -> Tensor | None:
        """Return the sums, with what waits to be in them; None if there is nothing."""
        if not self._waiting:
            return self._sums
        usable = torch.stack([usable for usable, _ in self._waiting])[:, None]
        unknown = torch.full((), math.nan, dtype=torch.float32, device=usable.device)
        values = [unknown if value is None else value.float() for _, known in self._waiting for value in known]
        numbers = torch.stack(values).view(-1, len(MEASURED))
        counts = usable & torch.isfinite(numbers)
        columns = [torch.where(counts, numbers, 0.0), counts.float(), usable.float(), torch.ones_like(numbers[:, :1])]
        sums = torch.cat(columns, dim=1).sum(0)
        self._sums = sums if self._sums is None else self._sums + sums
        self._waiting = []
        return self._sums

    def end_step(self, window: Any, variant: Variant, ascent_fraction: float) -> None:
        """Take in one optimizer step, perturbed or plain.

        Args:
            window: the step, after its last pass.
            variant: that of the run.
            ascent_fraction: share of the examples that the first of two passes sees.
        """
        plan, since = window.plan, self._since
        regulated = variant.passes == "plain" and (isinstance(plan.rho, Tensor) or plan.rho > 0)
        if regulated:
            self._note_radius(plan.rho)
        since.steps += 1
        since.perturbed += bool(regulated or window.descents)
        since.passes += 1.0 + ascent_fraction * (plan.passes == "two")
        if self.first_loss is None and not (plan.passes == "one" and window.descents):
            self.first_loss = torch.stack(window.losses).sum()

    def count_plain_step(self) -> None:
        """Take in an optimizer step that other code made, which was none of SAM's."""
        self._since.steps += 1
        self._since.passes += 1.0

    def share(self, device: torch.device) -> None:
        """Add up over all processes, each of which has to call this, so that every one drains the same means."""
        self._sums = self._shared(device)

    def drain(self, variant: Variant, ascent_fraction: float = 1.0) -> dict[str, float]:
        """Return the means by log key and start afresh.

        Args:
            variant: that of the run, which says what can be measured.
            ascent_fraction: below 1 the two losses are of different examples, and no rise is measured.
        """
        found, since = self._read(self._add_up())
        moved = since.perturbed and found.get("sam/skipped") != 1.0
        self.totals = self.totals.plus(since)
        self._measured.update(found)
        if since.steps or self._descents:
            known = {**AT_REST, **(self._measured if moved else found)}
        else:
            known = {**AT_REST, **self._logged}
        logs = {key: known[key] for key in KEYS[variant.passes] if key != "sam/sharpness" or ascent_fraction == 1}
        if isinstance(variant, Regulariser):
            logs.update({f"sam/{name}": float(value) for name, value in variant.report().items()})
        self._logged = dict(logs)
        self._clear()
        return logs

    def so_far(self, device: torch.device | None = None) -> RunTotals:
        """Return the totals with the steps since the last log in them, which stay where they are.

        Args:
            device: to add up over all processes, each of which has to call this; None for this process's own.
        """
        return self.totals.plus(self._read(self._add_up() if device is None else self._shared(device))[1])

    def _shared(self, device: torch.device) -> Tensor:
        own, size = self._add_up(), 2 * len(MEASURED) + 2
        sums = torch.zeros(size, device=device) if own is None else own.clone()
        torch.distributed.all_reduce(sums)
        return sums

    def _note_radius(self, rho: Length) -> None:
        self._last_radius = rho
        if not isinstance(rho, Tensor):
            since = self._since
            since.radius_count += 1
            since.radius += (rho - since.radius) / since.radius_count

    def _read(self, sums: Tensor | None) -> tuple[dict[str, float], RunTotals]:
        """Return the means by log key, where something was measured, and what to add to the totals; waits."""
        since, found = replace(self._since), {"sam/skipped": 0.0}
        *numbers, usable, descents = [0.0] * (2 * len(MEASURED) + 2) if sums is None else sums.tolist()
        totals, counts = numbers[: len(MEASURED)], numbers[len(MEASURED) :]
        found.update({key: t / n for key, t, n in zip(MEASURED, totals, counts, strict=True) if n})
        if counts[-1]:
            on_device = RunTotals(radius=found["sam/rho"], radius_count=int(counts[-1]))
            since = since.plus(on_device)
        if since.radius_count:
            found["sam/rho"] = since.radius
        if "sam/sharpness" in found and self._windows:
            # Micro-batch losses are shares of the step's loss: the rise of a step is their sum, not their mean.
            found["sam/sharpness"] *= self._descents / self._windows
            since.rises, since.rise_count = found["sam/sharpness"] * self._windows, self._windows
        if descents:
            found["sam/skipped"] = 1.0 - usable / descents
        if self._last_radius is not None:
            last = float(self._last_radius)
            since.last_radius = last if math.isfinite(last) else 0.0
        if self.first_loss is not None and math.isfinite(first := float(self.first_loss)):
            since.first_loss = first
        found["sam/perturbed"] = since.share_perturbed
        return found, since


def add_measurements(run: Any, logs: dict[str, float]) -> None:
    """Add SAM's keys to a training log, and those of the whole run to its last log; warn where they ask for it.

    Args:
        run: the `RunState`.
        logs: what the Trainer logs; that of an evaluation is left alone.
    """
    last = "train_runtime" in logs
    if run.planner is None or not (last or "loss" in logs):
        return
    variant = run.planner.variant
    measured = run.averages.drain(variant, run.config.ascent_fraction)
    if run.config.sam_variant == PLAIN:  # since a callback has said so
        measured = {key: AT_REST.get(key, 0.0) for key in measured}
    totals = run.averages.totals
    logs.update(totals.summary(knows_rise="sam/sharpness" in measured) if last else measured)
    tell_large_radius(measured, logs.get("train_loss" if last else "loss"), totals, variant, run.told)
    if last:
        tell_nothing_perturbed(totals, run.config, run.told)
