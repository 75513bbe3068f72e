# SPDX-License-Identifier: Apache-2.0
"""What do mixing and renormalising make of a perturbed gradient? (Over twenty steps: tests/variants.)"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_sam.step.gradient_mixing import mix_, renormalise_
from hf_sam.vectors.vectors import global_norm, snapshot
from tests.compare import bits, relative_error, same_bits
from tests.tolerances import RELATIVE

every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])


def gradients(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    shapes = [(5, 3), (7,), ()]
    return tuple([torch.randn(s, dtype=torch.float64).to(dtype) for s in shapes] for _ in range(2))  # type: ignore[return-value]


@every_dtype
def test_weight_one_is_the_perturbed_gradient_and_zero_the_clean_one_without_rounding(dtype: torch.dtype) -> None:
    for weight in (0, 1):
        g, h = gradients(dtype)
        mixed = snapshot(h)
        mix_(mixed, g, weight)
        assert all(torch.equal(m, wanted) for m, wanted in zip(mixed, h if weight else g, strict=True))


@pytest.mark.parametrize("weight", [0.25, 0.5, 1.5, 9.0])
@every_dtype
def test_the_sharpness_is_weighted_in_place(dtype: torch.dtype, weight: float) -> None:
    g, h = gradients(dtype)
    expected = [a.double() + weight * (b.double() - a.double()) for a, b in zip(g, h, strict=True)]
    memory, clean = [x.data_ptr() for x in h], bits(g)
    mix_(h, g, weight)
    assert relative_error(h, expected) < RELATIVE[dtype]
    assert [x.data_ptr() for x in h] == memory
    assert same_bits(bits(g), clean)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 9.0])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_bad_gradient_reaches_the_gradient_scaler(bad: float, weight: float) -> None:
    """Where the clean gradient is bad nothing moves, and the perturbed one is bad too."""
    g, h = gradients()
    for gradient in (g, h):
        gradient[0][0, 0] = bad
    mix_(h, g, weight)
    assert not torch.isfinite(h[0][0, 0])
    assert torch.isfinite(h[1]).all()


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (-0.1, ValueError, r"`mix_\(weight=\.\.\.\)` must be a finite number >= 0, got -0\.1\."),
        (float("inf"), ValueError, r"must be a finite number >= 0, got inf\."),
        ("1", TypeError, r"must be a number >= 0, got '1'\."),
    ],
)
def test_a_bad_weight_is_refused(weight: object, error: type[Exception], message: str) -> None:
    g, h = gradients()
    with pytest.raises(error, match=message):
        mix_(h, g, weight)  # type: ignore[arg-type]


@every_dtype
def test_a_renormalised_gradient_has_the_clean_one_s_length_and_its_own_direction(dtype: torch.dtype) -> None:
    g, h = gradients(dtype)
    g = [3 * x for x in g]
    memory, before = [x.data_ptr() for x in h], [x.double() for x in h]
    renormalise_(h, global_norm(g))
    share = global_norm([x.double() for x in g]) / global_norm(before)
    assert relative_error(h, [x * share for x in before]) < RELATIVE[dtype]
    assert [x.data_ptr() for x in h] == memory


@pytest.mark.parametrize("bad", [0.0, float("inf"), float("nan")])
@pytest.mark.parametrize("which", ["clean", "perturbed"])
@every_dtype
def test_a_length_that_is_zero_or_no_number_changes_nothing(dtype: torch.dtype, which: str, bad: float) -> None:
    g, h = gradients(dtype)
    for x in g if which == "clean" else h:
        x.mul_(bad)
    before = snapshot(h)
    renormalise_(h, global_norm(g))
    for x, y in zip(h, before, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


def test_one_bad_element_is_enough() -> None:
    g, h = gradients()
    h[1][0] = float("nan")
    before = bits(h)
    renormalise_(h, global_norm(g))
    assert same_bits(bits(h), before)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 9.0])
@every_dtype
def test_both_on_an_unmoved_gradient_change_nothing(dtype: torch.dtype, weight: float) -> None:
    """Promise 1: where nothing moved, h is g."""
    g, _ = gradients(dtype)
    g[0][0, 0] = -0.0
    h = snapshot(g)
    mix_(h, g, weight)
    renormalise_(h, global_norm(g))
    assert same_bits(bits(h), bits(g))
