# SPDX-License-Identifier: Apache-2.0
"""Does rho="auto" follow the fall of the loss?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_sam import SAMConfig
from hf_sam.config.sam_config import radius_of
from hf_sam.radius.auto import CHECK, PATIENCE, Auto
from hf_sam.step_context import StepContext
from hf_sam.trainer.step_planner import StepPlanner
from tests.compare import bits, same_bits
from tests.looped import looped
from tests.tolerances import RELATIVE

STEPS = 300  # a third of it is more than PATIENCE
EXACT = 40 * RELATIVE[torch.float32]  # the losses are kept in float32


def left_of(now: float, l_0: float, noise: float) -> float:
    """r: the share of the first loss that is left, one standard error too high."""
    return min(max(now / l_0 * (1 + noise / l_0), 0.0), 1.0) if l_0 > 0 else 1.0


def share_of(left: float) -> float:
    """a(r): nothing where 97 % of the first loss is left, all from 70 % on."""
    return min(max((0.97 - left) / 0.27, 0.0), 1.0)


def reference(losses: list[float], strength: float = 1.0, patience: int = PATIENCE) -> list[float | None]:
    """The length before each step in float64; None for the plain steps."""
    found: list[float | None] = [None] * min(patience, len(losses))
    first = [x for x in losses[:patience] if np.isfinite(x)]
    l_0 = now = float(np.mean(first))
    deviation = np.sqrt(np.mean(np.diff(first) ** 2) / 2) if len(first) > 1 else 0.0
    noise = deviation * np.sqrt(1 / len(first) + 0.05 / 1.95)
    left, idle = left_of(now, l_0, noise), False
    for step, loss in enumerate(losses[patience:], start=patience + 1):
        found.append(None if idle else strength * share_of(left))
        now = 0.95 * now + 0.05 * loss if np.isfinite(loss) else now
        left = left_of(now, l_0, noise)
        if (step - patience) % CHECK == 0:
            idle = not 0.01 <= left < 0.97
    return found


def falling(steps: int = 120) -> list[float]:
    """A noisy plateau, a fall by half, a rise beyond the beginning."""
    rng, t = np.random.default_rng(0), np.arange(steps)
    shape = np.select([t < 40, t < 80], [2.3, 2.3 - 0.045 * (t - 40)], 0.5 + 0.2 * (t - 80))
    return list(shape * rng.uniform(0.95, 1.05, steps))


def feed(radius: Auto, losses: list[float], start: int = 0, steps: int = STEPS) -> list[float | None]:
    found: list[float | None] = []
    for t, loss in enumerate(losses, start=start):
        length = radius.at(StepContext(step=t, steps=steps))
        assert isinstance(length, Tensor) or length == 0.0, "a number would be a schedule's zero, a plain step"
        found.append(length.item() if isinstance(length, Tensor) else None)
        radius.observe(torch.tensor(loss), None)
    return found


def assert_follows(found: list[float | None], expected: list[float | None]) -> None:
    assert [x is None for x in found] == [x is None for x in expected]
    np.testing.assert_allclose(*([x or 0.0 for x in xs] for xs in (found, expected)), rtol=0, atol=EXACT)


# ----------------------------------------------------------------------------------------------------------------------
# How far training has got
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_the_length_is_the_formulas(strength: float) -> None:
    found = feed(Auto(strength), falling())
    assert_follows(found, reference(falling(), strength))
    lengths = [x / strength for x in found if x is not None]
    assert min(lengths) < max(lengths) / 10
    assert lengths[-1] < max(lengths) / 2, "and back"


def test_the_number_of_passes_over_the_data_makes_no_difference() -> None:
    radius = Auto()
    feed(radius, [2.0] * PATIENCE + [1.7] * 100)
    whole = float(radius.at(StepContext(step=120)))
    assert 0 < whole < 1
    assert {float(radius.at(StepContext(step=120, passes=passes))) for passes in (0.1, 1.0, 4.0, 300.0)} == {whole}


def test_the_steps_of_the_warm_up_are_plain() -> None:
    radius = Auto()
    feed(radius, [2.0] * PATIENCE + [1.0] * 100)
    assert radius.at(StepContext(step=120, warmup_steps=121)) == 0.0
    assert float(radius.at(StepContext(step=120, warmup_steps=120))) == 1.0


@looped
@pytest.mark.parametrize(
    ("steps", "plain"), [(1000, 20), (61, 20), (60, 20), (59, 19), (50, 16), (4, 1), (3, 1), (1, 1), (0, 20)]
)
def test_the_first_steps_are_plain(steps: int, plain: int) -> None:
    found = feed(Auto(), falling(30), steps=steps)
    assert found[:plain] == [None] * plain
    assert_follows(found, reference(falling(30), patience=plain))


def test_a_loss_that_does_not_fall_is_not_perturbed() -> None:
    """The plateau of noisy labels: nothing is learnt, nothing is to be disturbed, and nothing is paid."""
    for losses in ([2.3] * 60, [2.3 + 0.01 * t for t in range(60)]):
        found = feed(Auto(), losses)
        assert set(found) <= {None, 0.0}
        assert set(found[PATIENCE + CHECK :]) == {None}


def test_noise_is_not_taken_for_progress() -> None:
    """Losses that wander about a plateau, as those of small batches do, ask for hardly any perturbation."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        losses = list(0.69 + 0.06 * rng.standard_normal(60))
        lengths = [x or 0.0 for x in feed(Auto(), losses)]
        assert max(lengths) < 0.2  # of the whole length
        assert np.mean(lengths) < 0.02


