# SPDX-License-Identifier: Apache-2.0
"""Are the logged averages the averages, without asking the device at every step?"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_sam import VARIANTS, StepContext
from hf_sam.step.measurement import Measurement
from hf_sam.trainer.logs import TOGETHER, Averages, Sampler
from hf_sam.trainer.micro_batches import Window
from hf_sam.trainer.step_planner import StepPlan

NAN, INF = float("nan"), float("inf")


SAM, MOMENTUM = VARIANTS["sam"](), VARIANTS["momentum"]()
AT_REST = {
    "sam/rho": 0.0,
    "sam/perturbed": 0.0,
    "sam/sharpness": 0.0,
    "sam/epsilon_norm": 0.0,
    "sam/grad_cosine": 1.0,
    "sam/skipped": 0.0,
}


def report(
    norm: float = 0.05, cosine: float = 0.9, usable: bool = True, device: str = "cpu", rho: float = 0.05
) -> Measurement:
    usable_there, *values = (torch.tensor(v, device=device) for v in (usable, norm, cosine))
    return Measurement(usable_there, rho, *values)


def step(sums: Averages, *perturbations: tuple[Measurement, Any], passes: str = "two", loss: float = 2.0) -> None:
    """Take in one optimizer step, with a perturbation for each of its micro-batches."""
    for number, (measurement, rise) in enumerate(perturbations, start=1):
        sums.add(measurement, None if rise is None else torch.as_tensor(rise), ends_window=number == len(perturbations))
    plan = StepPlan(passes if perturbations else "plain", 0.05, StepContext())
    window = Window(None, plan, [], losses=[torch.tensor(loss)], descents=len(perturbations))
    sums.end_step(window, SAM if passes == "two" else MOMENTUM, 1.0)


def averages(*steps: tuple[Measurement, float]) -> dict[str, float]:
    sums = Averages()
    for perturbation in steps:
        step(sums, perturbation)
    return sums.drain(SAM)


def test_one_step_is_logged_as_it_is() -> None:
    logs = averages((report(0.04, 0.8), 0.2))
    expected = {
        "sam/rho": 0.05,
        "sam/perturbed": 1,
        "sam/sharpness": 0.2,
        "sam/epsilon_norm": 0.04,
        "sam/grad_cosine": 0.8,
        "sam/skipped": 0,
    }
    assert logs == pytest.approx(expected)


def test_several_steps_are_averaged() -> None:
    logs = averages((report(0.04, 0.8), 0.2), (report(0.06, 0.4, rho=0.15), 0.6))
    expected = {
        "sam/rho": 0.1,
        "sam/perturbed": 1,
        "sam/sharpness": 0.4,
        "sam/epsilon_norm": 0.05,
        "sam/grad_cosine": 0.6,
        "sam/skipped": 0,
    }
    assert logs == pytest.approx(expected)


def test_draining_starts_afresh() -> None:
    sums = Averages()
    step(sums, (report(), 0.2))
    sums.drain(SAM)
    step(sums, (report(), 0.6))
    assert sums.drain(SAM)["sam/sharpness"] == pytest.approx(0.6)


def test_the_rises_of_the_micro_batches_of_a_step_add_up() -> None:
    """Micro-batch losses are shares of the step's loss: two steps of 0.1 + 0.2 and 0.3 + 0.4 rise by 0.5 on average."""
    sums = Averages()
    step(sums, (report(), 0.1), (report(), 0.2))
    step(sums, (report(), 0.3), (report(), 0.4))
    logs = sums.drain(SAM)
    assert logs["sam/sharpness"] == pytest.approx(0.5)
    assert logs["sam/epsilon_norm"] == pytest.approx(0.05)


def test_a_perturbation_left_out_counts_as_skipped_and_in_no_mean() -> None:
    logs = averages((report(0.04, 0.8), 0.2), (report(0.0, NAN, usable=False), 0.0))
    assert logs["sam/skipped"] == pytest.approx(0.5)
    assert (logs["sam/epsilon_norm"], logs["sam/sharpness"]) == pytest.approx((0.04, 0.2))


# ----------------------------------------------------------------------------------------------------------------------
# The same keys in every log, and a number in each
# ----------------------------------------------------------------------------------------------------------------------
def test_plain_steps_are_logged_as_perturbations_of_length_zero() -> None:
    sums = Averages()
    step(sums)
    assert sums.drain(SAM) == AT_REST
    step(sums, (report(0.04, 0.8), 0.2))
    sums.drain(SAM)
    step(sums)
    assert sums.drain(SAM) == AT_REST, "nothing of the steps before the last log"


def test_perturbations_that_were_all_left_out_moved_nothing() -> None:
    logs = averages((report(0.0, NAN, usable=False), NAN))
    assert logs == {**AT_REST, "sam/rho": 0.05, "sam/perturbed": 1.0, "sam/skipped": 1.0}


def test_what_no_step_measured_keeps_its_last_value() -> None:
    sums = Averages()
    step(sums, (report(0.04, 0.8), 0.2))
    sums.drain(SAM)
    step(sums)
    sums.drain(SAM)
    step(sums, (Measurement(torch.tensor(True), 0.05), 0.6))
    logs = sums.drain(SAM)
    assert logs["sam/sharpness"] == pytest.approx(0.6)
    assert (logs["sam/epsilon_norm"], logs["sam/grad_cosine"]) == pytest.approx((0.04, 0.8))


