# SPDX-License-Identifier: Apache-2.0
"""What does LookSAM keep of a perturbed gradient, and what do the steps between get?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_sam.variants import Length, make_variant
from hf_sam.variants.looksam import LookSAM
from hf_sam.vectors.flat import global_dot
from hf_sam.vectors.vectors import global_norm, snapshot
from tests.compare import bits, relative_error, same_bits
from tests.variants.problems import Problem, every_dtype

ALPHA = 0.7


def problem_of(dtype: torch.dtype = torch.float64) -> Problem:
    return Problem("looksam", {"alpha": ALPHA}, dtype)


def refresh(problem: Problem, g: list[Tensor], h: list[Tensor], rho: Length = 0.1) -> list[Tensor]:
    problem.variant.ascend(problem.w, snapshot(g), rho)
    return problem.variant.combine(snapshot(g), snapshot(h))


def reused(problem: Problem, g: list[Tensor]) -> list[Tensor]:
    between = snapshot(g)
    problem.variant.reuse_(problem.w, between)
    return between


def kept(problem: Problem) -> list[Tensor]:
    return snapshot(list(problem.variant.state_dict().values()))


def test_what_is_kept_is_orthogonal_to_the_clean_gradient_over_the_whole_vector() -> None:
    problem = problem_of()
    refresh(problem, problem.g, problem.h)
    g_v = kept(problem)
    assert global_dot(g_v, problem.g).abs() < 1e-13 * global_norm(g_v) * global_norm(problem.g)
    assert global_dot(g_v[:1], problem.g[:1]).abs() > 1e-3  # not tensor by tensor


@every_dtype
def test_the_steps_between_get_a_share_of_it_as_long_as_alpha_times_their_gradient(dtype: torch.dtype) -> None:
    problem = problem_of(dtype)
    assert same_bits(bits(refresh(problem, problem.g, problem.h)), bits(problem.h))
    between = [h - g for g, h in zip(problem.g, problem.h, strict=True)]
    added = [a.double() - b.double() for a, b in zip(reused(problem, between), between, strict=True)]
    exactness = {torch.float64: 1e-13, torch.float32: 1e-6}.get(dtype, 2e-2)
    assert global_norm(added) == pytest.approx(ALPHA * global_norm(between).item(), rel=exactness)
    along = global_dot(added, kept(problem)) / (global_norm(added) * global_norm(kept(problem)))
    assert along == pytest.approx(1, abs=exactness)


@every_dtype
def test_nothing_is_reused_before_the_first_perturbation(dtype: torch.dtype) -> None:
    problem = problem_of(dtype)
    problem.g[0][0, 0] = -0.0
    assert same_bits(bits(reused(problem, problem.g)), bits(problem.g))


def test_nor_after_one_with_radius_zero() -> None:
    """Even where the two passes differ by what an accelerator's order of sums leaves: that is no direction."""
    problem = problem_of()
    refresh(problem, problem.g, problem.h)
    refresh(problem, problem.g, [g * (1 + 1e-9 * h) for g, h in zip(problem.g, problem.h, strict=True)], rho=0.0)
    assert same_bits(bits(reused(problem, problem.g)), bits(problem.g))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nor_after_one_that_left_the_gradient_parallel_up_to_rounding(dtype: torch.dtype) -> None:
    problem = problem_of(dtype)
    refresh(problem, problem.g, [g * 1.1 for g in problem.g])
    assert same_bits(bits(reused(problem, problem.h)), bits(problem.h))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("which", ["g", "h", "both"])
def test_a_bad_gradient_does_not_replace_what_is_kept(which: str, bad: float) -> None:
    problem = problem_of()
    refresh(problem, problem.g, problem.h)
    before = kept(problem)
    g, h = snapshot(problem.h), snapshot(problem.g)
    for gradient in {"g": [g], "h": [h], "both": [g, h]}[which]:
        gradient[1][0] = bad
    assert same_bits(bits(refresh(problem, g, h)), bits(h))
    assert same_bits(bits(kept(problem)), bits(before))


def test_nor_does_a_zero_gradient() -> None:
    problem = problem_of()
    refresh(problem, problem.g, problem.h)
    before = kept(problem)
    refresh(problem, [torch.zeros_like(g) for g in problem.g], problem.h)
    assert same_bits(bits(kept(problem)), bits(before))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_nor_does_a_radius_that_is_no_number(bad: float) -> None:
    problem = problem_of()
    refresh(problem, problem.g, problem.h)
    before = kept(problem)
    refresh(problem, problem.h, problem.g, rho=torch.tensor(bad))
    assert same_bits(bits(kept(problem)), bits(before))


@pytest.mark.parametrize("bad", [0.0, float("inf"), float("nan")])
def test_a_bad_gradient_between_stays_as_it_is(bad: float) -> None:
    problem = problem_of()
    refresh(problem, problem.g, problem.h)
    gradient = [g * bad for g in problem.g]
    for found, wanted in zip(reused(problem, gradient), gradient, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    assert all(torch.isfinite(v).all() for v in kept(problem))


def test_the_loss_scale_makes_no_difference_also_when_it_changes() -> None:
    plain, scaled = problem_of(torch.float32), problem_of(torch.float32)
    refresh(plain, plain.g, plain.h)
    refresh(scaled, [g * 65536 for g in plain.g], [h * 65536 for h in plain.h])
    expected = reused(plain, plain.h)
    found = [g / 32768 for g in reused(scaled, [h * 32768 for h in plain.h])]
    assert same_bits(bits(found), bits(expected))


def test_a_parameter_without_a_gradient_does_not_shift_the_others() -> None:
    problem = problem_of()
    refresh(problem, problem.g, problem.h)
    g_v, between = kept(problem), snapshot(problem.h[1:])
    problem.variant.reuse_(problem.w[1:], between)
    share = ALPHA * global_norm(problem.h[1:]) / global_norm(g_v[1:])
    wanted = [h + share * v for h, v in zip(problem.h[1:], g_v[1:], strict=True)]
    assert relative_error(between, wanted) < 1e-14


def test_k_says_how_often() -> None:
    assert (LookSAM().every, LookSAM(k=3).every) == (5, 3)


def test_combining_without_a_climb_is_refused() -> None:
    problem = problem_of()
    refresh(problem, problem.g, problem.h)
    with pytest.raises(RuntimeError, match="belongs to the `ascend` before it"):
        problem.variant.combine(problem.g, problem.h)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ValueError, r"`LookSAM\(k=\.\.\.\)` must be a whole number >= 1, got 0\."),
        ({"k": 2.0}, ValueError, r"`LookSAM\(k=\.\.\.\)` must be a whole number >= 1, got 2\.0\."),
        ({"k": True}, ValueError, r"`LookSAM\(k=\.\.\.\)` must be a whole number >= 1, got True\."),
        ({"alpha": -1}, ValueError, r"`LookSAM\(alpha=\.\.\.\)` must be a finite number >= 0, got -1\."),
    ],
)
def test_a_bad_option_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_variant("looksam", options)
