# SPDX-License-Identifier: Apache-2.0
"""Is the share of memorisation that of the stairs of the loss, and nothing while the model learns for all examples?"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from hf_sam.radius.auto import MOST, PATIENCE, Auto
from hf_sam.radius.memorisation import Memorisation
from hf_sam.step_context import StepContext
from tests.compare import bits, same_bits

STEPS = 30  # of a pass


def curve(shape: Callable[[float], float], passes: int, noise: float = 0.0) -> list[float]:
    """A loss by the number of passes, at the beginning of each step."""
    rng = np.random.default_rng(0)
    return [shape(t / STEPS) + noise * float(rng.standard_normal()) for t in range(passes * STEPS)]


def smooth(passes: float) -> float:
    return 2.0 * math.exp(-passes / 2)


def stairs(passes: float) -> float:
    return 2.0 * math.exp(-math.floor(passes) / 2)


def both(passes: float) -> float:
    return 0.5 * smooth(passes) + 0.5 * stairs(passes)


def reference(losses: list[float], steps: int = STEPS) -> list[float]:
    """The share before each step in float64, from whole halves of passes."""
    found = []
    for t in range(len(losses)):
        jumps, share = 0.0, 0.0
        for e in range(1, len(losses) // steps + 1):
            if t <= e * steps + steps // 2:  # known after the first step of the second half
                break
            half = steps // 2
            a, b = ([np.mean(losses[k * steps + s :][:half]) for k in (e - 1, e)] for s in (0, half))
            jumps += b[0] - a[1] - max(0.0, a[0] - b[0])
            fall = losses[0] - a[1]
            share = min(max(jumps / fall, 0.0), 1.0) if fall > 0 else 0.0
        found.append(share)
    return found


def part_of(memorisation: Memorisation) -> float:
    part = memorisation.part()
    assert part is not None
    return float(part)


def feed(memorisation: Memorisation, losses: list[float], start: int = 0, first: float | None = None) -> list[float]:
    found = []
    for t, loss in enumerate(losses, start=start):
        memorisation.note(t / STEPS)
        found.append(part_of(memorisation))
        memorisation.observe(torch.tensor(loss), torch.tensor(losses[0] if first is None else first))
    return found


@pytest.mark.parametrize("shape", [smooth, stairs, both])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_it_is_the_formula(shape: Callable[[float], float], noise: float) -> None:
    losses = curve(shape, 6, noise)
    np.testing.assert_allclose(feed(Memorisation(1.0), losses), reference(losses), atol=2e-4)


def test_stairs_are_memorisation_and_a_smooth_fall_is_none() -> None:
    for noise in (0.0, 0.05):
        assert min(feed(Memorisation(1.0), curve(stairs, 6, noise))[2 * STEPS :]) > 0.9
        assert max(feed(Memorisation(1.0), curve(smooth, 6, noise))) == 0
        half = feed(Memorisation(1.0), curve(both, 6, noise))[2 * STEPS :]
        assert 0.1 < min(half) <= max(half) < 0.9


def test_nothing_is_known_before_the_second_half_of_the_second_pass() -> None:
    memorisation = Memorisation(1.0)
    for t in range(3 * STEPS):
        memorisation.note(t / STEPS)
        assert memorisation.begins == (t < 1.5 * STEPS)
        memorisation.observe(torch.tensor(stairs(t / STEPS)), torch.tensor(2.0))
    memorisation.note(None)
    assert not memorisation.begins
    assert memorisation.part() is None, "where the passes are not counted, it takes no part"


@pytest.mark.parametrize("at", [0, 1, 14, 15, 30, 44, 45, 46, 70])
def test_a_resumed_one_goes_on_in_the_same_bits(at: int) -> None:
    losses = curve(both, 4, 0.1)
    whole, first, second = Memorisation(1.0), Memorisation(1.0), Memorisation(1.0)
    feed(whole, losses)
    feed(first, losses[:at], first=losses[0])
    second.load_state_dict(first.state_dict())
    feed(second, losses[at:], start=at, first=losses[0])
    mine, wanted = second.state_dict(), whole.state_dict()
    numbers = [k for k, v in wanted.items() if isinstance(v, int)]
    assert [mine[k] for k in numbers] == [wanted[k] for k in numbers]
    tensors = [k for k, v in wanted.items() if not isinstance(v, int)]
    assert same_bits(bits([mine[k] for k in tensors]), bits([wanted[k] for k in tensors]))


def test_a_pass_of_one_step_tells_nothing_and_one_of_two_does() -> None:
    for steps in (1, 2):
        memorisation = Memorisation(1.0)
        for t in range(8):
            memorisation.note(t / steps)
            memorisation.observe(torch.tensor(2.0 * 0.5**t), torch.tensor(2.0))
        assert (memorisation.part() is None) == (steps == 1)
        assert steps == 1 or 0 <= part_of(memorisation) <= 1


def test_the_part_ends_where_it_is_told_to() -> None:
    for most in (1.0, 2.0):
        memorisation = Memorisation(0.25, most)
        assert max(feed(memorisation, list(curve(stairs, 6)))) == pytest.approx(most)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 20, 50, 100])
def test_a_loss_that_is_not_finite_is_passed_over(bad: float, at: int) -> None:
    assert length_of(stairs, 6, {at: bad}) == pytest.approx(MOST)


def length_of(shape: Callable[[float], float], passes: int, others: dict[int, float] | None = None) -> float:
    """The length before the last step; `others` are losses that the curve has not, by step."""
    radius, length = Auto(), 0.0
    for t, loss in enumerate(curve(shape, passes)):
        context = StepContext(step=t, steps=10 * STEPS, passes=t / STEPS)
        radius.note(context)
        length = float(radius.at(context))
        radius.observe(torch.tensor((others or {}).get(t, loss)), None)
    return length


def test_auto_leaves_a_model_alone_that_still_learns_and_perturbs_one_that_memorises() -> None:
    assert length_of(smooth, 2) == 0, "0.37 of the first loss is left"
    assert length_of(smooth, 4) > 0.2, "0.14 are left: surer than right"
    assert length_of(stairs, 6) == pytest.approx(MOST), "all of it is memorisation"
    assert length_of(stairs, 1) == 0
    assert 6 * STEPS > PATIENCE


@pytest.mark.parametrize("steps", [3, 8, 30])
def test_a_short_run_that_memorises_nothing_takes_one_step_of_two_passes_at_most(steps: int) -> None:
    """The first look is at the first share, not ten steps after the first losses."""
    radius, taken = Auto(), []
    for t in range(3 * steps):
        context = StepContext(step=t, steps=3 * steps, passes=t / steps)
        radius.note(context)
        taken.append(isinstance(radius.at(context), torch.Tensor))
        radius.observe(torch.tensor(2.0 * math.exp(-t / steps / 2)), None)
    assert sum(taken) <= 1


def test_another_ones_state_is_refused() -> None:
    good = Memorisation(1.0).state_dict()
    for change in ({"pass": -1}, {"first_half": 1.5}, {"sums": torch.zeros(3)}, {"found": None}):
        with pytest.raises(ValueError, match="the state of"):
            Memorisation(1.0).load_state_dict({**good, **change})
