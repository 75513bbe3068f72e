# SPDX-License-Identifier: Apache-2.0
"""What did one descent measure, at the price of a pass over the weights that is made anyway?"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hf_sam.step.perturbation import Perturbation
from hf_sam.variants import Length, Variant
from hf_sam.variants.base import Ascent
from hf_sam.vectors.vectors import (
    HALF_PRECISION,
    accumulation_dtype,
    chunks,
    contiguous_as,
    dot,
    global_norm,
    snapshot,
    sums,
)


class Measurement(NamedTuple):
    """What one descent measured. 0-dim tensors on the parameters' device, so that no step waits for the host.

    Attributes:
        usable: whether the gradient could be climbed along (bool).
        epsilon_norm: norm of what really moved, in the weights' own precision.
        grad_cosine: cosine between the clean and the perturbed gradient.
        asked_norm: norm of epsilon before it was rounded into the weights; None for weights of full precision.
        rho: the radius asked for.
    """

    usable: Tensor
    epsilon_norm: Tensor
    grad_cosine: Tensor
    asked_norm: Tensor | None
    rho: Length = math.nan


def asked_norm_of(ascent: Ascent, params: list[Tensor]) -> Tensor | None:
    """Return the norm of epsilon as asked for, where the weights are too coarse to take all of it."""
    return global_norm(ascent.direction, params) * ascent.scale if _loses_bits(params) else None


def measure(
    perturbation: Perturbation, params: list[Tensor], clean: list[Tensor] | None, h: list[Tensor], direction: Variant
) -> tuple[Tensor, Tensor]:
    """Come back; on the way measure ||epsilon|| as it was realised, and cos(g, h)."""
    beside = list(chunks(params, *(contiguous_as(params, x) for x in ([h] if clean is None else [h, clean]))))
    dtype = accumulation_dtype(params)
    products: list[tuple[Tensor | float, ...]] = [()] * len(beside)  # of epsilon, g, g and h, h

    def visit(number: int, owners: list[Tensor], w: list[Tensor], copies: list[Tensor]) -> None:
        _, _, h_piece, *clean_piece = beside[number]
        torch._foreach_sub_(w, copies)
        epsilon_squared = g_squared = dot(w, w, dtype)
        g = clean_piece[0] if clean_piece else w
        if clean_piece or direction.recover_gradient_(owners, copies, w):
            g_squared = dot(g, g, dtype)
        products[number] = (epsilon_squared, g_squared, dot(g, h_piece, dtype), dot(h_piece, h_piece, dtype))

    perturbation.undo(visit)
    epsilon_squared, gg, gh, hh = sums([list(column) for column in zip(*products, strict=True)], params)
    return epsilon_squared.sqrt(), gh / (gg.sqrt() * hh.sqrt())


def clean_copy(
    params: list[Tensor], grads: list[Tensor], direction: Variant, rho: Length, *, needed: bool
) -> list[Tensor] | None:
    """Return a copy of g where it is needed or epsilon, as realised, cannot stand in for it: memory for a gradient."""
    if direction.recovers_gradient and not needed and not _is_zero(rho) and not _loses_bits(params):
        return None
    return snapshot(grads)


def _loses_bits(w: list[Tensor]) -> bool:
    return any(p.dtype in HALF_PRECISION for p in w)


def _is_zero(rho: Length) -> bool:
    """Return whether the radius is known to be zero without asking a device."""
    return not isinstance(rho, Tensor) and rho == 0
