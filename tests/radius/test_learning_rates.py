# SPDX-License-Identifier: Apache-2.0
"""Are the learning rates of a run known beforehand, whatever scheduler makes them, and is nothing changed by it?"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as S
from transformers import get_cosine_schedule_with_warmup

from hf_sam.radius.learning_rates import LearningRates
from hf_sam.radius.schedules import LearningRate
from hf_sam.step_context import StepContext
from tests.looped import looped

STEPS = 20


class Own(S.LRScheduler):
    """As people write them: with a counter of its own."""

    def __init__(self, optimizer: Any) -> None:
        self.cycle = [0]
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        self.cycle[0] += 1
        return [base * min(self.cycle[0], 5) / 5 for base in self.base_lrs]


def two_groups(tensors: bool = False) -> torch.optim.Optimizer:
    rates = [torch.tensor(lr) if tensors else lr for lr in (0.01, 0.05)]
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": lr} for lr in rates]
    return torch.optim.SGD(groups, momentum=0.9)


Maker = Callable[[Any], Any]
SCHEDULERS: dict[str, tuple[Maker, int]] = {
    "constant": (lambda o: S.LambdaLR(o, lambda t: 1.0), 0),
    "cosine with warm-up": (lambda o: get_cosine_schedule_with_warmup(o, 6, STEPS), 6),
    "one cycle": (lambda o: S.OneCycleLR(o, max_lr=[0.1, 0.5], total_steps=STEPS + 1), 6),
    "cyclic": (lambda o: S.CyclicLR(o, base_lr=0.001, max_lr=0.05, step_size_up=4), 4),
    "cyclic, falling": (lambda o: S.CyclicLR(o, 0.001, 0.05, step_size_up=4, mode="triangular2"), 4),
    "linear": (lambda o: S.LinearLR(o, 0.1, total_iters=7), 7),
    "one after the other": (
        lambda o: S.SequentialLR(o, [S.LinearLR(o, 0.01, total_iters=4), S.CosineAnnealingLR(o, 16)], [4]),
        4,
    ),
    "chained": (lambda o: S.ChainedScheduler([S.LinearLR(o, 0.1, total_iters=3), S.ExponentialLR(o, 0.9)]), 3),
    "first small, then whole": (lambda o: S.ConstantLR(o, 0.1, total_iters=5), 5),
    "steps down": (lambda o: S.StepLR(o, 5), 0),
    "warm restarts": (lambda o: S.CosineAnnealingWarmRestarts(o, 6), 0),
    "two lambdas": (lambda o: S.LambdaLR(o, [lambda t: min(t / 3, 1.0), lambda t: 0.1]), 3),
    "one's own": (Own, 4),
}


def ran(optimizer: Any, scheduler: Any) -> list[list[float]]:
    """The learning rates of a real run."""
    found = []
    for _ in range(STEPS):
        found.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


@looped
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("tensors", [False, True])
def test_the_peaks_and_the_end_of_warm_up_are_those_of_the_run(name: str, tensors: bool) -> None:
    make, warmup = SCHEDULERS[name]
    if tensors and name in ("cyclic", "cyclic, falling", "one's own"):
        return  # torch's own need numbers there
    if tensors and name == "one after the other" and torch.__version__ < "2.7":
        return  # whose warm-up then ends one step before it should
    optimizer = two_groups(tensors)
    scheduler = make(optimizer)
    before = copy.deepcopy(optimizer.state_dict()), repr(scheduler.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rates = LearningRates(optimizer, scheduler)
        found, end = rates.peaks(STEPS), rates.warmup_steps(STEPS)
    assert repr(optimizer.state_dict()) == repr(before[0])
    assert repr(scheduler.state_dict()) == before[1]
    expected = [max(of_group) for of_group in zip(*ran(optimizer, scheduler), strict=True)]
    assert found == pytest.approx(expected, rel=1e-6)
    assert end == warmup


def test_what_a_schedule_warns_of_is_left_to_the_run() -> None:
    """As torch's `SequentialLR` did of its own call up to torch 2.6."""

    class Deprecated(S.ExponentialLR):
        def get_lr(self) -> list[float]:
            warnings.warn("the epoch parameter is being deprecated", UserWarning, stacklevel=2)
            return super().get_lr()

    optimizer = two_groups()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        scheduler = Deprecated(optimizer, 0.9)
        before = len(said)
        assert LearningRates(optimizer, scheduler).warmup_steps(STEPS) == 0
    assert before == len(said)


def test_what_a_schedule_computes_with_is_not_copied() -> None:
    class Holder:
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("a model may hang on it")

        def share(self, step: int) -> float:
            return min(step / 4, 1.0)

    optimizer = two_groups()
    assert LearningRates(optimizer, S.LambdaLR(optimizer, Holder().share)).warmup_steps(STEPS) == 4


