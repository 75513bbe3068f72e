# SPDX-License-Identifier: Apache-2.0
"""Is each schedule of the radius its formula?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hf_sam.radius.controllers import SCHEDULES, make_radius
from hf_sam.radius.schedules import Radius
from hf_sam.step_context import StepContext
from tests.looped import looped
from tests.tolerances import RELATIVE

RHO, STEPS, WARMUP, PEAK = 0.3, 37, 6, 0.02


def lr_at(t: int) -> float:
    """Up to the peak in a straight line, then down along half a cosine, as most runs have it."""
    if t < WARMUP:
        return PEAK * t / WARMUP
    return PEAK * math.cos(math.pi / 2 * (t - WARMUP) / (STEPS - WARMUP)) ** 2


def moment_at(t: int) -> StepContext:
    return StepContext(step=t, steps=STEPS, warmup_steps=WARMUP, lr=lr_at(t), peak_lr=PEAK)


# Name in `rho_schedule`, its options, the formula.
Formula = Callable[[int], float]
FORMULAS: list[tuple[str, dict[str, Any], Formula]] = [
    ("constant", {}, lambda t: RHO),
    ("warmup", {}, lambda t: 0.0 if t < WARMUP else RHO),
    ("linear", {}, lambda t: RHO - RHO * t / STEPS),
    ("linear", {"start": 0, "end": 1}, lambda t: RHO * t / STEPS),
    ("linear", {"start": 0.5, "end": 2.5}, lambda t: RHO / 2 + 2 * RHO * t / STEPS),
    ("linear", {"start": 0.7, "end": 0.7}, lambda t: 0.7 * RHO),
    ("cosine", {}, lambda t: RHO * math.cos(math.pi / 2 * t / STEPS) ** 2),
    ("cosine", {"start": 0.2, "end": 3}, lambda t: RHO * (0.2 + 2.8 * math.sin(math.pi / 2 * t / STEPS) ** 2)),
    ("lr", {}, lambda t: RHO * lr_at(t) / PEAK),
    ("lr", {"rho_min": 0.1}, lambda t: 0.1 + 0.2 * lr_at(t) / PEAK),
    ("lr", {"rho_min": RHO}, lambda t: RHO),
]
ids = [f"{name} {options}" for name, options, _ in FORMULAS]
every_formula = pytest.mark.parametrize(("name", "options", "formula"), FORMULAS, ids=ids)


@looped
@every_formula
def test_a_schedule_is_its_formula_at_every_step(name: str, options: dict[str, Any], formula: Formula) -> None:
    radius = make_radius(RHO, name, options)
    for t in range(STEPS + 1):
        found = radius.at(moment_at(t))
        assert isinstance(found, float)
        assert found == pytest.approx(formula(t), rel=RELATIVE[torch.float64], abs=1e-15), t


@looped
@every_formula
def test_a_schedule_is_in_units_of_rho(name: str, options: dict[str, Any], formula: Formula) -> None:
    once = make_radius(RHO, name, options)
    twice = make_radius(2 * RHO, name, {k: v * (2 if k == "rho_min" else 1) for k, v in options.items()})
    for t in range(STEPS + 1):
        assert twice.at(moment_at(t)) == pytest.approx(2 * once.at(moment_at(t)), rel=1e-15)


def test_every_schedule_of_the_library_has_a_formula_here_or_follows_measurements() -> None:
    followers = {"loss_budget", "target_ascent"}  # tests/test_controllers.py
    assert {name for name, _, _ in FORMULAS} | followers == set(SCHEDULES)


# ----------------------------------------------------------------------------------------------------------------------
# The ends
# ----------------------------------------------------------------------------------------------------------------------
@looped
@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize(("start", "end"), [(1, 0), (0, 1), (0.1, 0), (0.3, 0.1), (7e-3, 1e300)])
def test_the_ends_are_exact(name: str, start: float, end: float) -> None:
    radius = make_radius(RHO, name, {"start": start, "end": end})
    assert radius.at(moment_at(0)) == RHO * start
    assert radius.at(moment_at(STEPS)) == RHO * (start + (end - start))


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_steps_beyond_the_run_stay_at_the_end(name: str) -> None:
    """A data set whose length was told wrong."""
    radius = make_radius(RHO, name, {"end": 0.25})
    assert radius.at(moment_at(STEPS + 5)) == radius.at(moment_at(STEPS)) == 0.25 * RHO


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_schedule_that_needs_the_length_of_the_run_asks_for_it(name: str) -> None:
    with pytest.raises(ValueError, match=r"`rho_schedule` needs to know how long the run is: set max_steps, or use"):
        make_radius(RHO, name).at(StepContext(step=3))


@pytest.mark.parametrize("name", ["constant", "warmup", "lr", "loss_budget", "target_ascent"])
def test_the_others_do_not(name: str) -> None:
    assert float(make_radius(RHO, name).at(StepContext(step=3, lr=0.1, peak_lr=0.1))) == pytest.approx(RHO)


def test_the_warm_up_ends_when_the_learning_rates_does() -> None:
    radius = make_radius(RHO, "warmup")
    assert [radius.at(StepContext(step=t, warmup_steps=2)) for t in range(4)] == [0.0, 0.0, RHO, RHO]
    assert radius.at(StepContext(step=0, warmup_steps=0)) == RHO


def test_without_a_peak_the_learning_rate_says_nothing() -> None:
    assert make_radius(RHO, "lr").at(StepContext(lr=0.0, peak_lr=0.0)) == RHO


def test_a_scheduler_of_torch_is_followed() -> None:
    """What `Moment` is filled with in a run: a group's "lr" and "initial_lr"."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    factors = [0.25, 1.0, 0.5, 0.0]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors.__getitem__)
    radius, found = make_radius(RHO, "lr", {"rho_min": 0.1}), []
    for _ in range(3):
        group = optimizer.param_groups[0]
        found.append(radius.at(StepContext(lr=group["lr"], peak_lr=group["initial_lr"])))
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx([0.1 + 0.2 * f for f in factors[:3]], rel=1e-15)


