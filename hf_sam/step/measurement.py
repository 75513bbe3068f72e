# SPDX-License-Identifier: Apache-2.0
"""What one perturbation measures, at the price of a pass over the weights that is made anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hf_sam.variants.base import Length, Variant
from hf_sam.vectors.vectors import (
    Ascent,
    accumulation_dtype,
    chunks,
    contiguous_as,
    dot,
    global_norm,
    gradients,
    loses_bits,
    snapshot,
    sums,
)


class Measurement(NamedTuple):
    """What one perturbation measured. 0-dim tensors on the parameters' device, so that no step waits for the host.

    Attributes:
        usable: whether the gradient could be climbed along (bool).
        rho: the radius asked for.
        epsilon_norm: norm of what really moved, in the weights' own precision; None where it was not measured.
        grad_cosine: cosine between the clean and the perturbed gradient; None where it was not measured.
        asked_norm: norm of epsilon before it was rounded into the weights; None for weights of full precision.
    """

    usable: Tensor
    rho: Length
    epsilon_norm: Tensor | None = None
    grad_cosine: Tensor | None = None
    asked_norm: Tensor | None = None


class NormObserver:
    """Measures ||epsilon|| as it was asked for and as it was realised.

    Args:
        params: the parameters that move.
    """

    def __init__(self, params: list[Tensor]) -> None:
        self._params, self._dtype = params, accumulation_dtype(params)
        self._asked_norm: Tensor | None = None
        self._products: list[tuple[Tensor | float, ...]] = []  # the last chunk's first

    def applies(self, ascent: Ascent) -> None:
        """Take the norm that was asked for, where the weights are too coarse to take all of epsilon."""
        if loses_bits(self._params):
            asked = (global_norm(ascent.direction, self._params) * ascent.scale).abs()
            self._asked_norm = asked if self._asked_norm is None else torch.hypot(self._asked_norm, asked)

    def undoes(self, number: int, owners: list[Tensor], w: list[Tensor], copies: list[Tensor]) -> None:
        """Take a chunk's part of the products; the weights in `w` become epsilon."""
        torch._foreach_sub_(w, copies)
        self._products.append(self._products_of(number, owners, w, copies))

    def result(self, usable: Tensor, rho: Length) -> Measurement:
        """Return what was measured; to be called when the weights are back."""
        columns = [list(column) for column in zip(*self._products[::-1], strict=True)]
        squared_norm, *others = sums(columns, self._params)
        return Measurement(usable, rho, squared_norm.sqrt(), self._cosine(others), self._asked_norm)

    def _products_of(
        self, number: int, owners: list[Tensor], epsilon: list[Tensor], copies: list[Tensor]
    ) -> tuple[Tensor | float, ...]:
        del number, owners, copies
        return (dot(epsilon, epsilon, self._dtype),)

    def _cosine(self, others: list[Tensor]) -> Tensor | None:
        del others
        return None


class CosineObserver(NormObserver):
    """Measures cos(g, h) too.

    Args:
        params: the parameters that move.
        variant: says whether epsilon, as realised, can stand in for g.
        perturbed: returns h; called when the weights begin to move back.
        clean: g, a copy; None where epsilon stands in for it.
    """

    def __init__(
        self,
        params: list[Tensor],
        variant: Variant,
        perturbed: Callable[[], list[Tensor]],
        clean: list[Tensor] | None,
    ) -> None:
        super().__init__(params)
        self._variant, self._perturbed, self._clean = variant, perturbed, clean
        self._chunks: list[tuple[list[Tensor], ...]] = []

    def _products_of(
        self, number: int, owners: list[Tensor], epsilon: list[Tensor], copies: list[Tensor]
    ) -> tuple[Tensor | float, ...]:
        if not self._chunks:
            h = self._perturbed()
            compared = [h] if self._clean is None else [h, self._clean]
            self._chunks = list(chunks(self._params, *[contiguous_as(self._params, x) for x in compared]))
        _, _, h_chunk, *clean_chunk = self._chunks[number]
        epsilon_squared = g_squared = dot(epsilon, epsilon, self._dtype)
        g = clean_chunk[0] if clean_chunk else epsilon
        if clean_chunk or self._variant.recover_gradient_(owners, copies, epsilon):
            g_squared = dot(g, g, self._dtype)
        return epsilon_squared, g_squared, dot(g, h_chunk, self._dtype), dot(h_chunk, h_chunk, self._dtype)

    def _cosine(self, others: list[Tensor]) -> Tensor | None:
        gg, gh, hh = others
        return gh / (gg.sqrt() * hh.sqrt())


def clean_copy(params: list[Tensor], variant: Variant, rho: Length) -> list[Tensor] | None:
    """Return a copy of g where epsilon, as realised, cannot stand in for it: memory for a gradient."""
    known_zero = not isinstance(rho, Tensor) and rho == 0  # asks no device
    if variant.recovers_gradient and not known_zero and not loses_bits(params):
        return None
    return snapshot(gradients(params))
