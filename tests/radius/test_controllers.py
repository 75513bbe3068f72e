# SPDX-License-Identifier: Apache-2.0
"""Do the radii that follow measurements follow them, within bounds, and through a resume?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_sam.radius.controllers import LossBudget, TargetAscent, make_radius
from hf_sam.step_context import StepContext
from hf_sam.variants import make_variant
from hf_sam.vectors.flat import global_dot
from hf_sam.vectors.vectors import along, global_norm
from tests.compare import bits, same_bits
from tests.looped import looped
from tests.tolerances import RELATIVE

RHO = 0.2
NOW = StepContext()
STATE = 20 * RELATIVE[torch.float32]  # the state is kept in float32


# ----------------------------------------------------------------------------------------------------------------------
# Loss budget
# ----------------------------------------------------------------------------------------------------------------------
def gradient(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    g = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(5, 4), (7,), ()]]
    return [(scale * x).to(dtype) for x in g]


def budget(g: list[Tensor], rho: float = 100.0, sigma: float = 0.05, loss_scale: float | Tensor = 1.0) -> Tensor:
    return LossBudget(rho, sigma=sigma).from_gradient([nn.Parameter(x) for x in g], g, loss_scale)


@looped
@pytest.mark.parametrize("sigma", [1e-4, 0.05, 3.0])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_the_budget_over_the_length_of_the_gradient_is_the_radius(sigma: float, scale: float) -> None:
    g = gradient(scale=scale)
    length = np.sqrt(sum((x.numpy() ** 2).sum() for x in g))
    for rho in (1e-3, 1.0, 1e9):
        expected = min(sigma / length, rho)
        assert budget(g, rho, sigma).item() == pytest.approx(expected, rel=RELATIVE[torch.float64])


@pytest.mark.parametrize("variant", ["sam", "asam"])
def test_the_first_order_rise_is_the_budget(variant: str) -> None:
    """<g, epsilon> = sigma for SAM; ASAM's epsilon is not along g."""
    g, w = gradient(), [nn.Parameter(torch.ones_like(x)) for x in gradient()]
    epsilon = make_variant(variant).ascend(w, gradient(), budget(g)).epsilon
    rise = global_dot(g, epsilon).item()
    assert (rise == pytest.approx(0.05, rel=1e-12)) == (variant == "sam")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_loss_scale_makes_no_difference(dtype: torch.dtype, as_tensor: bool) -> None:
    plain, scaled = gradient(dtype), [x * 1024 for x in gradient(dtype)]
    scale = torch.tensor(1024.0) if as_tensor else 1024.0
    assert budget(scaled, loss_scale=scale).item() == pytest.approx(budget(plain).item(), rel=1e-6)


@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
def test_a_gradient_that_leads_nowhere_moves_nothing(bad: float) -> None:
    g = [x * bad for x in gradient()]
    ascent = along(g, budget(g), global_norm(g))
    assert not ascent.usable
    assert ascent.scale == 0


def test_the_plan_sees_the_largest_radius_and_zero_stays_zero() -> None:
    assert LossBudget(0.7).at(StepContext(step=5)) == 0.7
    assert budget(gradient(), rho=0.0) == 0


# ----------------------------------------------------------------------------------------------------------------------
# Target ascent: the formula
# ----------------------------------------------------------------------------------------------------------------------
def reference(seen: list[tuple[float, float]], rho: float, target: float, change: float, past: float) -> list[float]:
    """rho *= clip(sqrt(target / observed), ...) with observed the ratio of the means, in [rho / 100, 10 rho]."""
    least, most, found, means = rho / 100, 10 * rho, [], None
    for now in seen:
        means = np.array(now) if means is None else past * means + (1 - past) * np.array(now)
        loss, rise = means
        factor = np.sqrt(target * loss / rise) if rise > 0 else np.inf
        rho = np.clip(rho * np.clip(factor, 1 / (1 + change), 1 + change), least, most)
        found.append(rho)
    return found