def test_a_schedule_that_remembers_is_left_as_it_is() -> None:
    class Halving:
        factor = 1.0

        def __call__(self, step: int) -> float:
            self.factor *= 0.5
            return self.factor

    optimizer, halving = two_groups(), Halving()
    scheduler = S.LambdaLR(optimizer, halving)
    before = [vars(fn)["factor"] for fn in scheduler.lr_lambdas]
    LearningRates(optimizer, scheduler).peaks(STEPS)
    assert [vars(fn)["factor"] for fn in scheduler.lr_lambdas] == before


def test_a_long_run_takes_steps_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_sam.radius.learning_rates.LONGEST", 100)
    optimizer, calls = two_groups(), []
    scheduler = S.LambdaLR(optimizer, lambda t: calls.append(t) or min(t / 5000, 1.0))
    calls.clear()
    rates = LearningRates(optimizer, scheduler)
    assert rates.warmup_steps(10_000) == 5000
    assert rates.peaks(10_000) == pytest.approx([0.01, 0.05])
    assert len(calls) <= 200


@pytest.mark.parametrize("which", ["plateau", "none", "ends early"])
def test_a_scheduler_that_cannot_be_run_ahead_says_what_it_says_now(which: str) -> None:
    optimizer = two_groups()
    make = {
        "plateau": S.ReduceLROnPlateau,
        "none": lambda o: None,
        "ends early": lambda o: S.OneCycleLR(o, [0.01, 0.05], total_steps=10),
    }
    rates = LearningRates(optimizer, make[which](optimizer))
    assert max(rates.peaks(STEPS)) == pytest.approx(0.05, rel=0.01)
    assert rates.warmup_steps(STEPS) == (2 if which == "ends early" else None)


def test_a_group_that_is_frozen_or_came_late_counts_as_it_is() -> None:
    optimizer = two_groups()
    rates = LearningRates(optimizer, S.LinearLR(optimizer, 0.1, total_iters=4))
    low, high = (group["params"][0] for group in optimizer.param_groups)
    assert rates.now_and_peak(optimizer, STEPS) == pytest.approx((0.005, 0.05))
    high.requires_grad_(False)
    assert rates.now_and_peak(optimizer, STEPS) == pytest.approx((0.001, 0.01))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.2})
    assert rates.now_and_peak(optimizer, STEPS) == pytest.approx((0.2, 0.2))
    assert low.requires_grad


def test_the_radius_is_never_above_rho_and_remembers_its_peak() -> None:
    radius = LearningRate(0.1, rho_min=0.02)
    found = [radius.at(StepContext(lr=lr, peak_lr=1.0)) for lr in (0.5, 1.0, 4.0, 2.0)]
    assert found == pytest.approx([0.06, 0.1, 0.1, 0.06])
    resumed = LearningRate(0.1, rho_min=0.02)
    resumed.load_state_dict(radius.state_dict())
    assert resumed.at(StepContext(lr=1.0, peak_lr=1.0)) == radius.at(StepContext(lr=1.0, peak_lr=1.0))
    LearningRate(0.1).load_state_dict({})  # of a version that kept nothing
    for bad in ({"peak_lr": -1.0}, {"peak_lr": "1"}, {"other": 1.0}, {"peak_lr": True}):
        with pytest.raises(ValueError, match="peak_lr"):
            LearningRate(0.1).load_state_dict(bad)


def test_an_optimizer_without_a_learning_rate_is_refused_with_the_way_out() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    optimizer.param_groups[0]["lr"] = None
    lr, _ = LearningRates(optimizer, None).now_and_peak(optimizer, STEPS)
    with pytest.raises(ValueError, match=r"rho_schedule='lr'.*none in its parameter groups\. Give it one"):
        LearningRate(0.1).at(StepContext(lr=lr))


class OnDevice(torch.Tensor):
    """A 0-dim tensor that says it is on an accelerator, where turning it into a number would wait."""

    device = torch.device("cuda")

    def __float__(self) -> float:
        raise AssertionError("waits")

    item = __bool__ = __float__


def test_a_learning_rate_on_an_accelerator_is_not_waited_for() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    rates = LearningRates(optimizer, None)
    rates.peaks(STEPS)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.05).as_subclass(OnDevice)
    now, peak = rates.now_and_peak(optimizer, STEPS)
    rho = LearningRate(0.2).at(StepContext(lr=now, peak_lr=peak))
    assert isinstance(rho, torch.Tensor)
    assert rho.as_subclass(torch.Tensor).item() == pytest.approx(0.1)
