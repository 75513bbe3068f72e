# SPDX-License-Identifier: Apache-2.0
"""What does Friendly-SAM remember, and what does it climb along?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_sam.variants import make_variant
from hf_sam.variants.friendly import FriendlySAM
from hf_sam.vectors.flat import global_dot
from hf_sam.vectors.vectors import global_norm, snapshot
from tests.compare import bits, relative_error, same_bits
from tests.variants.problems import RHO, Problem


def remembered(variant: FriendlySAM) -> list[Tensor]:
    return list(variant.state_dict().values())


def apply(variant: FriendlySAM, w: list[Tensor], g: list[Tensor]) -> list[Tensor]:
    return variant.ascend(w, snapshot(g), RHO).epsilon


def test_the_first_step_is_one_of_sam() -> None:
    problem = Problem("friendly", {})
    assert relative_error(problem.ascend().epsilon, Problem("sam", {}).ascend().epsilon) < 1e-14


@pytest.mark.slow
def test_a_gradient_seen_before_is_taken_off() -> None:
    """After many steps along g the mean is g; of g + h the direction is then h."""
    problem = Problem("friendly", {})
    for _ in range(500):
        apply(problem.variant, problem.w, problem.g)
    assert relative_error(remembered(problem.variant), problem.g) < 1e-12
    epsilon = apply(problem.variant, problem.w, [g + h for g, h in zip(problem.g, problem.h, strict=True)])
    assert global_dot(epsilon, problem.h) == pytest.approx((RHO * global_norm(problem.h)).item(), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_only_rounding_is_no_direction(dtype: torch.dtype) -> None:
    """Where every gradient is the same, the direction is that gradient until nothing but rounding is left."""
    problem = Problem("friendly", {}, dtype)
    found = [problem.ascend(variant=problem.variant) for _ in range(500)]
    assert found[50].usable
    assert not found[-1].usable
    assert not any(e.any() for e in found[-1].epsilon)
    for ascent in found:
        assert not ascent.usable or global_dot(ascent.epsilon, problem.g) > 0.9 * RHO * global_norm(problem.g)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_loss_scale_makes_no_difference_also_when_it_changes(dtype: torch.dtype, as_tensor: bool) -> None:
    plain, scaled = Problem("friendly", {}, dtype), Problem("friendly", {}, dtype)
    for i, scale in enumerate([65536.0, 32768.0, 131072.0]):
        gradient = [g + i * h for g, h in zip(plain.g, plain.h, strict=True)]
        scaled.variant.loss_scale = torch.tensor(scale) if as_tensor else scale
        expected = apply(plain.variant, plain.w, gradient)
        found = apply(scaled.variant, scaled.w, [g * scale for g in gradient])
        assert same_bits(bits(found), bits(expected))
        assert same_bits(bits(remembered(scaled.variant)), bits(remembered(plain.variant)))


@pytest.mark.parametrize("scale", [0.0, float("inf"), float("nan")])
def test_a_loss_scale_that_is_no_number_is_not_remembered(scale: float) -> None:
    problem = Problem("friendly", {})
    apply(problem.variant, problem.w, problem.g)
    before = bits(remembered(problem.variant))
    problem.variant.loss_scale = torch.tensor(scale)
    assert not problem.ascend(variant=problem.variant).usable
    assert same_bits(bits(remembered(problem.variant)), before)


def test_small_gradients_of_16_bits_are_remembered_in_32() -> None:
    """Divided by the loss scale in float16 they would be zero."""
    problem = Problem("friendly", {}, torch.float16)
    problem.variant.loss_scale = 65536.0
    apply(problem.variant, problem.w, [g * 1e-3 for g in problem.g])
    assert {m.dtype for m in remembered(problem.variant)} == {torch.float32}
    wanted = [g.float() * (0.1e-3 / 65536) for g in problem.g]
    assert relative_error(remembered(problem.variant), wanted) < 1e-2


def test_the_mean_of_a_parameter_rests_without_a_gradient() -> None:
    problem = Problem("friendly", {})
    apply(problem.variant, problem.w, problem.g)
    first = snapshot(remembered(problem.variant))
    apply(problem.variant, problem.w[1:], problem.h[1:])
    second = remembered(problem.variant)
    assert same_bits(bits(second[:1]), bits(first[:1]))
    expected = [0.9 * m + 0.1 * h for m, h in zip(first[1:], problem.h[1:], strict=True)]
    assert relative_error(second[1:], expected) < 1e-14


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sigma": -1}, ValueError, r"`FriendlySAM\(sigma=\.\.\.\)` must be a finite number >= 0, got -1\."),
        ({"lmbda": 1.0}, ValueError, r"`FriendlySAM\(lmbda=\.\.\.\)` must be a finite number >= 0 and < 1, got 1\.0\."),
        ({"lmbda": True}, TypeError, r"`FriendlySAM\(lmbda=\.\.\.\)` must be a number >= 0 and < 1, got True\."),
        ({"lmbda": 0}, ValueError, r"times \(1 - lmbda\) must be < 1.* got sigma=1\.0 and lmbda=0"),
    ],
)
def test_a_bad_option_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_variant("friendly", options)
