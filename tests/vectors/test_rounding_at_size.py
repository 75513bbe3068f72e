# SPDX-License-Identifier: Apache-2.0
"""How much of epsilon reaches 16-bit weights by the million, where one weight's share is far below its resolution?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hf_sam import sharpness_aware_grad
from hf_sam.vectors.vectors import global_norm, snapshot

SIZE, PARTS = 50_000_000, 8


def realised_at_size(
    rounding: str | torch.Generator, dtype: torch.dtype, rho: float
) -> tuple[float, float, float, float]:
    """Return ||realised|| / ||asked||, their cosine, <realised, asked> / ||asked||^2 and its standard error."""
    torch.manual_seed(0)
    params = [nn.Parameter((torch.randn(SIZE // PARTS) * 0.02).to(dtype)) for _ in range(PARTS)]
    grads, there = [torch.randn(SIZE // PARTS).to(dtype) for _ in params], []

    def closure() -> Tensor:
        there.append(snapshot(params))
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        return torch.zeros(())

    sharpness_aware_grad(closure, params, rho=rho, rounding=rounding)
    scale = rho / global_norm(grads).double()
    rr = ra = aa = noise = 0.0
    for w, moved, g in zip(*there, grads, strict=True):
        realised, asked = moved.double() - w.double(), g.double() * scale
        rr, ra, aa = rr + realised.dot(realised), ra + realised.dot(asked), aa + asked.dot(asked)
        noise += (asked * (realised - asked)).square().sum()
    return float((rr / aa) ** 0.5), float(ra / (rr * aa) ** 0.5), float(ra / aa), float(noise**0.5 / aa)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rho", "norm", "cosine", "share"), [(0.05, 0.52, 0.39, 0.20), (0.1, 0.71, 0.54, 0.39), (0.5, 1.04, 0.91, 0.95)]
)
def test_of_50_million_weights_in_bfloat16_nearest_moves_too_few(
    rho: float, norm: float, cosine: float, share: float
) -> None:
    """The numbers are in docs/guide/precision.md."""
    assert realised_at_size("nearest", torch.bfloat16, rho)[:3] == pytest.approx((norm, cosine, share), abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "rho", "norm", "cosine"),
    [
        (torch.bfloat16, 0.05, 3.19, 0.31),
        (torch.bfloat16, 0.1, 2.27, 0.44),
        (torch.bfloat16, 0.5, 1.19, 0.84),
        (torch.float16, 0.05, 1.26, 0.79),
    ],
)
def test_of_50_million_weights_in_16_bits_stochastic_rounding_moves_all_and_adds_noise(
    dtype: torch.dtype, rho: float, norm: float, cosine: float
) -> None:
    """The numbers are in docs/guide/precision.md."""
    *found, projection, error = realised_at_size(torch.Generator().manual_seed(0), dtype, rho)
    assert error < 1e-3
    assert abs(projection - 1) < 3 * error
    assert found == pytest.approx([norm, cosine], abs=0.01)
    assert found[1] == pytest.approx(1 / found[0], rel=4 * error)  # what the trainer's warning reckons with