@pytest.mark.parametrize(("step", "steps", "share"), [(0, 10, 0.0), (5, 10, 0.5), (10, 10, 1), (12, 10, 1), (7, 0, 0)])
def test_progress_is_a_share_of_the_run(step: int, steps: int, share: float) -> None:
    assert StepContext(step=step, steps=steps).progress == share


# ----------------------------------------------------------------------------------------------------------------------
# What they have in common
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["constant", "warmup", "linear", "cosine", "lr", "loss_budget"])
def test_a_schedule_keeps_nothing_and_refuses_another_ones_state(name: str) -> None:
    radius = make_radius(RHO, name)
    radius.observe(torch.tensor(2.0), torch.tensor(0.1))
    assert radius.state_dict() == {}
    radius.load_state_dict({})
    if name == "lr":  # a peak that was seen, once there is one
        return
    with pytest.raises(ValueError, match=rf"{type(radius).__name__} keeps no state, got \['means', 'rho'\]"):
        radius.load_state_dict({"rho": 1, "means": 2})


@pytest.mark.parametrize("name", ["constant", "warmup", "linear", "cosine", "lr"])
def test_a_schedule_asks_for_nothing_and_goes_with_one_pass(name: str) -> None:
    radius = make_radius(RHO, name)
    assert (radius.needs_gradient, radius.needs_loss, radius.for_one_pass) == (False, False, True)
    with pytest.raises(NotImplementedError, match="does not set needs_gradient"):
        radius.from_gradient([torch.zeros(1)], [torch.zeros(1)], 1.0)


def test_a_made_up_schedule_is_one_method() -> None:
    class Halving(Radius):
        def at(self, context: StepContext) -> float:
            return 0.5**context.step

    radius = Halving()
    assert [radius.at(StepContext(step=t)) for t in range(3)] == [1.0, 0.5, 0.25]
    assert radius.state_dict() == {}


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("linear", {"start": -1}, ValueError, "`rho_schedule_kwargs(start=...)` must be a finite number >= 0, got -1."),
        ("cosine", {"end": math.inf}, ValueError, "`rho_schedule_kwargs(end=...)` must be a finite number >= 0"),
        ("cosine", {"end": "0"}, TypeError, "`rho_schedule_kwargs(end=...)` must be a number >= 0, got '0'."),
        ("lr", {"rho_min": 0.4}, ValueError, "must be a finite number >= 0 and <= 0.3, got 0.4."),
        ("lr", {"rho_min": None}, TypeError, "`rho_schedule_kwargs(rho_min=...)` must be a number"),
        ("constant", {"rho": 1}, ValueError, "`rho_schedule_kwargs` for 'constant' has no option 'rho'; its options: "),
        ("warmup", {"steps": 1}, ValueError, "`rho_schedule_kwargs` for 'warmup' has no option 'steps'; its options: "),
    ],
)
def test_a_bad_option_is_refused(name: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make_radius(RHO, name, options)
    assert message in str(caught.value)
