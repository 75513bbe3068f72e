# SPDX-License-Identifier: Apache-2.0
"""Does each step do what gate, radius and direction say together, and does a run remember and change it?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_sam import SAMConfig
from hf_sam.radius.auto import Auto
from hf_sam.step_context import StepContext
from hf_sam.trainer.step_planner import PARTS, StepPlan, StepPlanner, mean_over_processes
from tests.compare import bits, same_bits
from tests.looped import looped

STEPS, WARMUP, PEAK = 20, 4, 0.1
RHO = 0.3


def moment_at(t: int, steps: int = STEPS) -> StepContext:
    """The learning rate is zero at the first step and at its peak when it has warmed up."""
    return StepContext(step=t, steps=steps, warmup_steps=WARMUP, lr=PEAK * min(1.0, t / WARMUP), peak_lr=PEAK)


def plans(planner: StepPlanner, steps: range = range(STEPS)) -> list[StepPlan]:
    found = []
    for t in steps:  # the loss falls when a third of the run is over
        found.append(planner.plan(moment_at(t)))
        planner.radius.observe(
            torch.tensor(2.0 if t < 7 else 0.2), torch.tensor(0.1) if found[-1].passes in ("one", "two") else None
        )
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Every gate with every radius
# ----------------------------------------------------------------------------------------------------------------------
# The settings, the steps that are in time, and the steps to the next turn.
GATES: dict[str, tuple[dict[str, Any], range, int]] = {
    "always": ({}, range(20), 1),
    "late": ({"sam_start": 0.5}, range(10, 20), 1),
    "early": ({"sam_stop": 0.3}, range(6), 1),
    "between": ({"sam_start": 0.25, "sam_stop": 0.75}, range(5, 15), 1),
    "after warm-up": ({"sam_start": "warmup"}, range(4, 20), 1),
    "every 3": ({"sam_every": 3}, range(20), 3),
    "late, every 4": ({"sam_start": 0.45, "sam_every": 4}, range(9, 20), 4),
    "tested": ({"sam_gate": "gradient_norm"}, range(20), 1),  # decided after the clean pass, which a plan cannot know
}
# The settings, and at which steps the schedule's radius is zero, given the first step that is in time.
RADII: dict[str, tuple[dict[str, Any], Callable[[int, int], bool]]] = {
    "constant": ({"rho": RHO}, lambda t, first: False),
    "zero": ({"rho": 0}, lambda t, first: False),  # asked for: both passes
    "zero, scheduled": ({"rho": 0.0, "rho_schedule": "linear"}, lambda t, first: False),
    "warmup": ({"rho": RHO, "rho_schedule": "warmup"}, lambda t, first: t < 4),
    "up": (
        {"rho": RHO, "rho_schedule": "linear", "rho_schedule_kwargs": {"start": 0, "end": 1}},
        lambda t, first: t == 0,
    ),
    "cosine": ({"rho": RHO, "rho_schedule": "cosine"}, lambda t, first: False),
    "lr": ({"rho": RHO, "rho_schedule": "lr"}, lambda t, first: t == 0),
    "lr, least": ({"rho": RHO, "rho_schedule": "lr", "rho_schedule_kwargs": {"rho_min": 0.1}}, lambda t, first: False),
    "loss_budget": ({"rho": RHO, "rho_schedule": "loss_budget"}, lambda t, first: False),
    "target_ascent": ({"rho": RHO, "rho_schedule": "target_ascent"}, lambda t, first: False),
    "auto": ({"rho": "auto"}, lambda t, first: t < max(6, first + 1)),  # a third of the run, seen from the first step
}
# The settings, what a perturbing step is, the steps from one to the next, and what does not go with it.
DIRECTIONS: dict[str, tuple[dict[str, Any], str, int, set[str]]] = {
    "sam": ({}, "two", 1, set()),
    "looksam": (
        {"sam_variant": "looksam", "sam_variant_kwargs": {"k": 3}},
        "two",
        3,
        {"every 3", "late, every 4", "tested"},
    ),
    "random": ({"sam_variant": "random"}, "one", 1, {"tested", "loss_budget", "target_ascent"}),
    "nbar": ({"sam_variant": "nbar"}, "plain", 1, {"tested", "loss_budget", "target_ascent", "auto"}),
}
COMBINATIONS = [
    (direction, gate, radius)
    for direction, (*_, refused) in DIRECTIONS.items()
    for gate in GATES
    for radius in RADII
    if not {gate, radius} & refused
]


@looped
@pytest.mark.parametrize(("direction", "gate", "radius"), COMBINATIONS)
def test_a_step_perturbs_where_gate_radius_and_direction_agree(direction: str, gate: str, radius: str) -> None:
    (settings, kind, k, _), (gate_settings, in_time, every) = DIRECTIONS[direction], GATES[gate]
    radius_settings, is_zero = RADII[radius]
    found = plans(StepPlanner(SAMConfig(**settings, **gate_settings, **radius_settings)))
    for t, plan in enumerate(found):
        closed = t not in in_time or is_zero(t, in_time[0]) or t % every
        expected = "plain" if closed else "reuse" if t % k else kind
        assert plan.passes == expected, t
        assert (plan.passes in ("one", "two")) == (expected in ("one", "two"))
        assert plan.context == moment_at(t)
        if closed:
            assert plan.rho == 0.0
            assert not isinstance(plan.rho, Tensor)


def test_a_plan_has_the_schedules_radius() -> None:
    planner = StepPlanner(SAMConfig(rho=RHO, rho_schedule="linear", rho_schedule_kwargs={"start": 1, "end": 0.5}))
    assert [p.rho for p in plans(planner)] == pytest.approx([RHO * (1 - 0.5 * t / STEPS) for t in range(STEPS)])


def test_a_radius_on_the_device_is_not_read_to_plan_a_step() -> None:
    for settings in ({"rho_schedule": "target_ascent"}, {"rho": "auto"}):
        planner = StepPlanner(SAMConfig(**settings))
        for t in range(8):
            plan = planner.plan(moment_at(t))
            planner.radius.observe(torch.ones((), device="meta"), torch.ones((), device="meta"))
        assert plan.passes == "two"
        assert plan.rho.is_meta


@pytest.mark.parametrize("settings", [{"sam_start": 0.5}, {"sam_stop": 0.5}, {"rho_schedule": "cosine"}], ids=str)
def test_a_run_of_unknown_length_is_refused_where_it_matters(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"how long the run is: set max_steps"):
        StepPlanner(SAMConfig(**settings)).plan(StepContext(step=1))


# ----------------------------------------------------------------------------------------------------------------------
# How far
# ----------------------------------------------------------------------------------------------------------------------
def test_the_length_is_the_plans_or_computed_from_the_gradient() -> None:
    planner = StepPlanner(SAMConfig(rho=RHO))
    assert planner.length(planner.plan(moment_at(5))) == RHO
    g = [torch.tensor([30.0, 40.0])]
    planner = StepPlanner(SAMConfig(rho=RHO, rho_schedule="loss_budget", rho_schedule_kwargs={"sigma": 0.1}))
    for scale in (1.0, 8.0):
        planner.variant.loss_scale = scale
        length = planner.length(planner.plan(moment_at(5)))
        assert callable(length)
        assert length(g, g).item() == pytest.approx(scale * 0.1 / 50)


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ({}, False),
        ({"rho_schedule": "target_ascent"}, False),
        ({"sam_variant": "gsam"}, False),
        ({"rho_schedule": "loss_budget"}, True),
        ({"sam_gate": "gradient_norm"}, True),
        ({"sam_variant": "friendly"}, True),
        ({"rho": "auto"}, False),
        ({"rho": "auto", "sam_variant": "momentum"}, False),
    ],
    ids=str,
)
def test_the_loss_scale_is_asked_for_where_it_makes_a_difference(settings: dict[str, Any], needs: bool) -> None:
    assert StepPlanner(SAMConfig(**settings)).needs_loss_scale == needs


# ----------------------------------------------------------------------------------------------------------------------
# Settings that change in the middle of a run
# ----------------------------------------------------------------------------------------------------------------------
BEGINNING: dict[str, Any] = {
    "rho": RHO,
    "sam_variant": "friendly",
    "rho_schedule": "target_ascent",
    "sam_gate": "gradient_norm",
}


@pytest.mark.parametrize(
    ("change", "new_parts"),
    [
        ({}, set()),
        ({"rho": 0.1}, {"radius"}),
        ({"rho_schedule": "cosine"}, {"radius"}),
        ({"rho_schedule_kwargs": {"target": 0.2}}, {"radius"}),
        ({"rho": "auto", "rho_schedule": "constant"}, {"radius"}),
        ({"sam_variant": "gsam"}, {"variant"}),
        ({"sam_variant_kwargs": {"sigma": 0.5}}, {"variant"}),
        ({"sam_gate_kwargs": {"delta": 0.5}}, {"test"}),
        ({"sam_gate": "always"}, {"test"}),
        ({"sam_every": 3}, set()),
        ({"sam_start": 0.5, "sam_stop": 0.75}, set()),
        ({"sam_rounding": "stochastic", "sam_sharpness_weight": 0.5}, set()),
        ({"rho": 0.1, "sam_variant": "sam", "sam_gate_kwargs": {"delta": 0}}, {"radius", "variant", "test"}),
    ],
    ids=lambda x: str(x if isinstance(x, dict) else sorted(x)),
)
def test_what_a_change_does_not_concern_goes_on(change: dict[str, Any], new_parts: set[str]) -> None:
    planner, config = StepPlanner(SAMConfig(**BEGINNING)), SAMConfig(**{**BEGINNING, **change})
    before = {part: getattr(planner, part) for part in ("radius", "variant", "test")}
    assert planner.follow(config) == ("variant" in new_parts)
    assert {part for part in before if getattr(planner, part) is not before[part]} == new_parts
    fresh = StepPlanner(config)
    for part in (*new_parts, "gate", "config"):
        assert type(getattr(planner, part)) is type(getattr(fresh, part))
        assert vars(planner.gate) == vars(fresh.gate)
    assert planner.config is config


def test_a_changed_gate_and_a_radius_of_zero_are_in_force_at_once() -> None:
    planner = StepPlanner(SAMConfig(rho=RHO))
    planner.follow(SAMConfig(rho=RHO, sam_every=4))
    assert [p.passes for p in plans(planner, range(8))] == ["two", "plain", "plain", "plain"] * 2
    planner.follow(SAMConfig(rho=0.0, sam_every=4))
    assert [p.passes for p in plans(planner, range(4))] == ["two", "plain", "plain", "plain"], "asked for: measured"
    planner.follow(SAMConfig(rho=RHO, sam_every=4, rho_schedule="warmup"))
    assert [p.passes for p in plans(planner, range(5))] == ["plain"] * 4 + ["two"]


def test_a_waiting_direction_waits_also_when_it_comes_later() -> None:
    planner = StepPlanner(SAMConfig(rho=RHO))
    planner.follow(SAMConfig(sam_variant="momentum", rho=RHO))
    assert [p.passes for p in plans(planner, range(6))] == ["plain"] * 4 + ["one"] * 2


@pytest.mark.parametrize(("variant", "scale_free"), [("asam", True), ("momentum", False)])
def test_a_radius_that_finds_itself_goes_on_in_the_units_of_a_new_direction(variant: str, scale_free: bool) -> None:
    planner = StepPlanner(SAMConfig(rho="auto"))
    plans(planner)
    known = planner.radius.state_dict()
    planner.follow(SAMConfig(rho="auto", sam_variant=variant))
    assert isinstance(planner.radius, Auto)
    assert planner.radius.strength == planner.variant.auto_strength
    assert (planner.radius.strength, planner.radius.scale_free) == (planner.variant.auto_strength, scale_free)
    assert same_bits(bits([planner.radius.state_dict()["losses"]]), bits([known["losses"]]))
    assert planner.radius.state_dict()["steps"] == known["steps"] == STEPS


# ----------------------------------------------------------------------------------------------------------------------
# State
# ----------------------------------------------------------------------------------------------------------------------
PARAMS = [("a", nn.Parameter(torch.ones(3))), ("b", nn.Parameter(torch.ones(2, 2)))]


def fresh(**changes: Any) -> StepPlanner:
    planner = StepPlanner(SAMConfig(**{**BEGINNING, **changes}))
    planner.variant.prepare(PARAMS)
    return planner


def used(**changes: Any) -> StepPlanner:
    """Return a planner whose direction, radius and gate all have something to remember."""
    planner = fresh(**changes)
    plans(planner)
    for t in range(3):
        planner.variant.ascend([p for _, p in PARAMS], [torch.randn_like(p) for _, p in PARAMS], 0.1)
        if planner.test is not None:
            planner.test.passes(torch.tensor(1.0 + t), moment_at(t))
    return planner


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(torch.as_tensor(left[k]), torch.as_tensor(right[k])) for k in left
    )


def test_the_state_is_by_part_and_goes_round() -> None:
    state = used().state_dict()
    assert {name.split(".")[0] for name in state} == set(PARTS)
    assert {"variant.mean.a", "variant.mean.b", "radius.rho", "radius.means", "gate.mean"} <= set(state)
    planner = fresh()
    assert not same(planner.state_dict(), state)
    planner.load_state_dict(state)
    assert same(planner.state_dict(), state)
    assert not StepPlanner(SAMConfig(rho=RHO)).state_dict()


@pytest.mark.parametrize("parts", [(), ("radius",), ("variant", "gate"), ("gate", "radius"), PARTS])
def test_only_the_named_parts_take_theirs(parts: tuple[str, ...]) -> None:
    state, planner = used().state_dict(), fresh()
    untouched = planner.state_dict()
    planner.load_state_dict(dict(state), parts)
    for part in PARTS:
        mine, wanted = (
            {k: v for k, v in s.items() if k.startswith(part)}
            for s in (planner.state_dict(), state if part in parts else untouched)
        )
        assert same(mine, wanted), part


@pytest.mark.parametrize("name", ["filter.x", "x", "radius", "gate.", "directions.mean.a", ""])
def test_what_nothing_here_keeps_is_refused(name: str) -> None:
    state = {**used(sam_gate="always").state_dict(), name: 1}
    with pytest.raises(ValueError, match=r"the state holds \['.*'\], which nothing here keeps") as caught:
        fresh(sam_gate="always").load_state_dict(state)
    assert repr(name) in str(caught.value)


def test_a_part_that_is_gone_and_one_that_is_new_are_refused_unless_they_start_afresh() -> None:
    tested, untested = used().state_dict(), used(sam_gate="always").state_dict()
    with pytest.raises(ValueError, match=r"the state holds \['gate.mean', 'gate.steps', 'gate.variance'\]"):
        fresh(sam_gate="always").load_state_dict(tested)
    with pytest.raises(ValueError, match="the state of sam_gate has no number"):
        fresh().load_state_dict(untested)
    fresh(sam_gate="always").load_state_dict(tested, ("variant", "radius"))
    fresh().load_state_dict(untested, ("variant", "radius"))


def test_another_radiuss_state_is_refused() -> None:
    state = used().state_dict()
    for changes in ({"rho": "auto", "rho_schedule": "constant"}, {"rho_schedule": "cosine"}):
        with pytest.raises(ValueError, match=r"state"):
            fresh(**changes).load_state_dict(state)


def test_one_process_is_its_own_mean() -> None:
    values = torch.tensor([1.0, 2.0])
    assert mean_over_processes(values) is values
