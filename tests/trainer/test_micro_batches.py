# SPDX-License-Identifier: Apache-2.0
"""Do the micro-batches of a step run again exactly, and leave no trace but gradients?"""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import BatchEncoding

from hf_sam.engines import Engine, ReplicatedEngine
from hf_sam.step_context import StepContext
from hf_sam.trainer.micro_batches import Window
from hf_sam.trainer.run_state import RunState
from hf_sam.trainer.step_planner import StepPlan
from hf_sam.trainer.training_step import TrainingStep
from tests.compare import bits, same_bits


class Stop(Exception):
    """Raised on purpose."""


class Noisy(nn.Module):
    """Dropout, NumPy noise, Python noise and batch normalisation: everything a pass may draw or write."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.first(x))) * float(np.random.random()) * random.random()


Run = Callable[[Any], Tensor]


def run_with(model: nn.Module) -> Run:
    def run(inputs: Any) -> Tensor:
        loss = model(inputs["x"]).square().mean()
        loss.backward()
        return loss.detach()

    return run


class Step(TrainingStep):
    """The passes of a training step whose forward and backward are a function of the inputs."""

    def __init__(self, model: nn.Module) -> None:
        accelerator = SimpleNamespace(sync_gradients=True, gradient_state=SimpleNamespace(sync_gradients=True))
        trainer = SimpleNamespace(
            accelerator=accelerator,
            counters=(),
            replayed_state=tuple,
            current_gradient_accumulation_steps=3,
            _sam=RunState(),
        )
        trainer._sam.engine = Engine(model, accelerator)
        window = Window(model, StepPlan("two", 0.05, StepContext()), list(model.parameters()))
        super().__init__(trainer, lambda _, inputs, num_items: self.run_one(inputs), model, window)

    def first_pass(self, run: Run, inputs: Any) -> None:
        self.run_one = run
        micro_batch = self.note(inputs, None)
        micro_batch.clean_loss = self.pass_over(micro_batch)

    def replay_with(self, run: Run) -> Tensor:
        self.run_one = run
        return self.replay(False, 3)


def filled_step(model: nn.Module, count: int = 3) -> Step:
    step = Step(model)
    for _ in range(count):
        step.first_pass(run_with(model), {"x": torch.randn(8, 4)})
    return step


def state_of(model: nn.Module) -> list[Tensor]:
    streams = [torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].astype(np.int64))]
    streams.append(torch.tensor([hash(random.getstate())]))
    return bits([*model.buffers(), *streams])


def test_at_the_same_weights_every_loss_and_gradient_repeats_to_the_bit() -> None:
    model = Noisy()
    step = filled_step(model)
    first = bits(p.grad for p in model.parameters())
    model.zero_grad()
    losses = []

    def run(inputs: Any) -> Tensor:
        losses.append(run_with(model)(inputs))
        return losses[-1]

    assert step.replay_with(run) == 0
    assert same_bits(bits(losses), bits(m.clean_loss for m in step.window.micro_batches))
    assert same_bits(bits(p.grad for p in model.parameters()), first)


def test_something_else_drawn_in_between_does_no_harm() -> None:
    """The data loader draws between the micro-batches, and between the passes."""
    model = Noisy()
    step, run = Step(model), run_with(model)
    for _ in range(2):
        step.first_pass(run, {"x": torch.randn(8, 4)})
        torch.rand(3), np.random.random(), random.random()
    assert step.replay_with(run) == 0


@pytest.mark.parametrize("stop_at", [None, 0, 1, 2])
def test_streams_and_buffers_end_where_the_first_pass_left_them(stop_at: int | None) -> None:
    model = Noisy()
    step = filled_step(model)
    torch.rand(5), np.random.random(), random.random()
    before, replayed = state_of(model), []

    def run(inputs: Any) -> Tensor:
        loss = run_with(model)(inputs)
        replayed.append(loss)
        if len(replayed) - 1 == stop_at:
            raise Stop
        return loss

    if stop_at is None:
        step.replay_with(run)
    else:
        with pytest.raises(Stop):
            step.replay_with(run)
    assert same_bits(state_of(model), before)


def test_the_first_micro_batch_finds_the_buffers_of_the_start() -> None:
    model, seen = Noisy(), []
    start = bits(model.buffers())
    step = filled_step(model)

    def run(inputs: Any) -> Tensor:
        seen.append(bits(model.buffers()))
        return run_with(model)(inputs)

    step.replay_with(run)
    assert same_bits(seen[0], start)
    assert not same_bits(seen[1], start)


def test_the_rise_is_the_sum_over_the_micro_batches() -> None:
    model = Noisy()
    step = filled_step(model)
    clean = sum(m.clean_loss for m in step.window.micro_batches)
    tripled = iter([m.clean_loss * 3 for m in step.window.micro_batches])
    rise = step.replay_with(lambda inputs: next(tripled))
    torch.testing.assert_close(rise, clean * 2)
    assert rise.shape == ()


def test_the_rise_holds_no_graph() -> None:
    model = Noisy()
    step = filled_step(model)
    assert not step.replay_with(lambda inputs: model(inputs["x"]).mean()).requires_grad


def test_a_window_can_be_replayed_twice() -> None:
    model = Noisy()
    step = filled_step(model)
    assert step.replay_with(run_with(model)) == step.replay_with(run_with(model)) == 0


def test_replaying_runs_the_micro_batches_in_order() -> None:
    model, order = Noisy(), []
    step = filled_step(model)

    def run(inputs: Any) -> Tensor:
        order.append(inputs["x"])
        return run_with(model)(inputs)

    step.replay_with(run)
    assert all(a is m.inputs["x"] for a, m in zip(order, step.window.micro_batches, strict=True))


@pytest.mark.parametrize("kind", [dict, BatchEncoding])
def test_inputs_popped_in_the_first_pass_are_there_in_the_second(kind: type) -> None:
    x, seen = torch.ones(2, 4), []

    def run(inputs: Any) -> Tensor:
        seen.append((type(inputs), set(inputs.keys()), inputs["x"] is x))
        return inputs.pop("labels").sum()

    step = Step(Noisy())
    step.first_pass(run, kind({"x": x, "labels": torch.zeros(2)}))
    step.replay_with(run)
    assert seen == [(kind, {"x", "labels"}, True)] * 2, "the tensors are shared, the mapping is a copy"


def test_the_second_pass_reduces_gradients_where_the_first_one_did(group: None) -> None:
    net, seen = DistributedDataParallel(nn.Linear(1, 1)), []
    step = Step(net)
    flag = step.trainer.accelerator.gradient_state
    step.run.engine = ReplicatedEngine(net, step.trainer.accelerator)

    def run(inputs: Any) -> Tensor:
        seen.append((net.require_backward_grad_sync, flag.sync_gradients))
        return torch.zeros(())

    for last in (False, True):
        net.require_backward_grad_sync = flag.sync_gradients = last
        step.first_pass(run, {})
    step.replay_with(run)
    assert seen == [(False, False), (True, True)] * 2
    assert (net.require_backward_grad_sync, flag.sync_gradients) == (True, True)


def test_alone_the_second_pass_finds_the_flag_of_the_last_micro_batch_as_the_first_one_did() -> None:
    step, seen = Step(Noisy()), []
    flag = step.trainer.accelerator.gradient_state

    def run(inputs: Any) -> Tensor:
        seen.append(flag.sync_gradients)
        return torch.zeros(())

    for last in (False, True):
        flag.sync_gradients = last
        step.first_pass(run, {})
    step.replay_with(run)
    assert seen == [False, True] * 2
