# SPDX-License-Identifier: Apache-2.0
"""Does the gate open at the steps it was told, and AE-SAM's test where its formula says?"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from hf_sam.gate import GATES, WARMUP, Gate, GradientNormTest, make_test
from hf_sam.step_context import StepContext
from tests.looped import looped


def open_steps(gate: Gate, steps: int = 20, warmup: int = 5) -> list[int]:
    return [t for t in range(steps) if gate.opens(StepContext(step=t, steps=steps, warmup_steps=warmup))]


# ----------------------------------------------------------------------------------------------------------------------
# Between start and stop, every k
# ----------------------------------------------------------------------------------------------------------------------
@looped
@pytest.mark.parametrize("start", ["0", "0.1", "1/3", "0.5", "0.95", "1", WARMUP])
@pytest.mark.parametrize("stop", ["0", "0.25", "2/3", "0.9", "1"])
@pytest.mark.parametrize("every", [1, 3, 20, 50])
@pytest.mark.parametrize("steps", [1, 20, 37])
def test_it_opens_between_start_and_stop_at_every_kth_step(start: str, stop: str, every: int, steps: int) -> None:
    begin = 5 if start == WARMUP else Fraction(start) * steps
    expected = [t for t in range(steps) if begin <= t < Fraction(stop) * steps and t % every == 0]
    share = start if start == WARMUP else float(Fraction(start))
    assert open_steps(Gate(share, float(Fraction(stop)), every), steps) == expected


@pytest.mark.parametrize("steps", [100, 250, 1000, 10_000])
def test_hundredths_are_not_moved_by_a_step_where_floats_are_not_exact(steps: int) -> None:
    """0.07 * 100 is 7.000000000000001."""
    for percent in range(1, 100):
        edge = math.ceil(Fraction(percent, 100) * steps)
        late, early = Gate(percent / 100), Gate(stop=percent / 100)
        for step, is_late in ((edge - 1, False), (edge, True)):
            context = StepContext(step=step, steps=steps)
            assert (late.opens(context), early.opens(context)) == (is_late, not is_late), percent


def test_what_stops_and_what_starts_at_a_share_make_a_whole() -> None:
    for share in np.random.default_rng(0).uniform(0.01, 0.99, 50):
        early, late = open_steps(Gate(stop=share), 333), open_steps(Gate(start=share), 333)
        assert early + late == list(range(333))


def test_only_a_gate_that_leaves_nothing_out_is_always_open() -> None:
    assert Gate().always
    assert open_steps(Gate()) == list(range(20))
    closed = [Gate(start=0.1), Gate(start=WARMUP), Gate(stop=0.9), Gate(every=2)]
    assert not any(gate.always for gate in closed)


@pytest.mark.parametrize("gate", [Gate(start=0.5), Gate(stop=0.5), Gate(WARMUP, 0.5)])
def test_a_share_of_a_run_of_unknown_length_is_refused(gate: Gate) -> None:
    with pytest.raises(ValueError, match=r"`sam_start` and `sam_stop` need to know how long the run is: set max_steps"):
        gate.opens(StepContext(step=3))


@pytest.mark.parametrize(
    ("gate", "expected"), [(Gate(), [0, 1, 2, 3]), (Gate(every=3), [0, 3]), (Gate(WARMUP), [2, 3])]
)
def test_what_needs_no_length_asks_for_none(gate: Gate, expected: list[int]) -> None:
    assert [t for t in range(4) if gate.opens(StepContext(step=t, warmup_steps=2))] == expected


# ----------------------------------------------------------------------------------------------------------------------
# AE-SAM's test
# ----------------------------------------------------------------------------------------------------------------------
STEPS = 80


def squared_norms() -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.exp(rng.normal(0, 0.5, STEPS)) * np.linspace(3, 0.2, STEPS)


def reference(norms: np.ndarray, delta: float = 0.9, lambda_1: float = -1.0, lambda_2: float = 1.0) -> list[bool]:
    """Jiang et al. 2023: ||g||^2 >= mu_t + c_t sigma_t, c_t from lambda_2 to lambda_1. The first step is its own past.

    The running mean and variance as weighted sums over all that was seen, not one step from the other.
    """
    found, means = [], []
    for t in range(len(norms)):
        weights = np.array([delta ** (t - i) * ((1 - delta) if i else 1) for i in range(t + 1)])
        means.append(weights @ norms[: t + 1])
        squares = (norms[: t + 1] - means) ** 2  # each from the mean of its own time
        c = lambda_2 + t / STEPS * (lambda_1 - lambda_2)
        found.append(bool(norms[t] >= means[t] + c * np.sqrt(weights @ squares)))
    return found


def decide(test: GradientNormTest, norms: np.ndarray, start: int = 0, dtype: torch.dtype = torch.float64) -> list[bool]:
    at = [StepContext(step=t, steps=STEPS) for t in range(start, start + len(norms))]
    return [test.passes(torch.tensor(x, dtype=dtype), context) for x, context in zip(norms, at, strict=True)]


@looped
@pytest.mark.parametrize("delta", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("lambda_1", "lambda_2"), [(-1.0, 1.0), (0.0, 0.0), (-2.0, 0.5)])
def test_a_step_perturbs_where_the_formula_says(delta: float, lambda_1: float, lambda_2: float) -> None:
    test = GradientNormTest(delta=delta, c_start=lambda_2, c_end=lambda_1)
    found = decide(test, squared_norms())
    assert found == reference(squared_norms(), delta, lambda_1, lambda_2)
    assert delta == 0 or {True, False} == set(found)


def test_the_defaults_are_the_papers() -> None:
    found = decide(GradientNormTest(), squared_norms())
    assert found == reference(squared_norms(), 0.9, -1.0, 1.0)
    assert sum(found[:40]) < sum(found[40:]), "rarely in the beginning, mostly in the end"


def test_the_running_mean_and_variance_are_the_formulas() -> None:
    test, norms = GradientNormTest(delta=0.8), squared_norms()
    decide(test, norms)
    mean, variance = norms[0], 0.0
    for x in norms[1:]:
        mean = 0.8 * mean + 0.2 * x
        variance = 0.8 * variance + 0.2 * (x - mean) ** 2
    assert test.state_dict() == {"mean": pytest.approx(mean), "variance": pytest.approx(variance), "steps": STEPS}


def test_the_first_step_has_no_past_and_perturbs() -> None:
    for c in (-5.0, 0.0, 5.0):
        assert decide(GradientNormTest(c_start=c, c_end=c), np.array([3.0])) == [True]


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**30])
def test_the_units_make_no_difference(scale: float) -> None:
    assert decide(GradientNormTest(), scale * squared_norms()) == reference(squared_norms())


@looped
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 1, 30])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float, at: int, dtype: torch.dtype) -> None:
    with_bad, without, norms = GradientNormTest(), GradientNormTest(), squared_norms()
    decide(without, norms[:at])
    decide(with_bad, norms[:at])
    assert decide(with_bad, np.array([bad]), start=at, dtype=dtype) == [True], "the step is skipped further on"
    assert with_bad.state_dict() == without.state_dict()


def test_the_length_of_the_run_is_asked_for_where_it_matters() -> None:
    with pytest.raises(ValueError, match=r"`sam_gate='gradient_norm'` needs to know how long the run is"):
        GradientNormTest().passes(torch.tensor(1.0), StepContext(step=3))
    assert GradientNormTest(c_start=0.5, c_end=0.5).passes(torch.tensor(1.0), StepContext(step=3))


# ----------------------------------------------------------------------------------------------------------------------
# State and options
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("at", [0, 1, 33])
def test_a_resumed_test_decides_the_same(at: int) -> None:
    first, second, norms = GradientNormTest(), GradientNormTest(), squared_norms()
    found = decide(first, norms[:at])
    saved = first.state_dict()
    decide(first, norms[at:], start=at)
    second.load_state_dict(saved)
    assert found + decide(second, norms[at:], start=at) == reference(norms)
    assert second.state_dict() == first.state_dict()


@looped
@pytest.mark.parametrize("name", ["mean", "variance", "steps"])
@pytest.mark.parametrize("wrong", ["gone", None, "1", True, torch.tensor(1.0)], ids=str)
def test_another_ones_state_is_refused(name: str, wrong: Any) -> None:
    state = {**GradientNormTest().state_dict(), name: wrong}
    if wrong == "gone":
        del state[name]
    with pytest.raises(ValueError, match=f"the state of sam_gate has no number '{name}'"):
        GradientNormTest().load_state_dict(state)


def test_each_gate_has_a_name() -> None:
    assert [type(make_test(name)) for name in GATES] == [type(None), GradientNormTest]
    test = make_test("gradient_norm", {"delta": 0.5, "c_start": 2, "c_end": 0})
    assert (test.delta, test.c_start, test.c_end) == (0.5, 2, 0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"delta": 1}, ValueError, "`sam_gate_kwargs(delta=...)` must be a finite number >= 0 and < 1, got 1."),
        ({"delta": -0.1}, ValueError, "`sam_gate_kwargs(delta=...)` must be a finite number >= 0 and < 1, got -0.1."),
        ({"c_end": math.nan}, ValueError, "`sam_gate_kwargs(c_end=...)` must be a finite number, got nan."),
        ({"c_start": "1"}, TypeError, "`sam_gate_kwargs(c_start=...)` must be a number, got '1'."),
        ({"c": 1}, ValueError, "`sam_gate_kwargs` for 'gradient_norm' has no option 'c'; its options: delta, c_start"),
    ],
)
def test_a_bad_option_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make_test("gradient_norm", options)
    assert message in str(caught.value)