def measurements(steps: int = 60) -> list[tuple[float, float]]:
    rng = np.random.default_rng(0)
    losses = 2 * np.exp(-np.arange(steps) / 30) * rng.uniform(0.8, 1.2, steps)
    return list(zip(losses, losses * rng.normal(0.1, 0.15, steps), strict=True))  # a third of the rises are negative


def feed(radius: TargetAscent, seen: list[tuple[float, float]]) -> list[float]:
    found = []
    for loss, rise in seen:
        radius.observe(torch.tensor(loss), torch.tensor(rise))
        found.append(radius.at(NOW).item())
    return found


@looped
@pytest.mark.parametrize("past", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("target", "change"), [(0.1, 0.1), (0.02, 0.5), (1.0, 3.0)])
def test_the_radius_is_the_formulas(target: float, change: float, past: float) -> None:
    radius = TargetAscent(RHO, target=target, max_change=change, smoothing=past)
    assert radius.at(NOW).item() == pytest.approx(RHO)
    expected = reference(measurements(), RHO, target, change, past)
    np.testing.assert_allclose(feed(radius, measurements()), expected, rtol=STATE)


def test_the_defaults_are_those_documented() -> None:
    found, expected = feed(TargetAscent(RHO), measurements()), reference(measurements(), RHO, 0.1, 0.1, 0.9)
    np.testing.assert_allclose(found, expected, rtol=STATE)


def test_the_rise_of_a_parabola_is_held_at_the_target() -> None:
    """Rise = 3 rho^2 at a loss of 2: a tenth of it needs rho = sqrt(0.2 / 3), from either side."""
    for start in (0.03, 2.0):
        radius = TargetAscent(start, target=0.1, smoothing=0.0)
        for _ in range(60):
            rho = radius.at(NOW).item()
            radius.observe(torch.tensor(2.0), torch.tensor(3 * rho**2))
        assert radius.at(NOW).item() == pytest.approx(math.sqrt(0.2 / 3), rel=1e-5)


# ----------------------------------------------------------------------------------------------------------------------
# Target ascent: bounds, and what it makes of bad measurements
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("rise", "bound"), [(1e-6, 10 * RHO), (-1.0, 10 * RHO), (0.0, 10 * RHO), (1e6, RHO / 100)])
def test_the_radius_stays_within_its_bounds(rise: float, bound: float) -> None:
    found = feed(TargetAscent(RHO), [(1.0, rise)] * 80)
    assert found[-1] == pytest.approx(bound, rel=1e-6)
    assert all(RHO / 100 * (1 - 1e-6) <= rho <= 10 * RHO * (1 + 1e-6) for rho in found)


def test_the_bounds_can_be_set_and_zero_stays_zero() -> None:
    for rise, bound in ((1e-6, 0.25), (1e6, 0.15)):
        found = feed(TargetAscent(RHO, rho_min=0.15, rho_max=0.25), [(1.0, rise)] * 10)
        assert found[-1] == pytest.approx(bound, rel=1e-6)
    assert feed(TargetAscent(0.0), measurements()[:5]) == [0.0] * 5


@pytest.mark.parametrize("rise", [-1.0, 0.0, 1e-30, -1e-30])
def test_no_rise_asks_for_the_largest_step_up(rise: float) -> None:
    found = feed(TargetAscent(RHO, max_change=0.3), [(1.0, rise)])
    assert found[0] == pytest.approx(1.3 * RHO, rel=1e-6)


@looped
@pytest.mark.parametrize(
    "bad", [(math.nan, 0.1), (1.0, math.nan), (math.inf, 0.1), (1.0, math.inf), (1.0, -math.inf), (math.nan, math.nan)]
)
@pytest.mark.parametrize("at", [0, 1, 7])
def test_a_measurement_that_is_not_finite_changes_nothing(bad: tuple[float, float], at: int) -> None:
    good = measurements()[:15]
    found = feed(TargetAscent(RHO), [*good[:at], bad, *good[at:]])
    expected = feed(TargetAscent(RHO), good)
    assert found[:at] + found[at + 1 :] == expected
    assert found[at] == (expected[at - 1] if at else pytest.approx(RHO))


