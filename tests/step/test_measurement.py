# SPDX-License-Identifier: Apache-2.0
"""Does a descent measure what it says, onto whatever gradients came before, for weights and gradients of any layout?"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hf_sam import ASAM, SAM, Variant, sharpness_aware_grad
from hf_sam.step.measurement import Measurement
from hf_sam.step.two_pass import two_pass_step
from hf_sam.vectors.flat import global_dot
from hf_sam.vectors.vectors import global_norm, snapshot
from tests.compare import bits, relative_error, same_bits
from tests.small_models import Classifier, backward_closure, square_closure
from tests.variants.peer_asam import ASAMOnAll

DIRECTIONS = {"sam": SAM(), "asam": ASAM(), "asam_all": ASAMOnAll()}
every_direction = pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
LARGE = 300  # a square of this side is more than 2^16 elements


def measured(
    direction: Variant, dtype: torch.dtype, rho: float, onto: list[Tensor] | None = None
) -> tuple[Measurement, list[Tensor], list[Tensor], list[Tensor]]:
    """Return the report, and epsilon, g and h as a bystander sees them."""
    model, x = Classifier(LARGE, LARGE, 3).to(dtype), torch.randn(16, LARGE, dtype=dtype)
    params, closure = list(model.parameters()), square_closure(model, x)
    closure()
    g, start, there = snapshot([p.grad for p in params]), snapshot(params), []

    def evaluate() -> None:
        there.extend(snapshot(params))
        closure()

    report = two_pass_step(evaluate, params, direction, rho=rho, onto=onto)
    epsilon = [a - b for a, b in zip(there, start, strict=True)]
    return report, epsilon, g, [p.grad for p in params]


@pytest.mark.parametrize("rho", [1e-3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@every_direction
def test_the_norm_reported_is_of_what_moved(direction: Variant, dtype: torch.dtype, rho: float) -> None:
    report, epsilon, _, _ = measured(direction, dtype, rho)
    assert report.usable
    assert report.epsilon_norm.item() == pytest.approx(global_norm(epsilon).item(), rel=1e-4)


@pytest.mark.parametrize("rho", [0.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@every_direction
def test_the_cosine_reported_is_of_the_clean_and_the_perturbed_gradient(
    direction: Variant, dtype: torch.dtype, rho: float
) -> None:
    report, _, g, h = measured(direction, dtype, rho)
    expected = global_dot(g, h) / (global_norm(g) * global_norm(h))
    assert report.grad_cosine.item() == pytest.approx(expected.item(), rel=1e-3)
    assert expected < 0.9999 or rho == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_norm_asked_for_is_told_for_weights_of_16_bits_only(dtype: torch.dtype) -> None:
    asked = measured(SAM(), dtype, 0.1)[0].asked_norm
    if dtype in (torch.float64, torch.float32):
        assert asked is None
    else:
        assert asked.item() == pytest.approx(0.1, rel=1e-2)


@every_direction
def test_the_perturbed_gradient_is_added_to_earlier_ones(direction: Variant) -> None:
    torch.manual_seed(1)
    _, _, _, h = measured(direction, torch.float64, 0.1)
    earlier = [torch.randn_like(t) for t in h]
    torch.manual_seed(1)
    _, _, _, total = measured(direction, torch.float64, 0.1, onto=snapshot(earlier))
    assert relative_error(total, [a + b for a, b in zip(earlier, h, strict=True)]) < 1e-12


# ----------------------------------------------------------------------------------------------------------------------
# Gradients that someone else owns, or that are laid out otherwise
# ----------------------------------------------------------------------------------------------------------------------
def step(closure: Callable[[], Tensor], w: nn.Parameter, direction: Variant) -> tuple[bool, Tensor]:
    before = bits([w])
    sharpness_aware_grad(closure, [w], variant=direction, rho=1.0)
    return same_bits(bits([w]), before), w.grad.clone()


@pytest.mark.parametrize("side", [4, LARGE])
@every_direction
def test_a_closure_may_own_the_memory_of_the_gradients(direction: Variant, side: int) -> None:
    """As a flat gradient buffer does, and DistributedDataParallel with gradient_as_bucket_view."""
    w, x, memory = nn.Parameter(torch.randn(side, side)), torch.randn(side), torch.zeros(side, side)
    plain = backward_closure(lambda: (w @ x).square().sum() / side)
    _, expected = step(plain, w, direction)

    def closure() -> Tensor:
        memory.zero_()
        w.grad = memory
        return plain()

    restored, h = step(closure, w, direction)
    assert restored
    assert relative_error([h], [expected]) < 1e-5


@pytest.mark.parametrize("transposed", ["gradient", "weight", "both"])
@pytest.mark.parametrize("side", [4, LARGE])
@every_direction
def test_weights_and_gradients_may_be_laid_out_differently(direction: Variant, side: int, transposed: str) -> None:
    weights, x = torch.randn(side, side), torch.randn(side)

    def run(weight_is: bool, gradient_is: bool) -> tuple[bool, Tensor]:
        w = nn.Parameter(weights.t().contiguous().t() if weight_is else weights.clone())

        def closure() -> Tensor:
            loss = (w @ x).square().sum() / side
            (g,) = torch.autograd.grad(loss, [w])
            w.grad = g.t().contiguous().t() if gradient_is else g.contiguous()
            return loss

        return step(closure, w, direction)

    _, expected = run(False, False)
    restored, h = run(transposed != "gradient", transposed != "weight")
    assert restored
    assert relative_error([h], [expected]) < 1e-5


@every_direction
def test_a_large_parameter_moves_as_its_pieces_would(direction: Variant) -> None:
    """One matrix and the same numbers as many matrices: what is worked on in pieces must not show."""
    whole = nn.Parameter(torch.randn(LARGE, LARGE, dtype=torch.float64))
    rows = [nn.Parameter(r.detach().clone().view(1, -1)) for r in whole]
    x = torch.randn(LARGE, dtype=torch.float64)
    sharpness_aware_grad(backward_closure(lambda: (whole @ x).sin().sum()), [whole], variant=direction, rho=1.0)
    closure = backward_closure(lambda: torch.cat([r @ x for r in rows]).sin().sum())
    sharpness_aware_grad(closure, rows, variant=direction, rho=1.0)
    assert relative_error([whole.grad], [torch.cat([r.grad for r in rows])]) < 1e-11


def test_what_nobody_asks_for_is_not_measured_and_the_gradient_is_the_same() -> None:
    """`sharpness_aware_grad` returns no report: measuring would be passes over the weights for nothing."""
    reports, grads = [], []
    for wanted in (True, False):
        torch.manual_seed(0)
        w = torch.nn.Parameter(torch.randn(7))

        def evaluate(w: torch.nn.Parameter = w) -> None:
            (w.square().sum() + w.prod()).backward()

        evaluate()
        reports.append(two_pass_step(evaluate, [w], SAM(), rho=0.1, measured=wanted))
        grads.append(w.grad)
    assert torch.equal(*grads)
    assert math.isfinite(float(reports[0].epsilon_norm))
    assert reports[1].epsilon_norm is None
    assert reports[1].grad_cosine is None
    assert reports[1].usable
