# SPDX-License-Identifier: Apache-2.0
"""What does GSAM take off the perturbed gradient?"""

from __future__ import annotations

import pytest
import torch

from hf_sam.variants import make_variant
from hf_sam.vectors.flat import global_dot
from hf_sam.vectors.vectors import global_norm
from tests.compare import relative_error
from tests.tolerances import RELATIVE
from tests.variants.problems import Problem


def test_what_is_taken_off_is_orthogonal_to_the_perturbed_gradient_over_the_whole_vector() -> None:
    problem = Problem("gsam", {"alpha": 1.0})
    combined = problem.combine(problem.g, problem.h)
    taken_off = [h - c for h, c in zip(problem.h, combined, strict=True)]
    assert global_dot(taken_off, problem.h).abs() < 1e-13 * global_norm(taken_off) * global_norm(problem.h)
    assert global_dot(taken_off[:1], problem.h[:1]).abs() > 1e-3  # not tensor by tensor
    beyond = [g - t for g, t in zip(problem.g, taken_off, strict=True)]  # the part of g along h
    assert global_dot(beyond, problem.h).abs() == pytest.approx((global_norm(beyond) * global_norm(problem.h)).item())


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_alpha_says_how_much(alpha: float) -> None:
    problem = Problem("gsam", {"alpha": alpha})
    one = Problem("gsam", {"alpha": 1.0})
    for c, whole, h in zip(problem.combine(problem.g, problem.h), one.combine(one.g, one.h), problem.h, strict=True):
        torch.testing.assert_close(c, h + alpha * (whole - h), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_taken_off_is_not_rounded_to_16_bits_on_the_way(dtype: torch.dtype) -> None:
    """Of two gradients that are nearly parallel it is a small difference, which a large alpha would show."""
    problem = Problem("gsam", {"alpha": 30.0}, dtype)
    h = [g + 0.05 * h for g, h in zip(problem.g, problem.h, strict=True)]
    exact = Problem("gsam", {"alpha": 30.0}).combine([g.double() for g in problem.g], [x.double() for x in h])
    assert relative_error(problem.combine(problem.g, h), exact) < RELATIVE[dtype]


@pytest.mark.parametrize(
    ("alpha", "error", "message"),
    [
        (-0.1, ValueError, r"`GSAM\(alpha=\.\.\.\)` must be a finite number >= 0, got -0\.1\."),
        (float("nan"), ValueError, r"`GSAM\(alpha=\.\.\.\)` must be a finite number >= 0, got nan\."),
        ("0.4", TypeError, r"`GSAM\(alpha=\.\.\.\)` must be a number >= 0, got '0\.4'\."),
    ],
)
def test_a_bad_alpha_is_refused(alpha: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_variant("gsam", {"alpha": alpha})
