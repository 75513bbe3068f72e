# SPDX-License-Identifier: Apache-2.0
"""Rises of the loss within a distance of the weights: one step up, in the worst case, on average."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_sam.sharpness.loss_function import LossFunction
from hf_sam.variants.asam import is_scaled, scales_of


def scales(loss_function: LossFunction, adaptive: bool) -> Tensor | None:
    """Return T of the norm ||T^-1 eps||, a vector: that of ASAM where `adaptive`; None for 1."""
    if not adaptive:
        return None
    pieces = [scales_of([p])[0] if is_scaled(p) else torch.ones_like(p) for p in loss_function.parameters]
    return torch.cat([piece.reshape(-1) for piece in pieces]).to(loss_function.dtype)


def one_step(gradient: Tensor, rho: float, scale: Tensor | None) -> Tensor:
    """Return rho * g / ||g||, adaptive rho * T^2 g / ||T g|| (Kwon et al. 2021, eq. 8); zero for a gradient of zero."""
    along = gradient if scale is None else scale * gradient
    norm = along.norm()
    if not bool(torch.isfinite(norm) & (norm > 0)):
        return torch.zeros_like(gradient)
    step: Tensor = along * (rho / norm)
    return step if scale is None else scale * step


def sam_rise(loss_function: LossFunction, rho: float, scale: Tensor | None) -> tuple[float, float, float]:
    """Return L(w + eps) - L(w), L(w) and ||eps||, eps the step of SAM or ASAM on all examples."""
    loss, gradient = loss_function.gradient()
    epsilon = one_step(gradient, rho, scale)
    with loss_function.moved(epsilon):
        return loss_function.loss() - loss, loss, float(epsilon.norm())


def worst_rise(loss_function: LossFunction, rho: float, steps: int, scale: Tensor | None) -> tuple[float, float, float]:
    """Return the highest L(w + eps) - L(w) found with ||T^-1 eps|| <= rho, with L(w) and ||eps||.

    Projected gradient ascent in the coordinates T^-1 eps, from SAM's step, with steps of rho that shrink to a
    twentieth of it; the best point counts, so it is never less than SAM's.
    """
    loss, gradient = loss_function.gradient()
    epsilon = one_step(gradient, rho, scale)
    best, norm = float("-inf"), 0.0
    for step in range(steps):
        with loss_function.moved(epsilon):
            here, gradient = loss_function.gradient()
        if here > best:
            best, norm = here, float(epsilon.norm())
        length = rho * (1 - 0.95 * step / max(1, steps - 1))
        epsilon = _into_ball(epsilon + one_step(gradient, length, scale), rho, scale)
    return best - loss, loss, norm


def _into_ball(epsilon: Tensor, rho: float, scale: Tensor | None) -> Tensor:
    norm = (epsilon if scale is None else epsilon / scale).norm()
    return epsilon * (rho / norm).clamp(max=1.0) if norm > 0 else epsilon


def average_rises(
    loss_function: LossFunction, rho: float, draws: int, scale: Tensor | None, seed: int
) -> tuple[list[float], float, float]:
    """Return (L(w + eps) + L(w - eps)) / 2 - L(w) of each draw, L(w) and the mean ||eps||.

    eps = rho * T z / ||z||, z normal. The pair cancels what is linear in eps, which would drown the rest.
    """
    loss = loss_function.loss()
    generator = torch.Generator().manual_seed(seed)
    rises: list[float] = []
    norms = 0.0
    for _ in range(draws):
        z = torch.randn(loss_function.size, generator=generator, dtype=loss_function.dtype).to(loss_function.device)
        epsilon = rho * z / z.norm() if scale is None else rho * scale * z / z.norm()
        there = 0.0
        for sign in (1.0, -1.0):
            with loss_function.moved(sign * epsilon):
                there += loss_function.loss() / 2
        rises.append(there - loss)
        norms += float(epsilon.norm())
    return rises, loss, norms / draws