def test_what_has_been_learnt_to_the_end_costs_plain_steps() -> None:
    found = feed(Auto(), [2.0] * PATIENCE + [1.0] * 40 + [0.001] * 150)
    assert found[PATIENCE + CHECK] is not None
    assert found[-40:] == [None] * 40
    again = feed(Auto(), [2.0] * PATIENCE + [1.0] * 40 + [0.001] * 150 + [1.0] * 30)
    assert again[-1] is not None, "and what is lost again does not"


def test_it_rests_where_all_is_learnt_however_the_first_losses_fell() -> None:
    """The fall of the first losses is no noise, and what noise they have is not that of losses near zero."""
    rng = np.random.default_rng(0)
    for fall in (0.0, 0.02, 0.1):
        first = [2.0 * math.exp(-fall * t) * rng.uniform(0.9, 1.1) for t in range(PATIENCE)]
        later = [first[-1] * math.exp(-0.05 * t) * rng.uniform(0.9, 1.1) for t in range(300)]
        found = feed(Auto(), first + later)
        assert any(found), "half way it perturbs"
        assert found[-20:] == [None] * 20


def test_the_noise_of_a_straight_fall_is_small() -> None:
    radius = Auto()
    feed(radius, [2.0 - 0.05 * t for t in range(PATIENCE)])
    assert radius.state_dict()["losses"][2] < 0.02


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_passed_over(bad: float) -> None:
    for at in (0, 5, PATIENCE - 1, PATIENCE, 60):
        losses = falling()
        losses[at] = bad
        assert_follows(feed(Auto(), losses), reference(losses))


@pytest.mark.parametrize("first", [0.0, -2.0, math.nan])
def test_a_first_loss_without_a_share_to_fall_by_is_never_perturbed_and_that_is_said(
    first: float, caplog: pytest.LogCaptureFixture
) -> None:
    found = feed(radius_of(SAMConfig(sam_variant="momentum")), [first] * PATIENCE + [1.0, 0.5, -1.0, -5.0] * 8)
    assert set(found) <= {None, 0.0}
    (message,) = caplog.messages
    assert "rho='auto'" in message
    assert "Give a number, such as rho=0.5," in message


def test_it_begins_and_is_whole_where_it_says() -> None:
    losses = [2.0] * PATIENCE + [1.94, 1.93, 1.67, 1.4, 0.5, 3.0, -1.0, 1.0]
    found = feed(Auto(3.0, smoothing=0.0), losses)[PATIENCE:]
    assert found == pytest.approx([0.0, 0.0, 3 * 0.005 / 0.27, 1.5, 3.0, 3.0, 0.0, 3.0], rel=1e-5, abs=1e-6)