def test_a_log_without_a_step_since_the_last_repeats_it() -> None:
    sums = Averages()
    assert sums.drain(SAM) == AT_REST
    step(sums, (report(), 0.2))
    assert sums.drain(SAM) == sums.drain(SAM)


def test_a_step_of_one_pass_is_logged_without_what_it_cannot_know() -> None:
    sums = Averages()
    step(sums, (Measurement(torch.tensor(True), 0.5, torch.tensor(0.5)), None), passes="one")
    expected = {"sam/rho": 0.5, "sam/perturbed": 1.0, "sam/epsilon_norm": 0.5, "sam/skipped": 0.0}
    assert sums.drain(MOMENTUM) == pytest.approx(expected)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_radius_found_on_the_device_is_logged_where_it_is_finite(bad: float) -> None:
    logs = averages((report(rho=torch.tensor(0.1)), 0.2), (report(rho=torch.tensor(bad)), 0.2))
    assert logs["sam/rho"] == pytest.approx(0.1)
    assert averages((report(rho=torch.tensor(bad)), 0.2))["sam/rho"] == 0.0


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_value_that_is_not_finite_spoils_no_mean(bad: float) -> None:
    logs = averages((report(0.04, bad), 0.2), (report(0.06, 0.4), bad))
    assert logs["sam/grad_cosine"] == pytest.approx(0.4)
    assert logs["sam/sharpness"] == pytest.approx(0.2)
    assert logs["sam/epsilon_norm"] == pytest.approx(0.05)


def test_logged_values_are_plain_finite_floats() -> None:
    logs = averages((report(), 0.2))
    assert all(type(v) is float and math.isfinite(v) for v in logs.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_measurements_may_have_any_dtype(dtype: torch.dtype) -> None:
    measurement = Measurement(torch.tensor(True), 0.05, *(torch.tensor(v, dtype=dtype) for v in (0.5, 0.25)))
    assert averages((measurement, torch.tensor(0.125, dtype=dtype)))["sam/sharpness"] == 0.125


def test_the_sums_hold_no_graph() -> None:
    sums = Averages()
    rise = torch.tensor(0.2, requires_grad=True) * 1
    sums.add(report(), rise, ends_window=True)
    (_, known) = sums._waiting[0]
    assert not any(value is not None and value.requires_grad for value in known)


def test_adding_reads_nothing_from_the_device() -> None:
    """Meta tensors raise on any read."""
    sums = Averages()
    for rho in (0.05, torch.tensor(0.05, device="meta")):
        step(sums, (report(device="meta", rho=rho), torch.tensor(0.2, device="meta")))
    assert sums._add_up().is_meta


class Operations(TorchDispatchMode):
    """Counts what would be launched on an accelerator."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is not torch.ops.aten.detach.default  # a view
        return func(*args, **kwargs or {})


def test_many_perturbations_are_added_up_in_few_operations_and_to_the_same_means() -> None:
    sums, rises = Averages(), [torch.tensor(0.01 * number) for number in range(3 * TOGETHER // 2)]
    given = [report() for _ in rises]
    with Operations() as operations:
        for measurement, rise in zip(given, rises, strict=True):
            sums.add(measurement, rise, ends_window=True)
    assert operations.count < len(rises) / 4
    assert sums.drain(SAM)["sam/sharpness"] == pytest.approx(sum(rises).item() / len(rises))


def test_a_radius_that_is_computed_anew_in_the_same_memory_counts_as_it_was() -> None:
    sums, rho = Averages(), torch.tensor(0.1)
    for radius in (0.1, 0.3):
        step(sums, (report(rho=rho.fill_(radius)), 0.2))
    assert sums.drain(SAM)["sam/rho"] == pytest.approx(0.2)


# ----------------------------------------------------------------------------------------------------------------------
# The whole run
# ----------------------------------------------------------------------------------------------------------------------
def test_the_totals_are_over_all_steps_whatever_was_logged() -> None:
    logged, unlogged = Averages(), Averages()
    for number in range(4):
        for sums in (logged, unlogged):
            step(sums, *([(report(rho=0.1 * number), 0.2 * number)] if number else []), loss=3.0 - number)
        logged.drain(SAM)
    for sums in (logged, unlogged):
        found = sums.so_far().summary(knows_rise=True)
        assert found == pytest.approx(
            {
                "sam/run_perturbed": 0.75,
                "sam/run_rho": 0.2,
                "sam/run_last_rho": 0.3,
                "sam/run_passes": 1.75,
                "sam/run_sharpness": 0.4,
            }
        )
        assert sums.so_far().first_loss == 3.0


def test_reading_the_totals_changes_no_log() -> None:
    sums, undisturbed = Averages(), Averages()
    for each in (sums, undisturbed):
        step(each, (report(), 0.2))
    sums.so_far()
    assert sums.drain(SAM) == undisturbed.drain(SAM)
    assert sums.totals == undisturbed.totals


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
