# SPDX-License-Identifier: Apache-2.0
"""Are the logged averages the averages, without asking the device at every step?"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from hf_sam.step.measurement import Measurement
from hf_sam.trainer.logs import Averages, Sampler

NAN, INF = float("nan"), float("inf")


def report(
    norm: float = 0.05, cosine: float = 0.9, usable: bool = True, device: str = "cpu", rho: float = 0.05
) -> Measurement:
    usable_there, *values = (torch.tensor(v, device=device) for v in (usable, norm, cosine))
    return Measurement(usable_there, rho, *values)


def averages(*steps: tuple[Measurement, float, float, bool]) -> dict[str, float]:
    sums = Averages()
    for step, rise, rho, ends_window in steps:
        sums.add(step._replace(rho=rho), torch.tensor(rise), ends_window=ends_window)
    return sums.drain()


def test_nothing_is_logged_before_a_step() -> None:
    assert Averages().drain() == {}


def test_one_step_is_logged_as_it_is() -> None:
    logs = averages((report(0.04, 0.8), 0.2, 0.05, True))
    expected = {
        "sam/rho": 0.05,
        "sam/sharpness": 0.2,
        "sam/epsilon_norm": 0.04,
        "sam/grad_cosine": 0.8,
        "sam/skipped": 0,
    }
    assert logs == pytest.approx(expected)


def test_several_steps_are_averaged() -> None:
    logs = averages((report(0.04, 0.8), 0.2, 0.05, True), (report(0.06, 0.4), 0.6, 0.15, True))
    expected = {
        "sam/rho": 0.1,
        "sam/sharpness": 0.4,
        "sam/epsilon_norm": 0.05,
        "sam/grad_cosine": 0.6,
        "sam/skipped": 0,
    }
    assert logs == pytest.approx(expected)


def test_draining_starts_afresh() -> None:
    sums = Averages()
    sums.add(report(), torch.tensor(0.2), ends_window=True)
    sums.drain()
    assert sums.drain() == {}
    sums.add(report(), torch.tensor(0.6), ends_window=True)
    assert sums.drain()["sam/sharpness"] == pytest.approx(0.6)


def test_the_rises_of_the_micro_batches_of_a_step_add_up() -> None:
    """Micro-batch losses are shares of the step's loss: two steps of 0.1 + 0.2 and 0.3 + 0.4 rise by 0.5 on average."""
    logs = averages(*((report(), rise, 0.05, i % 2 == 1) for i, rise in enumerate([0.1, 0.2, 0.3, 0.4])))
    assert logs["sam/sharpness"] == pytest.approx(0.5)
    assert logs["sam/epsilon_norm"] == pytest.approx(0.05)


def test_a_perturbation_left_out_counts_as_skipped_and_in_no_mean() -> None:
    logs = averages((report(0.04, 0.8), 0.2, 0.05, True), (report(0.0, NAN, usable=False), 0.0, 0.05, True))
    assert logs["sam/skipped"] == pytest.approx(0.5)
    assert (logs["sam/epsilon_norm"], logs["sam/sharpness"]) == pytest.approx((0.04, 0.2))


def test_a_key_without_a_value_is_not_logged() -> None:
    logs = averages((report(0.0, NAN, usable=False), NAN, 0.05, True))
    assert logs == {"sam/rho": 0.05, "sam/skipped": 1.0}


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_value_that_is_not_finite_spoils_no_mean(bad: float) -> None:
    logs = averages((report(0.04, bad), 0.2, 0.05, True), (report(0.06, 0.4), bad, 0.05, True))
    assert logs["sam/grad_cosine"] == pytest.approx(0.4)
    assert logs["sam/sharpness"] == pytest.approx(0.2)
    assert logs["sam/epsilon_norm"] == pytest.approx(0.05)


def test_logged_values_are_plain_finite_floats() -> None:
    logs = averages((report(), 0.2, 0.05, True))
    assert all(type(v) is float and math.isfinite(v) for v in logs.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_measurements_may_have_any_dtype(dtype: torch.dtype) -> None:
    sums = Averages()
    step = Measurement(torch.tensor(True), 0.05, *(torch.tensor(v, dtype=dtype) for v in (0.5, 0.25)))
    sums.add(step, torch.tensor(0.125, dtype=dtype), ends_window=True)
    assert sums.drain()["sam/sharpness"] == 0.125


def test_the_sums_hold_no_graph() -> None:
    sums = Averages()
    rise = torch.tensor(0.2, requires_grad=True) * 1
    sums.add(report(), rise, ends_window=True)
    assert not sums._sums.requires_grad


def test_adding_reads_nothing_from_the_device() -> None:
    """Meta tensors raise on any read."""
    sums = Averages()
    for _ in range(3):
        sums.add(report(device="meta"), torch.tensor(0.2, device="meta"), ends_window=True)
    assert sums._sums.is_meta


@pytest.mark.parametrize(
    ("strategy", "logging_steps", "expected"),
    [
        ("steps", 1, list(range(20))),
        ("steps", 19, list(range(20))),  # fewer than twenty: all of them
        ("steps", 20, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]),
        ("steps", 50, [0, 5, 10, 15]),
        ("epoch", 500, [0]),
        ("no", 1, [0]),
    ],
)
def test_ten_steps_per_log_are_measured(strategy: str, logging_steps: int, expected: list[int]) -> None:
    sampler = Sampler()
    assert [step for step in range(20) if sampler.takes(step, strategy, logging_steps)] == expected


def test_a_step_is_measured_with_all_of_its_micro_batches() -> None:
    sampler = Sampler()
    assert [sampler.takes(step, "steps", 500) for step in (0, 0, 0, 1, 1, 50, 50)] == [True] * 3 + [False] * 2 + [
        True
    ] * 2


def test_steps_that_perturb_rarely_are_measured_too() -> None:
    """Every seventh step, from the third: not one of them is a multiple of fifty in the first three hundred."""
    sampler = Sampler()
    found = [step for step in range(3, 500, 7) if sampler.takes(step, "steps", 500)]
    assert len(found) == 10
    assert [step // 50 for step in found] == list(range(10))


def test_a_resumed_run_measures_the_steps_that_the_whole_one_did() -> None:
    whole, resumed = Sampler(), Sampler()
    all_of_it = [step for step in range(400) if whole.takes(step, "steps", 500)]
    assert [step for step in range(200, 400) if resumed.takes(step, "steps", 500)] == [s for s in all_of_it if s >= 200]


def test_about_ten_steps_an_epoch_are_measured_where_there_is_a_log_an_epoch() -> None:
    args, sampler = SimpleNamespace(logging_strategy="epoch"), Sampler()
    states = [
        SimpleNamespace(global_step=i, max_steps=1000, num_train_epochs=10, logging_steps=500) for i in range(1000)
    ]
    assert sum(sampler.measures(state, args) for state in states) == 100