@pytest.mark.parametrize("loss", [0.0, -1.0])
def test_a_loss_that_is_not_positive_has_no_share_to_aim_for(loss: float) -> None:
    radius = TargetAscent(RHO, smoothing=0.0)
    assert feed(radius, [(loss, 0.1)] * 3) == [pytest.approx(RHO)] * 3
    assert feed(radius, measurements()[:5]) == feed(TargetAscent(RHO, smoothing=0.0), measurements()[:5])


def test_a_plain_step_changes_nothing() -> None:
    radius = TargetAscent(RHO)
    feed(radius, measurements()[:3])
    before = bits(radius.state_dict().values())
    radius.observe(torch.tensor(1.0), None)
    assert same_bits(bits(radius.state_dict().values()), before)


def test_measurements_of_16_bits_and_with_a_graph_are_taken() -> None:
    radius, loss = TargetAscent(RHO), torch.tensor(1.0, requires_grad=True)
    radius.observe(loss * 2, torch.tensor(0.1, dtype=torch.bfloat16))
    assert not radius.at(NOW).requires_grad
    assert radius.at(NOW).dtype == torch.float32


def test_nothing_is_read_from_the_device() -> None:
    """A tensor on meta has no values to be read; whoever tries fails."""
    radius = TargetAscent(RHO)
    for _ in range(2):
        radius.observe(torch.ones((), device="meta"), torch.ones((), device="meta"))
    assert radius.at(NOW).is_meta
    g = [torch.ones(3, device="meta")]
    assert LossBudget(RHO).from_gradient(g, g, torch.ones((), device="meta")).is_meta


# ----------------------------------------------------------------------------------------------------------------------
# State
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("at", [0, 1, 20])
def test_a_resumed_radius_goes_on_in_the_same_bits(at: int) -> None:
    whole = feed(TargetAscent(RHO), measurements())
    first, second = TargetAscent(RHO), TargetAscent(RHO)
    found = feed(first, measurements()[:at])
    saved = first.state_dict()
    feed(first, measurements()[at:])  # what was saved is not changed by going on
    second.load_state_dict(saved)
    assert found + feed(second, measurements()[at:]) == whole


GOOD: dict[str, Any] = {"rho": torch.tensor(0.1), "means": torch.tensor([1.0, 0.1])}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"rho": None}, "rho"),
        ({"rho": 0.1}, "rho"),
        ({"rho": torch.ones(1)}, "rho"),
        ({"rho": torch.tensor(0.1, dtype=torch.float64)}, "rho"),
        ({"means": torch.ones(3)}, "means"),
        ({"means": torch.ones(2, dtype=torch.int32)}, "means"),
        ({"means": [1.0, 0.1]}, "means"),
    ],
)
def test_another_ones_state_is_refused(change: dict[str, Any], name: str) -> None:
    TargetAscent(RHO).load_state_dict(GOOD)
    wrong = {k: v for k, v in {**GOOD, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=rf"the state of the radius has no float32 tensor '{name}' of shape"):
        TargetAscent(RHO).load_state_dict(wrong)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("loss_budget", {"sigma": 0}, ValueError, "`rho_schedule_kwargs(sigma=...)` must be a finite number > 0"),
        ("target_ascent", {"target": -0.1}, ValueError, "(target=...)` must be a finite number > 0, got -0.1."),
        ("target_ascent", {"max_change": 0}, ValueError, "(max_change=...)` must be a finite number > 0, got 0."),
        ("target_ascent", {"smoothing": 1.0}, ValueError, "(smoothing=...)` must be a finite number >= 0 and < 1"),
        ("target_ascent", {"rho_max": 0.1}, ValueError, "(rho_max=...)` must be a finite number >= 0.2, got 0.1."),
        ("target_ascent", {"rho_min": 0.3}, ValueError, "(rho_min=...)` must be a finite number >= 0 and <= 0.2"),
        ("target_ascent", {"rho_min": "0"}, TypeError, "(rho_min=...)` must be a number >= 0 and <= 0.2, got '0'."),
    ],
)
def test_a_bad_option_is_refused(name: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make_radius(RHO, name, options)
    assert message in str(caught.value)
