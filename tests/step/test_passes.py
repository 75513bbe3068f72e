# SPDX-License-Identifier: Apache-2.0
"""Do the two passes of `sharpness_aware_grad` see the same function, and leave what one pass leaves (promises 7, 8)?"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_sam import sharpness_aware_grad
from tests.compare import bits, same_bits
from tests.small_models import Classifier, backward_closure, square_closure

every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
every_variant = pytest.mark.parametrize("variant", ["sam", "asam"])

STREAMS = {
    "torch": lambda: torch.rand(()).item(),
    "numpy": lambda: float(np.random.random()),
    "python": random.random,
}
every_stream = pytest.mark.parametrize("stream", STREAMS)


class Stop(Exception):
    """Raised on purpose."""


def seed_all() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)


@every_stream
def test_both_passes_draw_the_same_numbers(stream: str) -> None:
    model, x, drawn = Classifier(), torch.randn(16, 5), []

    def closure() -> Tensor:
        drawn.append([STREAMS[stream]() for _ in range(3)])
        return square_closure(model, x)()

    sharpness_aware_grad(closure, model.parameters())
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 3


@pytest.mark.parametrize("outcome", ["returns", "second pass raises"])
@every_stream
def test_random_streams_end_where_one_pass_leaves_them(stream: str, outcome: str) -> None:
    model, x = Classifier(), torch.randn(16, 5)
    draw, calls = STREAMS[stream], []

    def closure() -> Tensor:
        calls.append(draw())
        if len(calls) == 2:
            draw()  # the second pass may draw more than the first
            if outcome != "returns":
                raise Stop
        return square_closure(model, x)()

    seed_all()
    expected = [draw(), draw()]
    seed_all()
    try:
        sharpness_aware_grad(closure, model.parameters())
    except Stop:
        assert outcome != "returns"
    assert calls == [expected[0]] * 2
    assert draw() == expected[1]


def test_dropout_masks_are_equal_in_both_passes() -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Linear(64, 1))
    masks: list[Tensor] = []
    model[1].register_forward_hook(lambda module, args, output: masks.append(output == 0))
    sharpness_aware_grad(square_closure(model, torch.randn(4, 8)), model.parameters())
    assert torch.equal(masks[0], masks[1])
    assert 0 < masks[0].float().mean() < 1


def batch_norm_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))


@pytest.mark.parametrize("outcome", ["returns", "second pass raises"])
def test_batch_norm_buffers_end_where_one_pass_leaves_them(outcome: str) -> None:
    model, x, calls = batch_norm_model(), torch.randn(16, 5), []

    def closure() -> Tensor:
        loss = square_closure(model, x)()
        calls.append(loss)
        if len(calls) == 2 and outcome != "returns":
            raise Stop
        return loss

    try:
        sharpness_aware_grad(closure, model.parameters(), rho=1.0, buffers=model.buffers())
    except Stop:
        assert outcome != "returns"
    once = batch_norm_model()
    square_closure(once, x)()
    assert len(calls) == 2
    assert same_bits(bits(model.buffers()), bits(once.buffers()))
    assert model[1].num_batches_tracked == 1


def test_both_passes_start_from_the_same_buffers() -> None:
    model, x, seen = batch_norm_model(), torch.randn(16, 5), []

    def closure() -> Tensor:
        seen.append(bits(model.buffers()))
        return square_closure(model, x)()

    sharpness_aware_grad(closure, model.parameters(), buffers=model.buffers())
    assert same_bits(*seen)


def test_buffers_keep_their_storage() -> None:
    model, x = batch_norm_model(), torch.randn(16, 5)
    before = [b.data_ptr() for b in model.buffers()]
    sharpness_aware_grad(square_closure(model, x), model.parameters(), buffers=model.buffers())
    assert [b.data_ptr() for b in model.buffers()] == before


# ----------------------------------------------------------------------------------------------------------------------
# Gradients that cannot be climbed along
# ----------------------------------------------------------------------------------------------------------------------
def weights_in_second_pass(model: Classifier, closure: Callable[[], Tensor], variant: str) -> list[Tensor]:
    seen: list[list[Tensor]] = []

    def watched() -> Tensor:
        seen.append(bits(model.parameters()))
        return closure()

    sharpness_aware_grad(watched, model.parameters(), rho=1.0, variant=variant)
    assert len(seen) == 2
    return seen[1]


@every_variant
@every_dtype
def test_a_zero_gradient_gives_the_plain_gradient(dtype: torch.dtype, variant: str) -> None:
    model, x = Classifier().to(dtype), torch.randn(16, 5, dtype=dtype)
    sharpness_aware_grad(backward_closure(lambda: (model(x) * 0).sum()), model.parameters(), variant=variant)
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())


@pytest.mark.parametrize("bad", [0.0, float("inf"), float("-inf"), float("nan")])
@every_variant
@every_dtype
def test_the_second_pass_sees_unmoved_weights_when_the_gradient_is(
    dtype: torch.dtype, variant: str, bad: float
) -> None:
    model, x = Classifier().to(dtype), torch.randn(16, 5, dtype=dtype)
    before = bits(model.parameters())
    closure = backward_closure(lambda: (model(x) * bad).sum())
    assert same_bits(weights_in_second_pass(model, closure, variant), before)


@every_variant
def test_one_bad_element_in_one_parameter_stops_all_of_them(variant: str) -> None:
    model, x = Classifier(), torch.randn(16, 5)
    model.second.bias.register_hook(lambda grad: grad.index_fill(0, torch.tensor([1]), float("inf")))
    before = bits(model.parameters())
    assert same_bits(weights_in_second_pass(model, square_closure(model, x), variant), before)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_bad_gradient_reaches_the_caller(bad: float) -> None:
    model, x = Classifier(), torch.randn(16, 5)
    sharpness_aware_grad(backward_closure(lambda: (model(x) * bad).sum()), model.parameters())
    assert not any(torch.isfinite(p.grad).all() for p in model.parameters())
