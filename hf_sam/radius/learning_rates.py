# SPDX-License-Identifier: Apache-2.0
"""The learning rates that a run will have: their peaks, and when they have warmed up."""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler, OneCycleLR

from hf_sam.step_context import at_hand
from hf_sam.variants.base import Length

LONGEST = 100_000
"""Most steps that a scheduler is run ahead: about a second, once a run."""
SLACK = 1e-6
"""What a rounded learning rate may be above or below one that stays the same, as a share of it."""
BY_NUMBER = (LambdaLR, CyclicLR, OneCycleLR)
"""Schedulers that compute a step's learning rates from its number, so that steps can be left out."""
BROKEN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What schedulers raise that need a metric or the optimizer's state for a step, or end before the run."""


def largest(values: list[Length]) -> Length:
    """Return the largest of some numbers >= 0 and 0-dim tensors, on the tensors' device if there are any."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    number = max((value for value in values if not isinstance(value, Tensor)), default=0.0)
    return torch.stack(tensors).max().clamp(min=number) if tensors else number


class LearningRates:
    """The learning rates of an optimizer's groups over a run, found by running a copy of the scheduler ahead.

    Nothing of the user's is changed, and nothing has to be saved: a resumed run finds the same again. Where a scheduler
    cannot be run ahead, because it waits for a metric or is no torch scheduler, the rates at the beginning are all that
    is known.

    Args:
        optimizer: before the first step, and before the state of a checkpoint is in it.
        scheduler: its scheduler, likewise; None where there is none.
    """

    def __init__(self, optimizer: Any, scheduler: Any) -> None:
        self._optimizer = _Groups(optimizer)
        runs_ahead = isinstance(scheduler, LRScheduler)
        self._scheduler = _twin(scheduler, self._optimizer) if runs_ahead else None
        self._peaks: list[float] | None = None  # of each group
        self._first_peak: int | None = None  # the step

    def now_and_peak(self, optimizer: Any, steps: int) -> tuple[Length | None, Length | None]:
        """Return the largest learning rate of the coming step among the groups that train, and the run's largest.

        A rate on an accelerator stays there: nothing waits for it.

        Args:
            optimizer: as it is now; groups may have come.
            steps: optimizer steps of the run; 0 to leave the second out.

        Returns:
            None and None where no group has a learning rate.
        """
        peaks = self.peaks(steps) if steps else []
        groups = list(enumerate(getattr(optimizer, "param_groups", None) or []))
        known = [(i, group) for i, group in groups if group.get("lr") is not None]
        trained = [(i, group) for i, group in known if any(p.requires_grad for p in group["params"])] or known
        if not trained:
            return None, None
        now = largest([at_hand(group["lr"]) for _, group in trained])
        return now, largest([now, *(peaks[i] for i, _ in trained if i < len(peaks))])

    def peaks(self, steps: int) -> list[float]:
        """Return the largest learning rate of each group over a run of so many steps, as far as it is known."""
        if self._peaks is None:
            self._run_ahead(steps)
        return self._peaks or []

    def warmup_steps(self, steps: int) -> int | None:
        """Return at which step the learning rate is at its first peak: 0 where it falls or stays from the beginning.

        None where the scheduler cannot be run ahead.
        """
        if self._peaks is None:
            self._run_ahead(steps)
        return self._first_peak

    def _run_ahead(self, steps: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the scheduler warns of, it will say in the run
            self._find_peaks(steps)
        self._scheduler = None  # it may hold much

    def _find_peaks(self, steps: int) -> None:
        self._peaks = self._optimizer.rates()
        top, at, rises = max(self._peaks, default=0.0), 0, True
        for step, rates in self._coming(steps):
            self._peaks = list(map(max, self._peaks, rates))
            highest = max(rates, default=0.0)
            if rises and highest > top * (1 + SLACK):
                top, at = highest, step
            rises = rises and highest >= top * (1 - SLACK)
            self._first_peak = at

    def _coming(self, steps: int) -> Iterator[tuple[int, list[float]]]:
        """Yield the steps of the run after the first one, or some of a long one, with the rates of the groups."""
        twin = self._scheduler
        if twin is None or steps < 1:
            return
        yield 0, self._optimizer.rates()
        start = getattr(twin, "last_epoch", 0)
        by_number = type(twin) in BY_NUMBER
        stride = max(1, -(-steps // LONGEST)) if by_number else 1
        for step in range(stride, min(steps, stride * LONGEST), stride):
            try:
                if stride > 1:
                    twin.last_epoch = start + step - 1
                twin.step()
            except BROKEN:
                if step == stride:
                    self._first_peak = None
                return
            yield step, self._optimizer.rates()


class _Groups:
    """What a scheduler sees of an optimizer: its groups without parameters, and numbers where it has tensors."""

    def __init__(self, optimizer: Any) -> None:
        groups = getattr(optimizer, "param_groups", None) or []
        kept = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        self.param_groups = [{**_own(group, self), "params": []} for group in kept]
        self.defaults = dict(getattr(optimizer, "defaults", {}))
        self.state: dict[Any, Any] = {}
        self._opt_called = True

    def rates(self) -> list[float]:
        """Return the learning rate of each group."""
        return [float(group.get("lr") or 0.0) for group in self.param_groups]

    def step(self) -> None:
        """Do nothing: schedulers ask only whether they were made before it was called."""

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]


def _twin(scheduler: LRScheduler, groups: _Groups) -> LRScheduler:
    """Return a copy that schedules `groups`. What it computes with is shared, as it may hold a model or data."""
    twin = copy.copy(scheduler)
    for name, value in list(vars(twin).items()):
        if name == "optimizer":
            vars(twin)[name] = groups
        elif isinstance(value, types.MethodType) and value.__self__ is scheduler:
            vars(twin)[name] = types.MethodType(value.__func__, twin)
        else:
            vars(twin)[name] = _own(value, groups)
    return twin


def _own(value: Any, groups: _Groups) -> Any:
    """Return what a copy of a scheduler may change: its own lists, counters and inner schedulers."""
    if isinstance(value, LRScheduler):
        return _twin(value, groups)
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value
    if type(value) in (list, tuple):
        return type(value)(_own(item, groups) for item in value)
    if type(value) is dict:
        return {name: _own(item, groups) for name, item in value.items()}
    plain = isinstance(value, (types.FunctionType, types.MethodType, type))
    return copy.copy(value) if callable(value) and hasattr(value, "__dict__") and not plain else value
