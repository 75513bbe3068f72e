# SPDX-License-Identifier: Apache-2.0
"""Is Flat-LoRA's noise what the paper says, the same wherever it must be, and gone without a trace?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_sam.step.perturbation import Perturbation
from hf_sam.step_context import StepContext
from hf_sam.variants.lora import flat_lora
from hf_sam.variants.lora.flat_lora import FlatLoRA
from tests.compare import bits, same_bits
from tests.reference import lora_numpy, sam_numpy
from tests.tolerances import RELATIVE
from tests.variants.lora.adapted import (
    SCALING,
    STEPS,
    Headed,
    adapted,
    as_numpy,
    backward,
    data,
    distance,
    factors,
    layer,
    peft,
    trained_tensors,
)

RHO, LR = 0.3, 0.1
LATE = StepContext(step=10, steps=10, seed=3)  # the noise is at its full strength


def prepared(model: nn.Module) -> FlatLoRA:
    variant = FlatLoRA()
    variant.prepare_model(model)
    return variant


def noise(variant: FlatLoRA, rho: Any = RHO, context: StepContext = LATE) -> list[Tensor]:
    found = variant.direction_before_pass([], rho, context)
    assert found is not None
    return found[1].epsilon


def base(model: Any, name: str) -> nn.Parameter:
    weight: nn.Parameter = layer(model, name).get_base_layer().weight
    return weight


def known_numbers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, int], dict[str, Any]]:
    """Fix the seed of each step, and return what draws the same standard normal numbers for both layers."""
    monkeypatch.setattr(flat_lora, "seed_from", lambda seed, step, *_: 1000 + step)

    def draw(model: Any, step: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1000 + step)
        shapes = {name: base(model, name).shape for name in ("first", "second")}
        return {k: torch.empty(s, dtype=torch.float64).normal_(generator=generator).numpy() for k, s in shapes.items()}

    return draw


# ----------------------------------------------------------------------------------------------------------------------
# The method
# ----------------------------------------------------------------------------------------------------------------------
def test_twenty_steps_equal_the_papers_formula_given_the_same_normal_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted()
    variant, draw = prepared(model), known_numbers(monkeypatch)
    frozen, expected = as_numpy(model)
    at_start = bits(base(model, name) for name in ("first", "second"))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR, momentum=0.9)
    reference = sam_numpy.SGD(LR, 0.9, 0.0)
    for step in range(STEPS):
        x, y = data()
        found = variant.direction_before_pass([], RHO, StepContext(step=step, steps=STEPS))
        assert (found is None) == (step == 0)  # the noise starts at nothing
        perturbation = Perturbation(found[0] if found else [])
        if found:
            perturbation.apply(found[1])
        backward(model, x, y)
        perturbation.undo()
        sigma = RHO * lora_numpy.rising(step, STEPS)
        moved = lora_numpy.shaken(frozen, expected, SCALING, sigma, draw(model, step))
        _, g = lora_numpy.loss_and_gradient(moved, expected, SCALING, x.numpy(), y.numpy())
        for name, t in trained_tensors(model).items():
            assert abs(t.grad.numpy() - g[name]).max() < RELATIVE[torch.float64] * abs(g[name]).max()
        optimizer.step()
        reference.step(expected, g)
        assert distance(model, expected) < RELATIVE[torch.float64]
    assert same_bits(bits(base(model, name) for name in ("first", "second")), at_start)


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (1, 0.5 - math.sqrt(2) / 4), (2, 0.5), (4, 1.0), (9, 1.0)])
def test_the_noise_rises_as_a_cosine_and_is_proportional_to_rho(step: int, share: float) -> None:
    variant = prepared(adapted())
    found = variant.direction_before_pass([], RHO, StepContext(step=step, steps=4))
    if not share:
        assert found is None
        return
    assert found[1].scale.item() == pytest.approx(RHO * share, rel=1e-12)
    assert found[1].scale.dtype == torch.float64


def test_rho_zero_is_a_step_at_w() -> None:
    assert prepared(adapted()).direction_before_pass([], 0.0, LATE) is None


def test_rho_may_be_a_tensor() -> None:
    variant = prepared(adapted())
    by_tensor = noise(variant, torch.tensor(RHO, dtype=torch.float64))
    assert same_bits(bits(by_tensor), bits(noise(variant)))
    assert not any(e.any() for e in noise(variant, torch.tensor(0.0)))


def test_the_noise_is_on_the_merged_weight_of_all_active_adapters() -> None:
    model = adapted()
    model.add_adapter("other", peft.LoraConfig(r=1, target_modules=["first"], init_lora_weights=False))
    model.double()
    variant = prepared(model)
    alone = noise(variant)
    model.base_model.set_adapter(["default", "other"])
    (a, b), (a2, b2) = factors(model, "first"), factors(model, "first", "other")
    merged = base(model, "first") + SCALING * b @ a + 8.0 * b2 @ a2
    without = base(model, "first") + SCALING * b @ a
    both = noise(variant)
    expected = alone[0] * (merged.norm(dim=1) / without.norm(dim=1))[:, None]
    torch.testing.assert_close(both[0], expected.detach(), rtol=1e-12, atol=0)
    assert same_bits(bits(both[1:]), bits(alone[1:]))  # "other" is not in the second layer


# ----------------------------------------------------------------------------------------------------------------------
# What moves, and what comes back
# ----------------------------------------------------------------------------------------------------------------------
def test_only_the_weights_under_active_trained_adapters_move() -> None:
    model = adapted(Headed(), modules_to_save=["head"], target_modules=["first"], lora_dropout=0.2)
    model.add_adapter("other", peft.LoraConfig(r=1, target_modules=["second"]))
    variant = prepared(model)
    moved, _ = variant.direction_before_pass([], RHO, LATE) or ([], None)
    assert [id(w) for w in moved] == [id(base(model, "first"))]
    model.set_adapter("other")
    moved, _ = variant.direction_before_pass([], RHO, LATE) or ([], None)
    assert [id(w) for w in moved] == [id(base(model, "second"))]
    with model.disable_adapter():
        assert variant.direction_before_pass([], RHO, LATE) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_frozen_weights_have_their_bits_again_after_an_error(dtype: torch.dtype) -> None:
    model = adapted(dtype=dtype)
    before = bits(model.parameters())
    weights, ascent = prepared(model).direction_before_pass([], RHO, LATE) or ([], None)
    assert [(d.dtype, d.shape) for d in ascent.direction] == [(w.dtype, w.shape) for w in weights]
    perturbation = Perturbation(weights)

    def interrupted() -> None:
        try:
            perturbation.apply(ascent)
            assert not same_bits(bits(model.parameters()), before)
            raise KeyboardInterrupt
        finally:
            perturbation.undo()

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert same_bits(bits(model.parameters()), before)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_bad_adapters_are_no_reason_to_move(bad: float) -> None:
    model = adapted()
    with torch.no_grad():
        factors(model, "second")[0][0, 0] = bad
    _, ascent = prepared(model).direction_before_pass([], RHO, LATE) or ([], None)
    assert not ascent.usable
    assert ascent.scale == 0
    assert not any(e.any() for e in ascent.epsilon)
