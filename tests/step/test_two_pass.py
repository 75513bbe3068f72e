# SPDX-License-Identifier: Apache-2.0
"""Is `sharpness_aware_grad` the papers' algorithm?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_optimizer
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hf_sam import ASAM, GSAM, SAM, Variant, sharpness_aware_grad
from hf_sam.vectors.vectors import snapshot
from tests.compare import bits, relative_error, same_bits
from tests.reference import sam_numpy
from tests.small_models import Classifier, backward_closure, square_closure
from tests.tolerances import RELATIVE
from tests.variants.peer_asam import ASAMByName, ASAMOnAll

STEPS = 20
RHO = 0.3

# formula of the reference, the variant that must agree with it
CONVENTIONS = [
    pytest.param(sam_numpy.sam, "sam", {}, id="sam"),
    pytest.param(sam_numpy.asam_paper, "asam", {}, id="asam_paper"),
    pytest.param(sam_numpy.asam_code, ASAMByName(), {}, id="asam_code"),
    pytest.param(sam_numpy.asam_davda54, ASAMOnAll(), {}, id="asam_davda54"),
]
OPTIMIZERS = {
    "sgd": (
        lambda: sam_numpy.SGD(lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    ),
    "adamw": (
        lambda: sam_numpy.AdamW(lr=0.02, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.02, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1),
    ),
}


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [(rng.normal(size=(16, 5)), rng.integers(0, 3, size=16)) for _ in range(STEPS)]


def reference_run(formula: sam_numpy.Epsilon, optimizer: Any) -> tuple[sam_numpy.Arrays, list[float]]:
    w = sam_numpy.new_weights(np.random.default_rng(0))
    return w, [sam_numpy.sam_step(w, x, y, formula, RHO, optimizer) for x, y in batches()]


def classifier(dtype: torch.dtype) -> Classifier:
    model = Classifier().to(dtype)
    weights = sam_numpy.new_weights(np.random.default_rng(0))
    model.load_state_dict({k: torch.from_numpy(v).to(dtype) for k, v in weights.items()})
    return model


def closures(model: Classifier) -> list[Callable[[], Tensor]]:
    dtype = model.first.weight.dtype
    data = [(torch.from_numpy(x).to(dtype), torch.from_numpy(y)) for x, y in batches()]
    return [backward_closure(lambda x=x, y=y: cross_entropy(model(x), y)) for x, y in data]


def our_run(optimizer: Any, variant: str | Variant, kwargs: dict, dtype: torch.dtype) -> tuple[Classifier, list[float]]:
    model = classifier(dtype)
    optimizer = optimizer(model.parameters())
    losses = []
    for closure in closures(model):
        names = model.named_parameters()
        losses.append(sharpness_aware_grad(closure, names, rho=RHO, variant=variant, variant_kwargs=kwargs).item())
        optimizer.step()
    return model, losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("formula", "variant", "kwargs"), CONVENTIONS)
def test_twenty_steps_give_the_weights_and_clean_losses_of_the_reference(
    formula: sam_numpy.Epsilon, variant: str | Variant, kwargs: dict[str, Any], optimizer: str
) -> None:
    theirs, ours = OPTIMIZERS[optimizer]
    expected, expected_losses = reference_run(formula, theirs())
    model, losses = our_run(ours, variant, kwargs, torch.float64)
    np.testing.assert_allclose(losses, expected_losses, rtol=RELATIVE[torch.float64])
    weights = dict(model.named_parameters())
    assert (
        relative_error(list(weights.values()), [torch.from_numpy(expected[k]) for k in weights])
        < RELATIVE[torch.float64]
    )


def test_the_conventions_differ_by_far_more_than_the_tolerance() -> None:
    formulas = [c.values[0] for c in CONVENTIONS] + [lambda w, g, rho: {k: 0 * v for k, v in w.items()}]
    runs = [reference_run(formula, OPTIMIZERS["sgd"][0]())[0]["first.weight"] for formula in formulas]
    assert min(np.abs(a - b).max() for i, a in enumerate(runs) for b in runs[:i]) > 1e-3


def test_the_reference_differentiates_its_own_loss_correctly() -> None:
    model = classifier(torch.float64)
    x, y = batches()[0]
    _, g = sam_numpy.loss_and_gradient(sam_numpy.new_weights(np.random.default_rng(0)), x, y)
    closures(model)[0]()
    expected = {k: torch.from_numpy(v) for k, v in g.items()}
    assert (
        relative_error([p.grad for p in model.parameters()], [expected[k] for k, _ in model.named_parameters()]) < 1e-13
    )


@pytest.mark.slow
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("adaptive", [False, True])
def test_twenty_steps_give_the_weights_of_pytorch_optimizer(adaptive: bool, base: type, foreach: bool) -> None:
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01} if base is torch.optim.SGD else {"lr": 0.01}
    model = classifier(torch.float32)
    peer = pytorch_optimizer.SAM(model.parameters(), base, rho=RHO, adaptive=adaptive, foreach=foreach, **options)
    for closure in closures(model):
        closure()
        peer.first_step(zero_grad=True)
        closure()
        peer.second_step(zero_grad=True)
    ours, _ = our_run(lambda p: base(p, **options), ASAMOnAll() if adaptive else "sam", {}, torch.float32)
    assert relative_error(list(ours.parameters()), list(model.parameters())) < RELATIVE[torch.float32]


# ----------------------------------------------------------------------------------------------------------------------
# What the gradient means
# ----------------------------------------------------------------------------------------------------------------------
def gradients_after(closure: Callable[[], Tensor], model: torch.nn.Module, **kwargs: Any) -> list[Tensor]:
    sharpness_aware_grad(closure, model.parameters(), **kwargs)
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("variant", ["sam", "asam"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_radius_zero_gives_the_bits_of_the_plain_gradient(dtype: torch.dtype, variant: str) -> None:
    model, x = Classifier().to(dtype), torch.randn(16, 5, dtype=dtype)
    square_closure(model, x)()
    plain = bits(p.grad for p in model.parameters())
    assert same_bits(bits(gradients_after(square_closure(model, x), model, rho=0, variant=variant)), plain)


def test_a_positive_radius_changes_the_gradient() -> None:
    model, x = Classifier(), torch.randn(16, 5)
    plain = snapshot(gradients_after(square_closure(model, x), model, rho=0))
    assert relative_error(gradients_after(square_closure(model, x), model, rho=0.05), plain) > 1e-3


@pytest.mark.parametrize("variant", [SAM(), ASAM()])
def test_stale_gradients_are_dropped(variant: Variant) -> None:
    model, x = Classifier(), torch.randn(16, 5)
    clean = bits(gradients_after(square_closure(model, x), model, variant=variant))
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e3)
    assert same_bits(bits(gradients_after(square_closure(model, x), model, variant=variant)), clean)


def test_radius_zero_adds_the_plain_gradient_to_those_from_before_however_h_is_mixed() -> None:
    model, x = Classifier(), torch.randn(16, 5)
    closure = square_closure(model, x)
    closure()
    plain = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    before = [100 * torch.randn_like(p) for p in model.parameters()]
    for p, grad in zip(model.parameters(), before, strict=True):
        p.grad = grad.clone()
    # so large that a g - h of rounding alone would show, as it does where h is read off the sum of both
    variant = GSAM(alpha=1000.0)
    sharpness_aware_grad(closure, model.parameters(), variant=variant, rho=0.0, accumulate=True)
    assert same_bits(bits(p.grad for p in model.parameters()), bits(a + b for a, b in zip(before, plain, strict=True)))


def test_an_error_in_the_second_pass_leaves_the_gradients_from_before_there() -> None:
    model, x = Classifier(), torch.randn(16, 5)
    calls: list[int] = []

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("in the second pass")
        return square_closure(model, x)()

    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    with pytest.raises(KeyError):
        sharpness_aware_grad(closure, model.parameters(), variant=GSAM(), accumulate=True)
    assert all(torch.equal(p.grad, torch.full_like(p, 3.0)) for p in model.parameters())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_the_closure_may_call_zero_grad(set_to_none: bool) -> None:
    model, x = Classifier(), torch.randn(16, 5)
    expected = bits(gradients_after(square_closure(model, x), model))

    def closure() -> Tensor:
        model.zero_grad(set_to_none=set_to_none)
        return square_closure(model, x)()

    assert same_bits(bits(gradients_after(closure, model)), expected)


def test_the_closure_may_accumulate_micro_batches() -> None:
    model, x = Classifier().double(), torch.randn(16, 5, dtype=torch.float64)
    whole = snapshot(gradients_after(square_closure(model, x), model))

    def closure() -> Tensor:
        return sum(backward_closure(lambda part=part: model(part).square().mean() / 4)() for part in x.split(4))

    assert relative_error(gradients_after(closure, model), whole) < RELATIVE[torch.float64]


@pytest.mark.parametrize("variant", ["sam", "asam"])
def test_a_loss_scale_that_is_a_power_of_two_scales_the_gradient_and_nothing_else(variant: str) -> None:
    model, x = Classifier(), torch.randn(16, 5)
    plain = snapshot(gradients_after(square_closure(model, x), model, variant=variant))
    scaled = backward_closure(lambda: model(x).square().mean() * 65536)
    unscaled = [g / 65536 for g in gradients_after(scaled, model, variant=variant)]
    assert same_bits(bits(unscaled), bits(plain))


def test_a_frozen_parameter_neither_moves_nor_gets_a_gradient() -> None:
    model, x = Classifier(), torch.randn(16, 5)
    model.first.requires_grad_(False)
    seen = []

    def closure() -> Tensor:
        seen.append(bits(model.first.parameters()))
        return square_closure(model, x)()

    sharpness_aware_grad(closure, model.parameters())
    assert same_bits(*seen)
    assert model.first.weight.grad is None
