# SPDX-License-Identifier: Apache-2.0
"""Does a window run again exactly, and leave no trace but gradients?"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BatchEncoding

from hf_sam.trainer.micro_batches import MicroBatch, Window
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


def run_with(model: nn.Module) -> Callable[[MicroBatch], Tensor]:
    def run(micro_batch: MicroBatch) -> Tensor:
        loss = model(micro_batch.inputs["x"]).square().mean()
        loss.backward()
        return loss.detach()

    return run


def filled_window(model: nn.Module, count: int = 3) -> Window:
    window, run = Window(model), run_with(model)
    for _ in range(count):
        micro_batch = MicroBatch({"x": torch.randn(8, 4)}, None, count, window.random_state())
        micro_batch.clean_loss = run(micro_batch)
        window.micro_batches.append(micro_batch)
    return window


def state_of(model: nn.Module) -> list[Tensor]:
    streams = [torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].astype(np.int64))]
    streams.append(torch.tensor([hash(random.getstate())]))
    return bits([*model.buffers(), *streams])


def test_at_the_same_weights_every_loss_and_gradient_repeats_to_the_bit() -> None:
    model = Noisy()
    window = filled_window(model)
    first = bits(p.grad for p in model.parameters())
    model.zero_grad()
    losses = []

    def run(micro_batch: MicroBatch) -> Tensor:
        losses.append(run_with(model)(micro_batch))
        return losses[-1]

    assert window.replay(run) == 0
    assert same_bits(bits(losses), bits(m.clean_loss for m in window.micro_batches))
    assert same_bits(bits(p.grad for p in model.parameters()), first)


def test_something_else_drawn_in_between_does_no_harm() -> None:
    """The data loader draws between the micro-batches, and between the passes."""
    model, window = Noisy(), None
    window, run = Window(model), run_with(model)
    for _ in range(2):
        micro_batch = MicroBatch({"x": torch.randn(8, 4)}, None, 2, window.random_state())
        micro_batch.clean_loss = run(micro_batch)
        window.micro_batches.append(micro_batch)
        torch.rand(3), np.random.random(), random.random()
    assert window.replay(run) == 0


@pytest.mark.parametrize("stop_at", [None, 0, 1, 2])
def test_streams_and_buffers_end_where_the_first_pass_left_them(stop_at: int | None) -> None:
    model = Noisy()
    window = filled_window(model)
    torch.rand(5), np.random.random(), random.random()
    before, replayed = state_of(model), []

    def run(micro_batch: MicroBatch) -> Tensor:
        loss = run_with(model)(micro_batch)
        replayed.append(loss)
        if len(replayed) - 1 == stop_at:
            raise Stop
        return loss

    if stop_at is None:
        window.replay(run)
    else:
        with pytest.raises(Stop):
            window.replay(run)
    assert same_bits(state_of(model), before)


def test_the_first_micro_batch_finds_the_buffers_of_the_start() -> None:
    model, seen = Noisy(), []
    start = bits(model.buffers())
    window = filled_window(model)

    def run(micro_batch: MicroBatch) -> Tensor:
        seen.append(bits(model.buffers()))
        return run_with(model)(micro_batch)

    window.replay(run)
    assert same_bits(seen[0], start)
    assert not same_bits(seen[1], start)


def test_the_rise_is_the_sum_over_the_micro_batches() -> None:
    model = Noisy()
    window = filled_window(model)
    clean = sum(m.clean_loss for m in window.micro_batches)
    rise = window.replay(lambda micro_batch: micro_batch.clean_loss * 3)
    torch.testing.assert_close(rise, clean * 2)
    assert rise.shape == ()


def test_the_rise_holds_no_graph() -> None:
    model = Noisy()
    window = filled_window(model)
    assert not window.replay(lambda micro_batch: model(micro_batch.inputs["x"]).mean()).requires_grad


def test_a_window_can_be_replayed_twice() -> None:
    model = Noisy()
    window = filled_window(model)
    assert window.replay(run_with(model)) == window.replay(run_with(model)) == 0


def test_replaying_runs_the_micro_batches_in_order() -> None:
    model, order = Noisy(), []
    window = filled_window(model)

    def run(micro_batch: MicroBatch) -> Tensor:
        order.append(micro_batch)
        return run_with(model)(micro_batch)

    window.replay(run)
    assert all(a is b for a, b in zip(order, window.micro_batches, strict=True))


@pytest.mark.parametrize("kind", [dict, BatchEncoding])
def test_inputs_popped_in_the_first_pass_are_there_in_the_second(kind: type) -> None:
    inputs = kind({"x": torch.ones(2), "labels": torch.zeros(2)})
    micro_batch = MicroBatch(inputs, None, 1, None)
    first = micro_batch.fresh_inputs()
    first.pop("labels")
    assert set(micro_batch.fresh_inputs().keys()) == {"x", "labels"}
    assert type(first) is kind


def test_fresh_inputs_share_the_tensors() -> None:
    micro_batch = MicroBatch({"x": torch.ones(2)}, None, 1, None)
    assert micro_batch.fresh_inputs()["x"] is micro_batch.inputs["x"]