def test_the_rise_and_the_graph_do_not_matter() -> None:
    one, other = Auto(), Auto()
    for loss in falling(40):
        one.observe(torch.tensor(loss), None)
        other.observe(torch.tensor(loss, requires_grad=True) * 1, torch.tensor(math.nan))
    assert same_bits(bits([one.state_dict()["losses"]]), bits([other.state_dict()["losses"]]))


# ----------------------------------------------------------------------------------------------------------------------
# Resuming, and gates that are closed at first
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("at", [0, 1, PATIENCE - 1, PATIENCE, PATIENCE + 1, 70])
def test_a_resumed_radius_goes_on_in_the_same_bits(at: int) -> None:
    whole, first, second = feed(Auto(), falling()), Auto(), Auto()
    found = feed(first, falling()[:at])
    saved = first.state_dict()
    feed(first, falling()[at:], start=at)  # what was saved is not changed by going on
    second.load_state_dict(saved)
    assert found + feed(second, falling()[at:], start=at) == whole


@looped
@pytest.mark.parametrize(("before", "after"), [(30, 1000), (1000, 30)])
@pytest.mark.parametrize("at", [2, 3, 10, 40])
def test_a_run_that_is_made_longer_or_shorter_keeps_what_it_has_measured(at: int, before: int, after: int) -> None:
    """What L_0 is the mean of does not change once it is known, and the sum of losses is not taken for one."""
    first, second = Auto(), Auto()
    feed(first, falling()[:at], steps=before)
    second.load_state_dict(first.state_dict())
    found = feed(second, falling()[at:], start=at, steps=after)
    own, others = (max(1, min(PATIENCE, steps // 3)) for steps in (before, after))
    patience = own if at >= own else max(at + 1, others)
    assert_follows(found, reference(falling(), patience=patience)[at:])


@pytest.mark.parametrize(("steps", "start"), [(30, 0.5), (30, 0.1), (100, 0.05), (300, 0.5)])
def test_a_gate_that_opens_late_leaves_the_first_losses_the_first(steps: int, start: float) -> None:
    """While it is closed nobody asks for the radius, so that it does not hear how long the run is."""
    policy, found = StepPlanner(SAMConfig(rho="auto", sam_start=start)), []
    losses = falling(steps)
    for t in range(steps):
        plan = policy.plan(StepContext(step=t, steps=steps))
        found.append(plan.rho.item() if isinstance(plan.rho, Tensor) else None)
        policy.radius.observe(torch.tensor(losses[t]), None)
    opens = math.ceil(start * steps)
    patience = min(PATIENCE, max(opens + 1, min(PATIENCE, steps // 3)))
    expected = reference(losses, 0.5, patience)
    assert_follows(found, [None] * opens + expected[opens:])


GOOD: dict[str, Any] = {
    **Auto().state_dict(),
    "steps": 30,
    "patience": 20,
    "idle": False,
    "losses": torch.tensor([2.0, 1.0, 0.1]),
}


@looped
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None}, "no whole number 'steps' >= 0, but None"),
        ({"steps": -1}, "no whole number 'steps' >= 0, but -1"),
        ({"steps": True}, "no whole number 'steps' >= 0, but True"),
        ({"steps": 3.0}, "no whole number 'steps' >= 0, but 3.0"),
        ({"patience": "20"}, "no whole number 'patience' >= 0, but '20'"),
        ({"idle": None}, "no 'idle' that is true or false, but None"),
        ({"idle": 1}, "no 'idle' that is true or false, but 1"),
        ({"losses": None}, "no float32 tensor 'losses' of shape (3,)"),
        ({"losses": torch.ones(2)}, "no float32 tensor 'losses' of shape (3,)"),
        ({"losses": torch.ones(3, dtype=torch.float64)}, "no float32 tensor 'losses' of shape (3,)"),
    ],
)
def test_another_ones_state_is_refused(change: dict[str, Any], message: str) -> None:
    Auto().load_state_dict(GOOD)
    with pytest.raises(ValueError, match=r"the state of .*(rho='auto'|the radius)") as caught:
        Auto().load_state_dict({k: v for k, v in {**GOOD, **change}.items() if v is not None})
    assert message in str(caught.value)
