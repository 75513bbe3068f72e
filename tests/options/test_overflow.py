# SPDX-License-Identifier: Apache-2.0
"""With a gradient scaler: what does an overflow in the first pass do, in the second, in both?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_sam import SAMConfig
from tests.promises.runs import PlainScaled, SAMScaled, differences, fingerprint, trainer_for, weights

SCOPES = ("batch", pytest.param("micro_batch", marks=pytest.mark.slow))
MICRO_BATCHES = (pytest.param(0, marks=pytest.mark.slow), 1)
STEP = 2  # the optimizer step that overflows
HUGE = 1e38


class Trace(TrainerCallback):
    """Notes scale, weights and learning rate after each step."""

    trainer: Any = None

    def __init__(self) -> None:
        self.scales: list[float] = []
        self.weights: list[torch.Tensor] = []
        self.rates: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        del args, state, control, kwargs
        self.scales.append(self.trainer.accelerator.scaler.get_scale())
        self.weights.append(weights(self.trainer))
        self.rates.append(self.trainer.lr_scheduler.get_last_lr()[0])


class Overflowing:
    """Multiplies the loss of one micro-batch of step `STEP` by so much that its gradient overflows, in these passes."""

    passes: tuple[bool, ...] = (False, True)  # by `in_descent_pass`
    at = 0  # which micro-batch of the window
    initial_scale = 2.0**10
    without_climbing = False  # leave epsilon out of the step that would overflow

    def training_step(self, model: Any, inputs: Any, *args: Any) -> Any:
        self.number = self.number + 1 if getattr(self, "current", None) == self.state.global_step else 0
        self.current = self.state.global_step
        inputs = {**inputs, "number": self.number}
        if self.without_climbing and self.current == STEP and (self.number == self.at or not self.alone):
            inputs.pop("number")
            return Trainer.training_step(self, model, inputs, *args)
        return super().training_step(model, inputs, *args)

    @property
    def alone(self) -> bool:
        return self.sam_config.sam_scope == "micro_batch"

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        number = inputs.pop("number", None)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        due = self.state.global_step == STEP and number == self.at and not self.without_climbing
        return loss * HUGE if due and getattr(self, "in_descent_pass", False) in self.passes else loss


class PlainOverflowing(Overflowing, PlainScaled):
    pass


class SAMOverflowing(Overflowing, SAMScaled):
    pass


def run(
    tmp_path: Any, rho: float | None, scope: str = "batch", *, optim: str = "adamw_torch", **attributes: Any
) -> tuple[Any, Trace]:
    classes = tuple(type(c.__name__, (c,), attributes) for c in (PlainOverflowing, SAMOverflowing))
    trace = Trace()
    trainer: Any = trainer_for(
        "bert",
        tmp_path,
        sam=None if rho is None else SAMConfig(rho=rho, sam_scope=scope),
        classes=classes,
        gradient_accumulation_steps=2,
        max_steps=7,
        optim=optim,
        trainer_kwargs={"callbacks": [trace]},
    )
    trace.trainer = trainer
    trainer.train()
    return trainer, trace


def assert_skipped(trace: Trace, trainer: Any) -> None:
    """Assert that step `STEP` and no other was left out, and that the scale halved there and grew as it does."""
    same = [torch.equal(a, b) for a, b in zip(trace.weights, trace.weights[1:], strict=False)]
    assert same == [step == STEP for step in range(1, 7)]
    scale = SAMOverflowing.initial_scale
    # growth_interval is 3: after an overflow the count begins again
    assert trace.scales == [scale, scale, scale / 2, scale / 2, scale / 2, scale, scale]
    assert trace.rates[STEP] == trace.rates[STEP - 1]  # the scheduler waits
    assert all(torch.isfinite(w).all() for w in trace.weights)
    assert trainer.optimizer.state_dict()["state"][0]["step"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("at", MICRO_BATCHES)
@pytest.mark.parametrize("optim", ["adamw_torch", pytest.param("adamw_torch_fused", marks=pytest.mark.slow)])
@pytest.mark.parametrize("scope", SCOPES)
def test_an_overflow_in_both_passes_is_the_plain_trainers_at_rho_zero(
    scope: str, optim: str, at: int, tmp_path: Any
) -> None:
    plain, expected = run(tmp_path, None, at=at, optim=optim)
    found = fingerprint(plain)
    sharp, trace = run(tmp_path, 0.0, scope, at=at, optim=optim)
    assert differences(found, fingerprint(sharp)) == []
    assert trace.scales == expected.scales
    assert trace.rates == expected.rates
    if optim == "adamw_torch":  # the fused one looks at the overflow by itself, and the scheduler does not wait
        assert_skipped(expected, plain)


@pytest.mark.parametrize("at", MICRO_BATCHES)
@pytest.mark.parametrize("passes", [(True,), (False, True)], ids=["second", "both"])
@pytest.mark.parametrize("scope", SCOPES)
def test_an_overflow_in_the_second_pass_makes_the_scaler_skip_and_back_off(
    scope: str, passes: tuple[bool, ...], at: int, tmp_path: Any
) -> None:
    trainer, trace = run(tmp_path, 0.1, scope, passes=passes, at=at)
    assert_skipped(trace, trainer)


@pytest.mark.parametrize("at", MICRO_BATCHES)
@pytest.mark.parametrize("scope", SCOPES)
def test_an_overflow_in_the_first_pass_only_makes_the_step_a_plain_one(scope: str, at: int, tmp_path: Any) -> None:
    trainer, trace = run(tmp_path, 0.1, scope, passes=(False,), at=at)
    scale = SAMOverflowing.initial_scale
    assert trace.scales == [
        scale,
        scale,
        2 * scale,
        2 * scale,
        2 * scale,
        4 * scale,
        4 * scale,
    ]  # nothing to back off for
    plain, expected = run(tmp_path, 0.1, scope, without_climbing=True, at=at)
    assert all(torch.equal(a, b) for a, b in zip(trace.weights, expected.weights, strict=True))
    assert all(torch.isfinite(w).all() for w in trace.weights)
    skipped = [entry["sam/skipped"] for entry in trainer.state.log_history if "sam/skipped" in entry]
    share = 1.0 if scope == "batch" else 0.5
    assert skipped == [share if step == STEP else 0.0 for step in range(7)]
    assert plain.state.global_step == 7


@pytest.mark.parametrize("scope", SCOPES)
def test_a_scale_that_is_too_large_comes_down_until_a_step_is_taken(scope: str, tmp_path: Any) -> None:
    trainer, trace = run(tmp_path, 0.1, scope, initial_scale=2.0**19, passes=())
    start = 2.0**19
    moves = [not torch.equal(a, b) for a, b in zip(trace.weights, trace.weights[1:], strict=False)]
    assert moves[-1]
    for step, moved in enumerate(moves, start=1):
        # A step is either left out, and then the scale halves, or taken, and then it does not.
        assert (trace.scales[step] < trace.scales[step - 1]) == (not moved)
    assert trace.scales[0] == start / 2
    assert all(torch.isfinite(w).all() for w in trace.weights)
    assert trainer.state.log_history[0]["sam/skipped"] > 0
